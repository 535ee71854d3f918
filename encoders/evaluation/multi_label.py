"""Several classes of each image from frozen features: a linear probe with sigmoids, weighted k-NN,
and their mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encoders.evaluation.knn import PUBLISHED_KS, nearest_neighbours, possible_ks
from encoders.evaluation.linear import HELD_OUT, best_head, check_features
from vision_core.errors import UserError
from vision_core.randomness import numpy_generator


@dataclass(frozen=True)
class MultiLabelResult:
    """The average precision of the best linear head.

    Attributes:
        mean_ap: percent, the mean over the classes that a test image has.
        class_ap: percent of each class, NaN where no test image has it.
        chosen: the settings that were best on the held-out images.
        table: the held-out mAP of every setting.
    """

    mean_ap: float
    class_ap: list[float]
    chosen: dict[str, Any]
    table: list[dict[str, Any]]


def average_precision(scores: Tensor, marks: Tensor) -> Tensor:
    """Average precision `[classes]` of `scores [n, classes]` for `marks [n, classes]` (bool); NaN
    for a class without a mark.

    AP = sum over thresholds of (R_t - R_(t-1)) P_t, the precision P and recall R of the images
    whose score is at least the threshold; images of one score share it (scikit-learn's
    `average_precision_score`; no interpolation).
    """
    return torch.stack([_class_ap(*columns) for columns in zip(scores.T, marks.T, strict=True)])


def mean_average_precision(scores: Tensor, marks: Tensor) -> float:
    """Percent: the mean of `average_precision` over the classes with a mark."""
    return 100 * average_precision(scores, marks).nanmean().item()


def multi_label_probe(
    cls_blocks: Sequence[Tensor],
    patch_mean: Tensor,
    marks: Tensor,
    test_cls_blocks: Sequence[Tensor],
    test_patch_mean: Tensor,
    test_marks: Tensor,
    *,
    iterations: int = 12_500,
    seed: int = 0,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> MultiLabelResult:
    """`linear_probe`'s 52 heads with a sigmoid for each class: the loss of an image is the sum over
    classes of the binary cross-entropy.

    The head of the best mAP on a tenth of the training images, drawn by `seed`, is judged on the
    test images.

    Args:
        cls_blocks, patch_mean: as for `linear_probe`.
        marks: `[n, classes]` bool, the classes of each image.
        test_cls_blocks, test_patch_mean, test_marks: the same of the test images.

    Raises UserError where fewer than two images are there to learn from or no class is among the
    test images.
    """
    check_features(marks, *cls_blocks, patch_mean)
    check_features(test_marks, *test_cls_blocks, test_patch_mean)
    kept, held_out = _hold_out(marks, test_marks, seed)

    def held_out_map(scores: Tensor) -> float:
        return mean_average_precision(scores, marks[held_out])

    head, table = best_head(
        cls_blocks,
        patch_mean,
        marks[kept].float(),
        marks.shape[1],
        rows=(kept, held_out),
        measure=held_out_map,
        figure_name="held_out_mAP",
        iterations=iterations,
        seed=seed,
        progress=progress,
        device=device,
        error_of=several_classes_error,
    )
    class_ap = 100 * average_precision(head.scores(test_cls_blocks, test_patch_mean), test_marks)
    return MultiLabelResult(class_ap.nanmean().item(), class_ap.tolist(), head.setting, table)


def several_classes_error(logits: Tensor, marks: Tensor) -> Tensor:
    """The gradient `[heads, B, classes]` of the binary cross-entropies' sum at `logits`, for marks
    `[B, classes]`: sigmoid - marks."""
    return logits.sigmoid() - marks


def knn_mean_average_precision(
    bank: Tensor,
    marks: Tensor,
    queries: Tensor,
    query_marks: Tensor,
    ks: Sequence[int] = PUBLISHED_KS,
    temperature: float = 0.07,
) -> dict[int, float]:
    """{k: mAP in percent} of the share of each class among the k nearest of `bank [n, D]`, weighted
    by exp(cosine / temperature) as in `knn_predict`. Values of k above the bank's size are left
    out."""
    possible = possible_ks(ks, len(bank))
    similarity, rows = nearest_neighbours(bank, torch.arange(len(bank)), queries, max(possible))
    weights = torch.exp((similarity - similarity[:, :1]) / temperature)
    figures = {}
    for k in possible:
        shares = _shares_of_marks(weights[:, :k], marks, rows[:, :k])
        figures[k] = mean_average_precision(shares, query_marks)
    return figures


def _shares_of_marks(weights: Tensor, marks: Tensor, rows: Tensor) -> Tensor:
    """The share of each class among the neighbours `rows [m, k]` with `weights [m, k]`, `[m,
    classes]`."""
    votes = []
    for near, neighbours in zip(weights, rows, strict=True):
        votes.append(near @ marks[neighbours].to(near.dtype))
    return torch.stack(votes) / weights.sum(1, keepdim=True)


def _class_ap(scores: Tensor, marks: Tensor) -> Tensor:
    """The average precision of one class, from `scores [n]` and `marks [n]`."""
    if not marks.any():
        return torch.tensor(float("nan"), dtype=torch.double)
    order = scores.argsort(descending=True)
    ranked = scores[order]
    is_last_of_score = torch.cat([ranked[1:] != ranked[:-1], torch.tensor([True])])
    hits = marks[order].double().cumsum(0)[is_last_of_score]
    counts = (is_last_of_score.nonzero()[:, 0] + 1).double()
    gained = torch.diff(hits, prepend=hits.new_zeros(1))
    return (gained * hits / counts).sum() / hits[-1]


def _hold_out(marks: Tensor, test_marks: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to choose by: a tenth, and more where no class would be among
    them."""
    if not test_marks.any():
        raise UserError(
            "multi_label: no test image has a class, so there is nothing to judge; name other test images"
        )
    having = marks.any(1).nonzero()[:, 0]
    if len(having) < 2:
        raise UserError(
            "multi_label: fewer than two training images have a class, so none can be held out "
            "to choose by; give more"
        )
    order = torch.from_numpy(numpy_generator(seed, "held out", "several classes").permutation(len(marks)))
    count = max(1, round(HELD_OUT * len(marks)))
    while not marks[order[:count]].any():
        count += 1
    return order[count:].sort().values, order[:count].sort().values
