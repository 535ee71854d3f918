"""A k-NN benchmark drawn once and held in memory, so that a run can be judged at intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from encoders.evaluation.baselines import colour_histogram, raw_pixels
from encoders.evaluation.features import draw_subset, extract_features
from encoders.evaluation.knn import knn_accuracy
from encoders.preprocess import centre_view, margin_for, normalise
from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.sources import ImageSource


class LabelledImages(NamedTuple):
    """`[n, C, H, W]` uint8 or float32 with `[n]` labels; `unreadable` were left out."""

    images: Tensor
    labels: Tensor
    unreadable: int


class KnnBenchmark:
    """k-NN of queries in a bank, both drawn by `seed`; from one and the same source they are disjoint.

    Args:
        size: (height, width) at which images are judged.
        mean, std: the encoder's normalisation.
    """

    def __init__(
        self,
        bank_source: ImageSource,
        query_source: ImageSource,
        *,
        bank_size: int,
        num_queries: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        k: int = 20,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        for source in (bank_source, query_source):
            if source.labels is None:
                raise UserError(f"k-NN needs labels, and {source.description} has none; name labelled images or eval_dataset none")
        queries = draw_subset(len(query_source), num_queries, seed, "knn queries")
        if bank_source is query_source:
            taken = set(queries)
            order = draw_subset(len(bank_source), len(bank_source), seed, "knn bank")
            bank = [index for index in order if index not in taken][:bank_size]
            if not bank:
                raise UserError(f"k-NN: {num_queries} queries leave nothing of {bank_source.description} for the bank; lower them")
        else:
            bank = draw_subset(len(bank_source), bank_size, seed, "knn bank")
        self.bank = load_images(bank_source, bank, size, progress)
        self.queries = load_images(query_source, queries, size, progress)
        self.mean, self.std, self.k = mean, std, k
        classes = len(set(self.bank.labels.tolist()))
        self.description = f"bank {len(self.bank.labels):,}, queries {len(self.queries.labels):,}, {classes} classes, k = {k}"

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy in percent of the model's CLS token and of the mean of its patch tokens, both after the final norm."""
        bank, queries = (extract_features(model, normalise(part.images, self.mean, self.std)) for part in (self.bank, self.queries))
        return {name: self._accuracy(bank[name], queries[name]) for name in bank}

    def evaluate_baselines(self) -> dict[str, float]:
        """Accuracy in percent of raw pixels and of the colour histogram."""
        accuracies = {}
        for name, feature in (("raw_pixels", raw_pixels), ("colour_histogram", colour_histogram)):
            bank, queries = (feature(normalise(part.images, [0.0], [1.0])) for part in (self.bank, self.queries))
            accuracies[name] = self._accuracy(bank, queries)
        return accuracies

    def _accuracy(self, bank: Tensor, queries: Tensor) -> float:
        return knn_accuracy(bank, self.bank.labels, queries, self.queries.labels, self.k)


def load_images(source: ImageSource, indices: list[int], size: tuple[int, int], progress: bool = False) -> LabelledImages:
    """The centre views of `source[indices]`; unreadable images are left out and counted."""
    images, labels, unreadable = [], [], 0
    for index in tqdm(indices, desc="reading images to judge by", disable=not progress, leave=False):
        try:
            record = source[index]
        except UnreadableImage:
            unreadable += 1
            continue
        images.append(centre_view(record.image, size, margin_for(record.image, size)))
        labels.append(record.label)
    if not images:
        raise UserError(f"none of {len(indices)} images of {source.description} could be read")
    return LabelledImages(torch.stack(images), torch.tensor(labels), unreadable)
