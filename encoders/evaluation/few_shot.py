"""Few-shot classification: a handful of images of each class, drawn several times."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from encoders.evaluation.knn import knn_accuracy
from encoders.evaluation.linear import fit_logistic
from vision_core.errors import UserError
from vision_core.randomness import numpy_generator

SHOTS, TRIES = (1, 2, 5, 10), 5


def few_shot(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    shots: Sequence[int] = SHOTS,
    tries: int = TRIES,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, dict[int, tuple[float, float]]]:
    """{"knn" or "logistic": {images of a class: (mean, standard deviation) of top-1 in percent over
    `tries` draws}}.

    k-NN looks at all the images that were drawn, at most 20 (dinov2/eval/knn.py's n_per_class and
    n_tries); logistic regression has C = 1 on features of length 1. Numbers of images that some
    class does not have are left out; UserError where that leaves none.
    """
    smallest, count = min(((labels == label).sum().item(), label) for label in labels.unique().tolist())[::-1]
    possible = [number for number in shots if number <= count]
    if not possible:
        raise UserError(
            f"few-shot: class {smallest} has {count} training images, fewer than {min(shots)}; give more, or leave it out"
        )
    results: dict[str, dict[int, tuple[float, float]]] = {"knn": {}, "logistic": {}}
    for number in tqdm(possible, "few-shot", disable=not progress):
        scores = {"knn": [], "logistic": []}
        for draw in range(tries):
            rows = draw_shots(labels, number, seed, draw)
            bank, bank_labels = features[rows], labels[rows]
            scores["knn"].append(
                knn_accuracy(bank, bank_labels, test_features, test_labels, min(20, len(rows)))
            )
            scores["logistic"].append(fit_logistic(bank, bank_labels, test_features, test_labels))
        for name, values in scores.items():
            values = torch.tensor(values)
            results[name][number] = (values.mean().item(), values.std(correction=0).item())
    return results


def draw_shots(labels: Tensor, number: int, seed: int, draw: int) -> Tensor:
    """Rows of `number` images of each class."""
    rows = []
    for label in labels.unique().tolist():
        own = (labels == label).nonzero()[:, 0]
        rows.append(
            own[torch.from_numpy(numpy_generator(seed, "shots", draw, label).permutation(len(own))[:number])]
        )
    return torch.cat(rows)
