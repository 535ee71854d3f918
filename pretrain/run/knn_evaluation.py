"""Judges the teacher by k-NN while it trains."""

from torch import nn

from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.evaluation.knn_benchmark import KnnBenchmark
from pretrain.run.due import Every
from pretrain.run.monitor import Monitor, knn_line
from vision_core.processes.stopping import StopRequest


class KnnEvaluation:
    """k-NN of `backbone` at intervals, on the main process; the others wait.

    benchmark: the images, on the main process alone. every: None where the run is not judged.
    accuracies: in percent, of the last evaluation. references: in percent, what the run has to
    beat.
    """

    def __init__(
        self, backbone: nn.Module, benchmark: KnnBenchmark | None, every: Every | None, monitor: Monitor
    ) -> None:
        self.backbone = backbone
        self.benchmark = benchmark
        self.every = every
        self.monitor = monitor
        self.accuracies: dict[str, float] = {}
        self.references: dict[str, float] = {}

    def is_due(self, step: int) -> bool:
        """Whether the encoder is judged after this step."""
        return self.every is not None and self.every.is_due(step)

    def evaluate(self, step: int, stop: StopRequest | None) -> None:
        """Judge the encoder. The evaluation is broken off, and recorded nowhere, once `stop` has a
        signal."""

        def told_to_stop() -> bool:
            return stop is not None and stop.signal is not None

        found = {}
        if self.benchmark is not None:
            encoder = TransformersEncoder(self.backbone, self.benchmark.transform)
            found = self.benchmark.evaluate(encoder, told_to_stop)
        if found:
            self.accuracies = found
            self.monitor.log(step, {f"knn_{name}": value for name, value in found.items()})
            self.monitor.say(knn_line(step, found))
        self.monitor.accelerator.wait_for_everyone()

    def tell_references(self, references: dict[str, float]) -> None:
        """Keep and say what the run has to beat, and which images could not be read."""
        self.references = references
        self.monitor.say(f"k-NN            {self.benchmark.description}")
        self.monitor.name_unreadable("k-NN", self.benchmark.bad)
        to_beat = ", ".join(f"{name} {value:.1f} %" for name, value in references.items())
        self.monitor.say(f"to beat         {to_beat}")
