"""The frozen features of one encoder on one data set, computed when a task first asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

SPLIT_NAMES = ("train", "test")
IMAGES_IN_WORDS = {"train": "training images", "test": "test images"}
MOST_PATCHES = 2048  # of an image in the dense tasks, unless a size is given
BYTES_IN_MEMORY = 2**32


class FrozenFeatures:
    """Features of `splits` by `encoder`, from a cache.

    Args:
        limits: the greatest number of training and of test images, drawn by `seed`; None for all.
        dense_size: (height, width) to which images are resized, without cropping, in the dense
            tasks; None for `dense_size_for`.
        max_bad_fraction: the share of unreadable images in a split above which UserError is raised,
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
        self.encoder = encoder
        self.seed = seed
        self.progress = progress
        self.cache_dir = cache_dir
        self.max_bad_fraction = max_bad_fraction
        self.sources: dict[str, ImageSource] = dict(zip(SPLIT_NAMES, splits, strict=True))
        self.indices: dict[str, list[int]] = {}
        for split, limit in zip(SPLIT_NAMES, limits, strict=True):
            self.indices[split] = self._draw(split, limit)
        self.bad: dict[str, dict[str, str]] = {"train": {}, "test": {}}
        self.in_both: int | None = None
        self._reading = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
        self._dense_size = dense_size
        self._stored: dict[tuple[str, str], StoredFeatures] = {}
        self._looked_at: set[str] = set()
        self._read_before: dict[str, int] = {}
        self._training_rows: dict[bool, Tensor] = {}

    @property
    def dense_transform(self) -> ImageTransform:
        """The encoder's preprocessing at the dense size: the image is not cropped, whatever its
        aspect ratio."""
        if self._dense_size is None:
            self._dense_size = dense_size_for(self.encoder, self.sources["test"])
        self.encoder.grid(*self._dense_size)
        return self.encoder.transform.resized(self._dense_size, "squash")

    @property
    def training_options(self) -> dict[str, Any]:
        """How a head is trained on these features: `seed`, `progress` and `device`, as keywords."""
        return {"seed": self.seed, "progress": self.progress, "device": self.encoder.device}

    def vectors(self, split: str) -> dict[str, Tensor]:
        """The vectors of `vector_features`, each `[n, D]`."""
        return self._extract_vectors(split).load_all()

    @property
    def main_vector_name(self) -> str:
        """The published image vector, or the mean of the patches where the model has none."""
        return "patch_mean" if self.encoder.pooled_width is None else "pooled"

    def maps(self, split: str, layers: tuple[int, ...]) -> dict[str, Tensor | StoredRows]:
        """The maps and CLS tokens of `map_features`, on disk where they would fill the memory."""
        transform = self.dense_transform

        def compute(encoder: Encoder, pixels: Tensor) -> dict[str, Tensor]:
            return map_features(encoder, pixels, layers)

        stored = self._extract(
            split,
            compute,
            name=f"maps {' '.join(map(str, layers))}",
            transform=transform,
            image_bytes=map_bytes(self.encoder, transform.size, layers),
        )
        rows = {name: stored.rows(name) for name in stored.names}
        numbers = sum(torch.Size(each.shape).numel() for each in rows.values())
        return stored.load_all() if 2 * numbers < BYTES_IN_MEMORY else rows

    def kept(self, split: str, dense: bool = False) -> list[int]:
        """The images of the source to which the rows of features belong."""
        return self._stored_of_kind(split, dense).kept.tolist()

    def training_rows(self, dense: bool = False) -> Tensor:
        """`[n]` the rows of the training images from which a task may learn: those that are not
        test images too, by their content.

        Raises UserError where none is left.
        """
        if dense not in self._training_rows:
            train = self._stored_of_kind("train", dense).contents
            test = self._stored_of_kind("test", dense).contents
            rows = (~found_in(train, test)).nonzero()[:, 0]
            if not len(rows):
                raise UserError(
                    f"all {len(train):,} training images are test images too; name other images by "
                    "--test_dataset of recipes/evaluate_encoder.py, or another data set"
                )
            self.in_both = int(found_in(test, train).sum())
            self._training_rows[dense] = rows
        return self._training_rows[dense]

    def annotated_rows(self, split: str, kind: str) -> tuple[list[int], list[Tensor]]:
        """The rows of `maps` whose mask or depth (`kind`) can be read, and these annotations.

        Of the training images these are rows of `training_rows`.
        """
        source = self.sources[split]
        kept = self.kept(split, dense=True)
        read_annotation = getattr(source.annotations, kind)
        candidates = self.training_rows(dense=True).tolist() if split == "train" else range(len(kept))
        rows, annotations, bad = [], [], []
        for row in candidates:
            try:
                annotations.append(read_annotation(kept[row]))
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
        check_share(
            self._bad_samples(split),
            len(self.indices[split]),
            self.max_bad_fraction,
            IMAGES_IN_WORDS[split],
        )

    def num_read(self, split: str) -> int:
        """How many images of a split were looked at and could be read, so far."""
        extracted = self._num_extracted(split)
        if extracted is not None:
            return extracted
        return len(self.indices[split]) - len(self.bad[split]) if split in self._looked_at else 0

    def what_was_read(self) -> dict[str, Any]:
        """What is known of the images so far, in types of JSON: for `take_over` in another process,
        which need not look again."""
        read = {}
        for split in self.indices:
            count = self._num_extracted(split)
            if count is not None:
                read[split] = count
        return {"read": read, "looked_at": sorted(self._looked_at), "bad": self.bad, "in_both": self.in_both}

    def take_over(self, known: dict[str, Any]) -> None:
        """Go on from `what_was_read` of the same encoder on the same images."""
        self._read_before |= known["read"]
        self._looked_at |= set(known["looked_at"])
        if self.in_both is None:
            self.in_both = known["in_both"]
        for split, bad in known["bad"].items():
            self.bad[split] |= bad

    @property
    def used_in_words(self) -> str:
        """What was read, what could not be read, and what was left out because it is in both
        parts."""
        read = [split for split in SPLIT_NAMES if self.num_read(split)]
        words = " and ".join(f"{self.num_read(split):,} {IMAGES_IN_WORDS[split]}" for split in read)
        for split in SPLIT_NAMES:
            if self.bad[split]:
                named = in_words(self._bad_samples(split))
                words += f"; left out of the {IMAGES_IN_WORDS[split]}, because they cannot be read: {named}"
        if self.in_both:
            words += (
                f"; {self.in_both:,} of {self.num_read('test'):,} test images are among the training images, "
                "which tasks with a training part leave out of it"
            )
        return words

    def labels(self, split: str) -> Tensor:
        """`[n]` labels of the rows of `vectors`."""
        self._extract_vectors(split)
        source = self.sources[split]
        if source.labels is None:
            raise UserError(
                f"{source.description} has no labels; name a data set with labels, or other tasks"
            )
        return torch.tensor(source.labels)[self.kept(split)]

    def marks(self, split: str) -> Tensor:
        """`[n, classes]` bool: which classes each row of `vectors` has, where an image may have
        several. Both splits have the same classes."""
        self._extract_vectors(split)
        num_classes = count_classes(list(self.sources.values()))
        rows = self.kept(split)
        marks = torch.zeros(len(rows), num_classes, dtype=torch.bool)
        for row, index in enumerate(rows):
            marks[row, self.sources[split].multi_labels[index]] = True
        return marks

    def _bad_samples(self, split: str) -> list[UnreadableSample]:
        return [UnreadableSample(name, reason) for name, reason in self.bad[split].items()]

    def _num_extracted(self, split: str) -> int | None:
        """How many images of a split have features, here or in the process whose knowledge was
        taken over; None without any."""
        for (name, _), stored in self._stored.items():
            if name == split:
                return len(stored.kept)
        return self._read_before.get(split)

    def _extract_vectors(self, split: str) -> StoredFeatures:
        return self._extract(
            split,
            vector_features,
            name="vectors",
            transform=self.encoder.transform,
            image_bytes=vector_bytes(self.encoder),
        )

    def _extract(
        self, split: str, compute: Compute, name: str, transform: ImageTransform, image_bytes: int
    ) -> StoredFeatures:
        if (split, name) not in self._stored:
            source = self.sources[split]
            stored = cached_features(
                self.encoder,
                source,
                compute,
                name,
                self.cache_dir,
                transform=transform,
                indices=self.indices[split],
                image_bytes=image_bytes,
                **self._reading,
            )
            self._stored[split, name] = stored
            self.note_unreadable(split, stored.unreadable_samples(source))
        return self._stored[split, name]

    def _stored_of_kind(self, split: str, dense: bool) -> StoredFeatures:
        """The vectors of a split, or any maps of it: those of all layers are of the same images."""
        for (name, kind), stored in self._stored.items():
            if name == split and kind.startswith("maps") == dense:
                return stored
        raise AssertionError(f"no features of {split} have been extracted")

    def _draw(self, split: str, limit: int | None) -> list[int]:
        count = len(self.sources[split])
        if limit is None or limit >= count:
            return list(range(count))
        return sorted(draw_subset(count, limit, self.seed, "evaluation", split))


def count_classes(sources: Sequence[ImageSource]) -> int:
    """How many classes the images of the sources may have, where an image may have several.

    That is the number of names of the first source, or else one more than the greatest number.
    Raises UserError for a source whose images have no lists of classes.
    """
    greatest = -1
    for source in sources:
        if source.multi_labels is None:
            raise UserError(
                f"{source.description} has no lists of classes; name a column of lists by ?label=COLUMN"
            )
        for numbers in source.multi_labels:
            greatest = max(greatest, *numbers) if numbers else greatest
    names = sources[0].class_names
    return len(names) if names else greatest + 1


def dense_size_for(encoder: Encoder, source: ImageSource) -> tuple[int, int]:
    """The size of the first readable image, rounded to the encoder's stride, made smaller where it
    has more than 2,048 patches.

    An encoder that takes no other size than its own gets its own.
    """
    height, width = _first_size(source)
    most_pixels = MOST_PATCHES * encoder.stride**2
    scale = min(1.0, (most_pixels / (height * width)) ** 0.5)
    rounded_height = max(round(height * scale / encoder.stride), 1) * encoder.stride
    rounded_width = max(round(width * scale / encoder.stride), 1) * encoder.stride
    if encoder.size_problem(rounded_height, rounded_width):
        return encoder.transform.size
    return rounded_height, rounded_width


def _first_size(source: ImageSource) -> tuple[int, int]:
    for index in range(len(source)):
        try:
            return tuple(source[index].image.shape[-2:])
        except UnreadableImage:
            continue
    raise UserError(f"no image of {source.description} can be read; name other images")
