"""Shows a run to a person: progress bar, metrics.jsonl, trackers, and pictures at the end."""

import json
import math
import resource
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.evaluation.knn_benchmark import KnnBenchmark
from encoders.evaluation.used_images import in_words
from encoders.pictures.curves import curve_picture
from encoders.pictures.encoder_pictures import attention_picture, pca_picture
from encoders.pictures.sheets import display
from pretrain.run.due import Every
from vision_core.images.source import UnreadableSample
from vision_core.processes.distributed import gather_objects
from vision_core.progress import say_above, show_loss, step_bar
from vision_core.runs.run_folder import RunFolder

NUM_PICTURED = 6

Curve = tuple[list[float], list[float]]


def not_finite(own_loss: Tensor, ids: list[str]) -> tuple[float, list[int], list[str]]:
    """A loss, ranks and images of a step that is not finite: those of the processes where the loss
    is not, or of all processes where only gradients are not.

    own_loss, ids: of this process. All processes call it together.
    """
    shares = list(enumerate(gather_objects((float(own_loss), ids))))
    sick = [share for share in shares if not math.isfinite(share[1][0])] or shares
    ranks: list[int] = []
    sick_ids: list[str] = []
    for rank, (_, names) in sick:
        ranks.append(rank)
        sick_ids += names
    first_loss, _ = sick[0][1]
    return first_loss, ranks, sick_ids


class Monitor:
    """Counts, averages and writes. Losses are summed on their device and read once per
    `logging_steps`.

    Its `state_dict` is part of a checkpoint, so that a resumed run writes the same lines as an
    uninterrupted one.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunFolder | None,
        every: Every,
        first_step: int,
        global_batch: int,
    ) -> None:
        self.accelerator = accelerator
        self.run = run
        self.every = every
        self.first_step = first_step
        self.global_batch = global_batch
        self.sums: dict[str, Tensor | float] = {}
        self._start_window()

    def is_due(self, step: int) -> bool:
        """Whether a line of averages is written after this step; the last one too, however short
        the run."""
        return self.every.is_due(step)

    def progress(self) -> tqdm:
        """The bar of the loop, for a `with`: closed at its end, so that the line of an error is the
        last one."""
        self.window_start = time.perf_counter()
        last_step = self.every.last_step
        self.bar = step_bar(last_step, self.first_step, "pretraining", hidden=self.run is None)
        return self.bar

    def waited_for_data(self, seconds: float) -> None:
        """Add time that the loop spent waiting for a batch."""
        self.waited += seconds

    def step_done(self, step: int, values: dict[str, Tensor], settings: dict[str, float]) -> None:
        """Take in one step's losses and gradient norms; write a line where one is due. settings:
        this step's values of the schedules."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.count += 1
        self.images += self.global_batch
        if self.is_due(step):
            self._write_window(step, settings)
        self.bar.update(1)

    def log(self, step: int, metrics: dict) -> None:
        """Write one line to metrics.jsonl and the trackers."""
        if self.run is not None:
            self.run.append_metrics({"step": step, **metrics})
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=step)

    def say(self, text: str) -> None:
        """Print a line above the progress bar, on the main process."""
        if self.run is not None:
            say_above(text)

    def say_all(self, lines: Iterable[str]) -> None:
        """Print each line, as `say` does."""
        for line in lines:
            self.say(line)

    def tell_rescaled(self, step: int, figures: dict[str, float], scale: float) -> None:
        """Say that a step was not taken because its gradients overflowed in float16, which is how
        the loss scale finds its place."""
        self.log(step, {"skipped": True} | figures)
        self.say(f"step {step} not taken: gradients overflowed in float16; the loss scale falls to {scale:g}")

    def report_skipped(self, step: int, own_loss: Tensor, ids: list[str]) -> None:
        """Say which images were in a step whose loss or gradients were not finite: those of the
        processes where the loss is, if any.

        own_loss, ids: of this process. All processes call it together.
        """
        loss, ranks, all_ids = not_finite(own_loss, ids)
        self.log(step, {"skipped": True, "loss": loss, "ranks": ranks, "ids": all_ids})
        self.say(f"step {step} skipped: loss {loss} or its gradients are not finite (ids in metrics.jsonl)")

    def name_unreadable(self, what: str, bad: list[UnreadableSample]) -> None:
        """Say which images were left out of something, and keep all names in bad_samples.jsonl."""
        if self.run is None or not bad:
            return
        self.say(f"left out        {what}: {len(bad)} images cannot be read, {in_words(bad)}")
        for sample in bad:
            self.run.append_bad_sample(sample.id, sample.reason)

    def state_dict(self) -> dict:
        """The unfinished averages, exact in JSON."""
        return {"count": self.count, "sums": {name: float(value) for name, value in self.sums.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Go on with the averages of `state_dict`."""
        self.count = state["count"]
        self.sums = {name: torch.tensor(value) for name, value in state["sums"].items()}

    def _write_window(self, step: int, settings: dict[str, float]) -> None:
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        elapsed = time.perf_counter() - self.window_start
        speed = {"images_per_second": self.images / elapsed, "data_wait": min(self.waited / elapsed, 1.0)}
        show_loss(self.bar, means["loss"], speed["images_per_second"])
        self.log(step, means | settings | speed)
        self.sums = {}
        self._start_window()

    def _start_window(self) -> None:
        self.count = 0  # steps in the sums
        self.window_start = time.perf_counter()
        self.waited = 0.0
        self.images = 0


def knn_line(step: int, accuracies: dict[str, float]) -> str:
    """k-NN accuracies as one line for people."""
    return f"step {step}: k-NN " + ", ".join(f"{name} {value:.1f} %" for name, value in accuracies.items())


def peak_memory_gib() -> float:
    """Greatest resident memory of this process plus that of its greatest finished or running data
    worker, in GiB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + children) / 2**20


def write_figures(
    folder: Path,
    metrics: Path,
    model: nn.Module,
    num_prototypes: int,
    *,
    benchmark: KnnBenchmark | None,
    references: dict[str, float],
) -> None:
    """Write loss.png and health.png from metrics.jsonl; with a benchmark also knn.png, attention.png
    and pca.png on its first queries."""
    folder.mkdir(exist_ok=True)
    lines = read_metrics(metrics)
    curves = _curves(lines)
    accuracies = {name: curve for name, curve in curves.items() if name.startswith("knn_")}
    losses = {name: curve for name, curve in curves.items() if _is_loss(name)}
    curve_picture(losses, "Losses", "loss").save(folder / "loss.png")
    shares = _health_shares(lines, num_prototypes, model.config.hidden_size)
    curve_picture(shares, "Health", "share of the greatest value").save(folder / "health.png")
    if benchmark is not None:
        curve_picture(accuracies, "k-NN accuracy", "top-1, %", references).save(folder / "knn.png")
        write_encoder_pictures(folder, TransformersEncoder(model, benchmark.transform), benchmark)


def read_metrics(path: Path) -> list[dict]:
    """The lines of metrics.jsonl; [] where a checkpoint was carried to another folder without it."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _is_loss(name: str) -> bool:
    return name.endswith("loss") and not name.startswith("health_")


def write_encoder_pictures(folder: Path, encoder: TransformersEncoder, benchmark: KnnBenchmark) -> None:
    """Write attention.png and pca.png of the benchmark's first queries."""
    images = benchmark.queries.images[:NUM_PICTURED]
    pixels = benchmark.transform.pixels(images).to(encoder.device)
    shown = display(images.float() / 255 if images.dtype == torch.uint8 else images)
    attention_picture(encoder, shown, pixels).save(folder / "attention.png")
    pca_picture(encoder, shown, pixels).save(folder / "pca.png")


def _curves(lines: list[dict]) -> dict[str, Curve]:
    """The numbers of metrics.jsonl as name -> (steps, values)."""
    curves: dict[str, Curve] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, int | float):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return curves


def _health_shares(lines: list[dict], num_prototypes: int, width: int) -> dict[str, Curve]:
    """The health figures that have a greatest value, divided by it."""
    greatest = {
        "information": math.log(num_prototypes),
        "prototypes_in_use": 1,
        "feature_spread": 1,
        "feature_cosine": 1,
        "rankme": width,
    }
    curves = _curves([line for line in lines if "health_rankme" in line])
    shares: dict[str, Curve] = {}
    for name, most in greatest.items():
        if f"health_{name}" in curves:
            steps, values = curves[f"health_{name}"]
            shares[name] = (steps, [value / most for value in values])
    return shares
