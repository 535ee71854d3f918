"""One encoder on one data set: its frozen features of both splits, computed when a task first asks
for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.base import Encoder
from encoders.evaluation.feature_cache import Compute, cached_features
from encoders.evaluation.features import draw_subset, map_bytes, map_features, vector_bytes, vector_features
from encoders.evaluation.stored_features import StoredFeatures, StoredRows
from encoders.evaluation.used_images import MAX_BAD_FRACTION, check_share, found_in, in_words
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError
from vision_core.images.source import ImageSource, UnreadableSample
from vision_core.images.splits import Splits
from vision_core.unreadable import UnreadableImage

MOST_PATCHES = 2048  # of an image in the dense tasks, unless a size is given
BYTES_IN_MEMORY = 2**32


class FrozenFeatures:
    """Features of `splits` by `encoder`, from a cache.

    Args:
        limits: the greatest number of training and of test images, drawn by `seed`; None for all.
        dense_size: (height, width) to which images are resized, without cropping, in the dense
            tasks; None for `dense_size_for`.
        max_bad_fraction: above this share of unreadable images in a split UserError is raised,
            which names them.

    Attributes:
        bad: split -> {id: reason} of the images that could not be read so far, or whose mask or
            depth could not.
        in_both: how many test images are among the training images, by their content; None before a
            task has asked.
    """

    def __init__(
        self,
        encoder: Encoder,
        splits: Splits,
        cache_dir: Path,
        *,
        limits: tuple[int | None, int | None] = (None, None),
        dense_size: tuple[int, int] | None = None,
        seed: int = 0,
        batch_size: int = 64,
        num_workers: int = 0,
        progress: bool = False,
        max_bad_fraction: float = MAX_BAD_FRACTION,
    ) -> None:
        self.encoder, self.seed, self.progress = encoder, seed, progress
        self.sources: dict[str, ImageSource] = {"train": splits.train, "test": splits.test}
        self.indices = {
            name: self._draw(name, limit) for name, limit in zip(("train", "test"), limits, strict=True)
        }
        self.cache_dir, self.batch_size, self.num_workers = cache_dir, batch_size, num_workers
        self._dense_size = dense_size
        self._stored: dict[tuple, StoredFeatures] = {}
        self.max_bad_fraction = max_bad_fraction
        self.bad: dict[str, dict[str, str]] = {"train": {}, "test": {}}
        self.in_both: int | None = None
        self._looked_at: set[str] = set()
        self._read_before: dict[str, int] = {}
        self._training_rows: dict[bool, Tensor] = {}

    @property
    def dense_transform(self) -> ImageTransform:
        """The encoder's preprocessing at the dense size, the whole image, whatever its aspect
        ratio."""
        if self._dense_size is None:
            self._dense_size = dense_size_for(self.encoder, self.sources["test"])
        self.encoder.grid(*self._dense_size)
        return self.encoder.transform.resized(self._dense_size, "squash")

    def vectors(self, split: str) -> dict[str, Tensor]:
        """The vectors of `vector_features`, each `[n, width]`."""
        stored = self._of_vectors(split)
        return stored.load_all()

    @property
    def main_vector_name(self) -> str:
        """The published image vector, or the mean of the patches where the model has none."""
        return "patch_mean" if self.encoder.pooled_width is None else "pooled"

    def maps(self, split: str, layers: tuple[int, ...]) -> dict[str, Tensor | StoredRows]:
        """The maps and CLS tokens of `map_features`, on disk where they would fill the memory."""
        name = f"maps {' '.join(map(str, layers))}"
        transform = self.dense_transform
        image_bytes = map_bytes(self.encoder, transform.size, layers)
        stored = self._extract(
            split, lambda encoder, pixels: map_features(encoder, pixels, layers), name, transform, image_bytes
        )
        rows = {name: stored.rows(name) for name in stored.names}
        fits = 2 * sum(torch.Size(each.shape).numel() for each in rows.values()) < BYTES_IN_MEMORY
        return stored.load_all() if fits else rows

    def kept(self, split: str, dense: bool = False) -> list[int]:
        """Which images of the source the rows stand for."""
        return self._of_kind(split, dense).kept.tolist()

    def training_rows(self, dense: bool = False) -> Tensor:
        """`[n]` the rows of the training images that are no test images, by their content: what may
        be learnt from.

        Raises UserError where none is left.
        """
        if dense not in self._training_rows:
            train, test = (self._of_kind(split, dense).contents for split in ("train", "test"))
            rows = (~found_in(train, test)).nonzero()[:, 0]
            if not len(rows):
                raise UserError(
                    f"all {len(train):,} training images are test images too; name other images by --test_dataset of "
                    "recipes/evaluate_encoder.py, or another data set"
                )
            self.in_both, self._training_rows[dense] = int(found_in(test, train).sum()), rows
        return self._training_rows[dense]

    def annotated_rows(self, split: str, kind: str) -> tuple[list[int], list[Tensor]]:
        """The rows of `maps` whose mask or depth (`kind`) can be read, of training images those of
        `training_rows`; and these annotations."""
        source, kept = self.sources[split], self.kept(split, dense=True)
        rows, annotations, bad = [], [], []
        for row in self.training_rows(dense=True).tolist() if split == "train" else range(len(kept)):
            try:
                annotations.append(getattr(source.annotations, kind)(kept[row]))
                rows.append(row)
            except UnreadableImage as error:
                bad.append(UnreadableSample(source.id_of(kept[row]), f"{kind} {error.reason}"))
        self.note_unreadable(split, bad)
        return rows, annotations

    def note_unreadable(self, split: str, samples: Iterable[UnreadableSample]) -> None:
        """Remember what could not be read of a split that was looked at. Raises UserError where it
        is more than the share."""
        self._looked_at.add(split)
        for sample in samples:
            reasons = self.bad[split].get(sample.id, "")
            if sample.reason not in reasons.split(", "):
                self.bad[split][sample.id] = ", ".join(filter(None, [reasons, sample.reason]))
        bad = [UnreadableSample(name, reason) for name, reason in self.bad[split].items()]
        part = "training images" if split == "train" else "test images"
        check_share(bad, len(self.indices[split]), self.max_bad_fraction, part)

    def num_read(self, split: str) -> int:
        """How many images of a split were looked at and could be read, so far."""
        extracted = self._num_extracted(split)
        if extracted is not None:
            return extracted
        return len(self.indices[split]) - len(self.bad[split]) if split in self._looked_at else 0

    def _num_extracted(self, split: str) -> int | None:
        """How many images of a split have features, here or in the process whose knowledge was
        taken over; None without any."""
        stored = [each for (name, _), each in self._stored.items() if name == split]
        return len(stored[0].kept) if stored else self._read_before.get(split)

    def what_was_read(self) -> dict[str, Any]:
        """What is known of the images so far, as JSON holds it: for `take_over` of another process,
        which need not look again."""
        extracted = {split: self._num_extracted(split) for split in self.indices}
        read = {split: count for split, count in extracted.items() if count is not None}
        return {"read": read, "looked_at": sorted(self._looked_at), "bad": self.bad, "in_both": self.in_both}

    def take_over(self, known: dict[str, Any]) -> None:
        """Go on from `what_was_read` of the same encoder on the same images."""
        self._read_before |= known["read"]
        self._looked_at |= set(known["looked_at"])
        self.in_both = known["in_both"] if self.in_both is None else self.in_both
        for split, bad in known["bad"].items():
            self.bad[split] |= bad

    @property
    def used_in_words(self) -> str:
        """What was read, what could not be, and what was left out because it is in both parts."""
        parts = {"train": "training images", "test": "test images"}
        words = " and ".join(
            f"{self.num_read(split):,} {part}" for split, part in parts.items() if self.num_read(split)
        )
        for split, part in parts.items():
            if self.bad[split]:
                samples = [UnreadableSample(name, reason) for name, reason in self.bad[split].items()]
                words += f"; left out of the {part}, because they cannot be read: {in_words(samples)}"
        if self.in_both:
            words += (
                f"; {self.in_both:,} of {self.num_read('test'):,} test images are among the training images, "
                "which tasks with a training part leave out of it"
            )
        return words

    def labels(self, split: str) -> Tensor:
        """`[n]` labels of the rows of `vectors`."""
        self._of_vectors(split)
        source = self.sources[split]
        if source.labels is None:
            raise UserError(
                f"{source.description} has no labels; name a data set with labels, or other tasks"
            )
        return torch.tensor(source.labels)[self.kept(split)]

    def marks(self, split: str) -> Tensor:
        """`[n, classes]` bool: which classes each row of `vectors` has, where an image may have
        several. Both splits have the same classes."""
        self._of_vectors(split)
        for source in self.sources.values():
            if source.multi_labels is None:
                raise UserError(
                    f"{source.description} has no lists of classes; name a column of lists by ?label=COLUMN"
                )
        names = self.sources["train"].class_names
        greatest = max(
            (number for source in self.sources.values() for row in source.multi_labels for number in row),
            default=-1,
        )
        rows = self.kept(split)
        marks = torch.zeros(len(rows), len(names) if names else greatest + 1, dtype=torch.bool)
        for row, index in enumerate(rows):
            marks[row, self.sources[split].multi_labels[index]] = True
        return marks

    def _of_vectors(self, split: str) -> StoredFeatures:
        return self._extract(
            split, vector_features, "vectors", self.encoder.transform, vector_bytes(self.encoder)
        )

    def _extract(
        self, split: str, compute: Compute, name: str, transform: ImageTransform, image_bytes: int
    ) -> StoredFeatures:
        if (split, name) not in self._stored:
            source = self.sources[split]
            stored = cached_features(
                self.encoder, source, compute, name, self.cache_dir, transform=transform, indices=self.indices[split],
                batch_size=self.batch_size, num_workers=self.num_workers, progress=self.progress, image_bytes=image_bytes,
            )  # fmt: skip
            self._stored[split, name] = stored
            self.note_unreadable(
                split,
                (UnreadableSample(source.id_of(index), reason) for index, reason in stored.reasons.items()),
            )
        return self._stored[split, name]

    def _of_kind(self, split: str, dense: bool) -> StoredFeatures:
        return next(
            stored
            for (name, kind), stored in self._stored.items()
            if name == split and kind.startswith("maps") == dense
        )

    def _draw(self, split: str, limit: int | None) -> list[int]:
        count = len(self.sources[split])
        return (
            list(range(count))
            if limit is None or limit >= count
            else sorted(draw_subset(count, limit, self.seed, "evaluation", split))
        )


def dense_size_for(encoder: Encoder, source: ImageSource) -> tuple[int, int]:
    """The size of the first readable image, rounded to the encoder's stride, made smaller where it
    has more than 2,048 patches.

    An encoder that takes no other size than its own gets its own.
    """
    height, width = _first_size(source)
    scale = min(1.0, (MOST_PATCHES * encoder.stride**2 / (height * width)) ** 0.5)
    size = tuple(max(round(side * scale / encoder.stride), 1) * encoder.stride for side in (height, width))
    return encoder.transform.size if encoder.size_problem(*size) else size


def _first_size(source: ImageSource) -> tuple[int, int]:
    for index in range(len(source)):
        try:
            return tuple(source[index].image.shape[-2:])
        except UnreadableImage:
            continue
    raise UserError(f"no image of {source.description} can be read; name other images")
