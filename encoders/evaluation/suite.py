"""Tasks run with one frozen encoder after another, on one data set after another.

Results are kept in the output folder as each task ends, so that a start after a kill runs only what
is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from encoders.base import Encoder
from encoders.evaluation.bad_samples import write_bad_samples
from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.kept_results import KeptResults
from encoders.evaluation.results import TaskResult, figure_in_words
from encoders.evaluation.retrieval import read_ground_truth
from encoders.evaluation.tasks import TASKS
from encoders.load import load_encoder
from encoders.source_text import split_source
from vision_core.files.json_reports import plain
from vision_core.images.ranges import range_notes
from vision_core.images.splits import Splits
from vision_core.processes.distributed import broadcast_text, is_main_process, print_once
from vision_core.runs.work_folder import PARTIAL

# The options that decide about the features beside the encoder and the images; `KeptResults` knows
# the rest of what a result depends on.
FEATURE_OPTIONS = ("dense_image_size", "preprocess", "bf16", "seed", "batch_size", "max_bad_fraction")


@dataclass(frozen=True)
class EvaluationSuite:
    """How encoders are loaded, how images are looked at, and how tasks are run.

    Attributes:
        device: of the encoders.
        image_size, preprocess, position_offset: see `load_encoder`.
        bf16: whether weights are bfloat16, and not float32.
        seed: of untrained encoders, of draws and of trained heads.
        dense_image_size, max_train_samples, max_test_samples, max_bad_fraction: see
            `FrozenFeatures`.
        batch_size: how many images go through an encoder at once.
        num_workers: processes that read images.
        cache_dir: where features are kept; None for a folder in the user's cache.
        task_settings: the options of all tasks, by name; each task takes its own.
    """

    device: torch.device
    image_size: int | None
    dense_image_size: Sequence[int] | None
    preprocess: str
    position_offset: float | None
    bf16: bool
    seed: int
    max_train_samples: int | None
    max_test_samples: int | None
    max_bad_fraction: float
    batch_size: int
    num_workers: int
    cache_dir: str | None
    task_settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Read the ground truth once, so that a bad file is told before features are computed."""
        ground_truth = self.task_settings.get("ground_truth")
        if ground_truth is not None:
            read_ground_truth(ground_truth)

    def load(self, source: str) -> Encoder:
        """The frozen encoder on the suite's device."""
        return self.load_on_cpu(source).to(self.device)

    def load_on_cpu(self, source: str) -> Encoder:
        """The frozen encoder, on the CPU. A `?preprocess=` of the source text goes before the
        suite's."""
        _, options = split_source(source)
        return load_encoder(
            source,
            image_size=self.image_size,
            dtype=torch.bfloat16 if self.bf16 else torch.float32,
            preprocess=None if "preprocess" in options else self.preprocess,
            position_offset=self.position_offset,
            seed=self.seed,
        )

    def frozen_features(self, encoder: Encoder, splits: Splits) -> FrozenFeatures:
        """The encoder's features of a data set, which are computed when a task asks for them."""
        return FrozenFeatures(
            encoder,
            splits,
            feature_cache_folder(self.cache_dir),
            limits=(self.max_train_samples, self.max_test_samples),
            dense_size=tuple(self.dense_image_size) if self.dense_image_size else None,
            seed=self.seed,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            progress=True,
            max_bad_fraction=self.max_bad_fraction,
        )

    def run(
        self, frozen: FrozenFeatures, tasks: Sequence[str], dataset: str, folder: Path
    ) -> dict[str, TaskResult]:
        """The results by task on the main process, which prints them; the other processes help to
        extract features and get none.

        A result that an earlier start has kept in `folder` is taken over. What cannot be read is
        named in its `bad_samples.jsonl`, even where so much is unreadable that UserError is raised.

        dataset: the text that names the data set.
        """
        try:
            kept = (
                KeptResults(folder / PARTIAL, frozen, self._feature_options()) if is_main_process() else None
            )
            found = self._take(kept, tasks) if kept else {}
            self._prepare(frozen, tasks, found)
            if kept is None:
                return {}
            results = {}
            for name in tasks:
                results[name] = found[name] if name in found else self._run_and_keep(name, frozen, kept)
                print_once([_result_in_words(name, results[name], is_kept=name in found)])
            print_once([f"{dataset}: {frozen.used_in_words}"])
            return results
        finally:
            if is_main_process():
                write_bad_samples(folder, dataset, frozen.bad)

    def _feature_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FEATURE_OPTIONS}

    def _take(self, kept: KeptResults, tasks: Sequence[str]) -> dict[str, TaskResult]:
        """The results of those tasks that an earlier start has run."""
        found = {}
        for name in tasks:
            settings = self._settings_of(name)
            result = kept.take(name, settings | _hashes_of_files(settings))
            if result is not None:
                found[name] = result
        return found

    def _prepare(self, frozen: FrozenFeatures, tasks: Sequence[str], found: Mapping[str, TaskResult]) -> None:
        """Extract what the missing tasks read, on all processes; the main one knows which these
        are."""
        missing = [name for name in tasks if name not in found]
        for name in json.loads(broadcast_text(json.dumps(missing))):
            TASKS[name].prepare(frozen)

    def _run_and_keep(self, name: str, frozen: FrozenFeatures, kept: KeptResults) -> TaskResult:
        settings = self._settings_of(name)
        result = TASKS[name].run(frozen, **settings)
        kept.keep(
            name, settings | _hashes_of_files(settings), plain(result.without_picture()), result.picture
        )
        return result

    def _settings_of(self, name: str) -> dict[str, Any]:
        return {key: self.task_settings[key] for key in TASKS[name].settings}


def range_notes_for(encoder: Encoder, splits: Splits) -> list[str]:
    """Notes on what is odd about the range of the training images' values, for an encoder that
    normalises by its own mean and std.

    The main process alone looks, as it alone prints.
    """
    if not is_main_process():
        return []
    channels = encoder.num_channels
    mean = _for_each_channel(encoder.transform.mean, channels)
    std = _for_each_channel(encoder.transform.std, channels)
    notes = range_notes(splits.train, channels, mean, std, is_trained=True)
    return [f"note: {note}" for note in notes]


def feature_cache_folder(given: str | None) -> Path:
    """Where features are kept: the folder that was named, or one in the user's cache."""
    if given:
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "vision-encoder-fusion" / "features"


def _for_each_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def _result_in_words(name: str, result: TaskResult, is_kept: bool) -> str:
    figures = ", ".join(f"{metric} {figure_in_words(value)}" for metric, value in result.metrics.items())
    words = f"  {name:<22}{figures}; {result.images_in_words}"
    return f"{words}, kept from an earlier start" if is_kept else words


def _hashes_of_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files that a task's settings name."""
    path = settings.get("ground_truth")
    if path is None or not Path(path).is_file():  # the task itself says so
        return {}
    return {"content of ground_truth": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
