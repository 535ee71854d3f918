"""Looks at a run's health at intervals, says its alarms, and ends the run where that is wanted."""

from collections.abc import Mapping

from torch import Tensor

from pretrain.run.due import Every
from pretrain.run.health import HealthWatch, alarm_text, health_figures
from pretrain.run.monitor import Monitor
from pretrain.self_distillation import SelfDistillation
from vision_core.errors import UserError

DINO_LOSSES = ("dino_global_loss", "dino_local_loss")


class HealthCheck:
    """The figures of the teacher on the probe images, for metrics.jsonl and for the alarms of
    `watch`.

    probes: `[P, C, H, W]`, as stored. mean, std: per channel, by which they are normalised.
    stops_run: an alarm ends the run.
    """

    def __init__(
        self,
        method: SelfDistillation,
        probes: Tensor,
        mean: list[float],
        std: list[float],
        *,
        every: Every,
        watch: HealthWatch,
        monitor: Monitor,
        stops_run: bool,
    ) -> None:
        self.method = method
        self.probes = probes
        self.mean = mean
        self.std = std
        self.every = every
        self.watch = watch
        self.monitor = monitor
        self.stops_run = stops_run

    def is_due(self, step: int) -> bool:
        """Whether the figures are taken after this step."""
        return self.every.is_due(step)

    def check(self, step: int, teacher_temp: float, latest: Mapping[str, Tensor]) -> None:
        """Log the figures and say each alarm when it begins. latest: losses and gradient norms of
        the last step taken.

        Raises UserError at an alarm where the run is to end with it.
        """
        figures = health_figures(self.method, self.probes, self.mean, self.std, teacher_temp)
        figures["dino_loss"] = self._unweighted_dino_loss(latest)
        figures["gradient_norm"] = float(latest.get("backbone_grad_norm", float("nan")))
        alarms = self.watch.look_at(step, figures)
        line = {f"health_{name}": value for name, value in figures.items()}
        if alarms:
            line["alarms"] = alarms
        self.monitor.log(step, line)
        for name in alarms:
            self.monitor.say(f"health, step {step}: {alarm_text(name, figures)} (docs/health.md)")
        if alarms and self.stops_run:
            raise UserError(f"step {step}: stopped by stop_when_sick: {alarm_text(alarms[0], figures)}")

    def _unweighted_dino_loss(self, latest: Mapping[str, Tensor]) -> float:
        """The DINO loss before its weight; NaN where it has none."""
        weight = self.method.dino_loss_weight
        if not weight:
            return float("nan")
        total = sum(float(value) for name, value in latest.items() if name in DINO_LOSSES)
        return total / weight
