"""A k-NN benchmark drawn once and held in memory, so that a run can be judged at intervals."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from encoders.base import Encoder
from encoders.evaluation.baselines import channel_range, colour_histogram, raw_pixels, to_unit_range
from encoders.evaluation.features import draw_subset, extract_features
from encoders.evaluation.knn import knn_accuracy
from encoders.preprocess import ImageTransform, margin_for
from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.sources import ImageSource

BATCH = 128


class LabelledImages(NamedTuple):
    """`[n, C, H, W]` uint8 or float32 with `[n]` labels; `unreadable` were left out, `margin` is the largest used."""

    images: Tensor
    labels: Tensor
    unreadable: int
    margin: float


class KnnBenchmark:
    """k-NN of queries in a bank, both drawn by `seed`; from one and the same source they are disjoint.

    Args:
        transform: the size at which images are judged, the encoder's normalisation, how much is cut off around the centre.

    Attributes:
        bank, queries: the images, before normalisation.
        sizes: {"bank", "queries", "classes", "k", "unreadable"}.
        margin: the largest that an image was given: 1 where all were looked at whole.
        description: the same in words.
    """

    def __init__(
        self,
        bank_source: ImageSource,
        query_source: ImageSource,
        *,
        bank_size: int,
        num_queries: int,
        transform: ImageTransform,
        k: int = 20,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        bank, queries = draw_bank_and_queries(bank_source, query_source, bank_size, num_queries, seed)
        if not 1 <= k <= len(bank):
            raise UserError(f"k-NN: k={k} is not possible with a bank of {len(bank)}; give 1 to {len(bank)} or enlarge the bank")
        self.bank = load_images(bank_source, bank, transform, progress)
        self.queries = load_images(query_source, queries, transform, progress)
        self.transform, self.k = transform, k
        self.margin = max(self.bank.margin, self.queries.margin)
        self.sizes = {
            "bank": len(self.bank.labels),
            "queries": len(self.queries.labels),
            "classes": len(set(self.bank.labels.tolist())),
            "k": k,
            "unreadable": self.bank.unreadable + self.queries.unreadable,
        }

    @property
    def description(self) -> str:
        """The sizes in words."""
        sizes = self.sizes
        words = f"bank {sizes['bank']:,}, queries {sizes['queries']:,}, {sizes['classes']} classes, k = {sizes['k']}"
        return words + (f", {sizes['unreadable']} unreadable images left out" if sizes["unreadable"] else "")

    def evaluate(self, encoder: Encoder) -> dict[str, float]:
        """Accuracy in percent of the encoder's CLS token and of the mean of its patch tokens."""
        bank, queries = (extract_features(encoder, self._pixels(part)) for part in (self.bank, self.queries))
        return {name: self._accuracy(bank[name], queries[name]) for name in bank}

    def evaluate_baselines(self) -> dict[str, float]:
        """Accuracy in percent of raw pixels and of the colour histogram, both of images scaled to 0..1 by the bank's range."""
        low, high = channel_range(self.bank.images)
        accuracies = {}
        for name, feature in (("raw_pixels", raw_pixels), ("colour_histogram", colour_histogram)):
            bank, queries = (
                torch.cat([feature(to_unit_range(batch, low, high)) for batch in part.images.split(BATCH)])
                for part in (self.bank, self.queries)
            )
            accuracies[name] = self._accuracy(bank, queries)
        return accuracies

    def _pixels(self, part: LabelledImages) -> Iterator[Tensor]:
        return (self.transform.pixels(batch) for batch in part.images.split(BATCH))

    def _accuracy(self, bank: Tensor, queries: Tensor) -> float:
        return knn_accuracy(bank, self.bank.labels, queries, self.queries.labels, self.k)


def draw_bank_and_queries(
    bank_source: ImageSource, query_source: ImageSource, bank_size: int, num_queries: int, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of the bank and of the queries, a function of `seed`; disjoint where both sources are one object."""
    for source in (bank_source, query_source):
        if source.labels is None:
            raise UserError(
                f"k-NN needs labels, and {source.description} has none; name labelled images, or in pretraining --eval_dataset none"
            )
    queries = draw_subset(len(query_source), num_queries, seed, "knn queries")
    bank = draw_subset(len(bank_source), len(bank_source), seed, "knn bank")
    if bank_source is query_source:
        taken = set(queries)
        bank = [index for index in bank if index not in taken]
        if not bank:
            raise UserError(f"k-NN: {num_queries} queries leave nothing of {bank_source.description} for the bank; lower them")
    return bank[:bank_size], queries


def load_images(source: ImageSource, indices: list[int], transform: ImageTransform, progress: bool = False) -> LabelledImages:
    """The views of `source[indices]`; unreadable images are left out and counted."""
    images, labels, largest = None, [], 1.0
    for index in tqdm(indices, desc="reading images to judge by", disable=not progress, leave=False):
        try:
            record = source[index]
        except UnreadableImage:
            continue
        largest = max(largest, margin_for(record.image, transform.size, transform.margin))
        view = transform.view(record.image)
        if images is None:
            images = view.new_empty(len(indices), *view.shape)
        images[len(labels)] = view
        labels.append(record.label)
    if images is None:
        raise UserError(f"none of {len(indices)} images of {source.description} could be read; name other images")
    return LabelledImages(images[: len(labels)], torch.tensor(labels), len(indices) - len(labels), largest)
