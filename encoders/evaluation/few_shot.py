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

SHOTS = (1, 2, 5, 10)
NUM_DRAWS = 5
MOST_NEIGHBOURS = 20


def few_shot(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    shots: Sequence[int] = SHOTS,
    tries: int = NUM_DRAWS,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, dict[int, tuple[float, float]]]:
    """{"knn" or "logistic": {images of a class: (mean, standard deviation) of top-1 in percent over
    `tries` draws}}.

    k-NN looks at all the images that were drawn, at most 20 (dinov2/eval/knn.py's n_per_class and
    n_tries); logistic regression has C = 1 on features of length 1. Numbers of images that some
    class does not have are left out; UserError is raised where that leaves none.
    """
    possible = possible_shots(labels, shots)
    results: dict[str, dict[int, tuple[float, float]]] = {"knn": {}, "logistic": {}}
    for number in tqdm(possible, "few-shot", disable=not progress):
        scores: dict[str, list[float]] = {"knn": [], "logistic": []}
        for draw in range(tries):
            rows = draw_shots(labels, number, seed, draw)
            drawn = (features[rows], labels[rows], test_features, test_labels)
            scores["knn"].append(knn_accuracy(*drawn, k=min(MOST_NEIGHBOURS, len(rows))))
            scores["logistic"].append(fit_logistic(*drawn))
        for classifier, values in scores.items():
            figures = torch.tensor(values)
            results[classifier][number] = (figures.mean().item(), figures.std(correction=0).item())
    return results


def possible_shots(labels: Tensor, shots: Sequence[int]) -> list[int]:
    """The numbers of images that every class has. Raises UserError where that leaves none."""
    classes, counts = labels.unique(return_counts=True)
    count = int(counts.min())
    possible = [number for number in shots if number <= count]
    if not possible:
        smallest = int(classes[counts == count][0])
        raise UserError(
            f"few-shot: class {smallest} has {count} training images, "
            f"fewer than {min(shots)}; give more, or leave it out"
        )
    return possible


def draw_shots(labels: Tensor, number: int, seed: int, draw: int) -> Tensor:
    """Rows of `number` images of each class."""
    rows = []
    for label in labels.unique().tolist():
        of_class = (labels == label).nonzero()[:, 0]
        order = numpy_generator(seed, "shots", draw, label).permutation(len(of_class))
        rows.append(of_class[torch.from_numpy(order[:number])])
    return torch.cat(rows)
