"""Several classes of each image from frozen features: a linear probe with sigmoids, weighted k-NN,
and their mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from encoders.evaluation.knn import PUBLISHED_KS, nearest_neighbours
from encoders.evaluation.linear import (
    HELD_OUT,
    LEARNING_RATES,
    check_features,
    head_groups,
    head_scores,
    train_heads,
)
from vision_core.errors import UserError
from vision_core.randomness import numpy_generator, seed_of


@dataclass(frozen=True)
class MultiLabelResult:
    """mean_ap: percent, the mean over the classes that a test image has. class_ap: percent of each
    class, NaN where none has it.

    chosen: the settings that were best on the held-out images. table: the held-out mAP of every
    setting.
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
    return torch.stack(
        [_average_precision(scores[:, number], marks[:, number]) for number in range(marks.shape[1])]
    )


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
        cls_blocks, patch_mean: as for `linear_probe`. marks: `[n, classes]` bool, what each image
            has; of the test images likewise.

    Raises UserError where fewer than two images are there to learn from or no class is among the
    test images.
    """
    check_features(marks, *cls_blocks, patch_mean)
    check_features(test_marks, *test_cls_blocks, test_patch_mean)
    kept, held_out = _hold_out(marks, test_marks, seed)
    best, table = None, []
    for group in tqdm(head_groups(len(cls_blocks)), "linear heads", disable=not progress):
        inputs, wanted = group.inputs(cls_blocks, patch_mean).to(device), marks.float().to(device)
        seed_of_group = seed_of(seed, group.blocks, group.with_patch_mean)
        weights = train_heads(
            inputs[kept],
            wanted[kept],
            marks.shape[1],
            iterations,
            seed_of_group,
            error_of=several_classes_error,
        )
        for number, scores in enumerate(head_scores(inputs[held_out], *weights)):
            figure = mean_average_precision(scores, marks[held_out])
            setting = {
                "learning_rate": LEARNING_RATES[number],
                "blocks": group.blocks,
                "with_patch_mean": group.with_patch_mean,
            }
            table.append(setting | {"held_out_mAP": figure})
            if best is None or figure > best[0]["held_out_mAP"]:
                best = (table[-1], group, [each[number : number + 1] for each in weights])
    chosen, group, weights = best
    scores = head_scores(group.inputs(test_cls_blocks, test_patch_mean).to(device), *weights)[0]
    class_ap = 100 * average_precision(scores, test_marks)
    return MultiLabelResult(class_ap.nanmean().item(), class_ap.tolist(), chosen, table)


def several_classes_error(logits: Tensor, marks: Tensor) -> Tensor:
    """The gradient `[heads, b, classes]` of the binary cross-entropies' sum at `logits`, for marks
    `[b, classes]`: sigmoid - marks."""
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
    possible = [k for k in ks if k <= len(bank)] or [len(bank)]
    similarity, rows = nearest_neighbours(bank, torch.arange(len(bank)), queries, max(possible))
    weights = torch.exp((similarity - similarity[:, :1]) / temperature)
    figures = {}
    for k in possible:
        votes = torch.stack(
            [near[:k] @ marks[row[:k]].to(near.dtype) for near, row in zip(weights, rows, strict=True)]
        )
        figures[k] = mean_average_precision(votes / weights[:, :k].sum(1, keepdim=True), query_marks)
    return figures


def _average_precision(scores: Tensor, marks: Tensor) -> Tensor:
    if not marks.any():
        return torch.tensor(float("nan"), dtype=torch.double)
    order = scores.argsort(descending=True)
    ranked = scores[order]
    hits = marks[order].double().cumsum(0)
    is_last_of_score = torch.cat([ranked[1:] != ranked[:-1], torch.tensor([True])])
    hits, counts = hits[is_last_of_score], (is_last_of_score.nonzero()[:, 0] + 1).double()
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
            "multi_label: fewer than two training images have a class, so none can be held out to choose by; give more"
        )
    order = torch.from_numpy(numpy_generator(seed, "held out", "several classes").permutation(len(marks)))
    count = max(1, round(HELD_OUT * len(marks)))
    while not marks[order[:count]].any():
        count += 1
    return order[count:].sort().values, order[:count].sort().values
