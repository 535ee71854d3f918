"""One encoder on one data set: its frozen features of both splits, computed when a task first asks for them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from encoders.base import Encoder
from encoders.evaluation.feature_cache import StoredFeatures, StoredRows, cached_features
from encoders.evaluation.features import draw_subset, map_features, vector_features
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError
from vision_core.images.sources import ImageSource
from vision_core.images.splits import Splits
from vision_core.images.unreadable import UnreadableImage

MOST_PATCHES = 2048  # of an image in the dense tasks, unless a size is given
BYTES_IN_MEMORY = 2**32


class FrozenFeatures:
    """Features of `splits` by `encoder`, from a cache.

    Args:
        limits: the greatest number of training and of test images, drawn by `seed`; None for all.
        dense_size: (height, width) to which images are resized, without cropping, in the dense tasks; None for `dense_size_for`.
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
    ) -> None:
        self.encoder, self.seed, self.progress = encoder, seed, progress
        self.sources: dict[str, ImageSource] = {"train": splits.train, "test": splits.test}
        self.indices = {name: self._draw(name, limit) for name, limit in zip(("train", "test"), limits, strict=True)}
        self.cache_dir, self.batch_size, self.num_workers = cache_dir, batch_size, num_workers
        self._dense_size = dense_size
        self._stored: dict[tuple, StoredFeatures] = {}

    @property
    def dense_transform(self) -> ImageTransform:
        """The encoder's preprocessing at the dense size, the whole image, whatever its aspect ratio."""
        if self._dense_size is None:
            self._dense_size = dense_size_for(self.encoder, self.sources["test"])
        self.encoder.grid(*self._dense_size)
        return self.encoder.transform.resized(self._dense_size, "squash")

    def vectors(self, split: str) -> dict[str, Tensor]:
        """The vectors of `vector_features`, each `[n, width]`."""
        stored = self._extract(split, vector_features, "vectors", self.encoder.transform)
        return {name: stored.load(name) for name in stored.names}

    @property
    def main_vector_name(self) -> str:
        """The published image vector, or the mean of the patches where the model has none."""
        return "patch_mean" if self.encoder.pooled_width is None else "pooled"

    def maps(self, split: str, layers: tuple[int, ...]) -> dict[str, Tensor | StoredRows]:
        """The maps and CLS tokens of `map_features`, on disk where they would fill the memory."""
        name = f"maps {' '.join(map(str, layers))}"
        stored = self._extract(split, lambda encoder, pixels: map_features(encoder, pixels, layers), name, self.dense_transform)
        rows = {name: stored.rows(name) for name in stored.names}
        fits = 2 * sum(torch.Size(each.shape).numel() for each in rows.values()) < BYTES_IN_MEMORY
        return {name: stored.load(name) if fits else rows[name] for name in stored.names}

    def kept(self, split: str, dense: bool = False) -> list[int]:
        """Which images of the source the rows stand for."""
        kinds = [stored for (name, kind), stored in self._stored.items() if name == split and kind.startswith("maps") == dense]
        return kinds[0].kept.tolist()

    def labels(self, split: str) -> Tensor:
        """`[n]` labels of the rows of `vectors`."""
        self._extract(split, vector_features, "vectors", self.encoder.transform)
        source = self.sources[split]
        if source.labels is None:
            raise UserError(f"{source.description} has no labels; name a data set with labels, or other tasks")
        return torch.tensor(source.labels)[self.kept(split)]

    def marks(self, split: str) -> Tensor:
        """`[n, classes]` bool: which classes each row of `vectors` has, where an image may have several. Both splits have the same classes."""
        self._extract(split, vector_features, "vectors", self.encoder.transform)
        for source in self.sources.values():
            if source.multi_labels is None:
                raise UserError(f"{source.description} has no lists of classes; name a column of lists by ?label=COLUMN")
        names = self.sources["train"].class_names
        greatest = max((number for source in self.sources.values() for row in source.multi_labels for number in row), default=-1)
        rows = self.kept(split)
        marks = torch.zeros(len(rows), len(names) if names else greatest + 1, dtype=torch.bool)
        for row, index in enumerate(rows):
            marks[row, self.sources[split].multi_labels[index]] = True
        return marks

    def _extract(self, split: str, compute, name: str, transform: ImageTransform) -> StoredFeatures:
        if (split, name) not in self._stored:
            self._stored[split, name] = cached_features(
                self.encoder, self.sources[split], compute, name, self.cache_dir, transform=transform, indices=self.indices[split],
                batch_size=self.batch_size, num_workers=self.num_workers, progress=self.progress,
            )  # fmt: skip
        return self._stored[split, name]

    def _draw(self, split: str, limit: int | None) -> list[int]:
        count = len(self.sources[split])
        return list(range(count)) if limit is None or limit >= count else sorted(draw_subset(count, limit, self.seed, "evaluation", split))


def dense_size_for(encoder: Encoder, source: ImageSource) -> tuple[int, int]:
    """The size of the first readable image, rounded to the encoder's stride, made smaller where it has more than 2,048 patches.

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
