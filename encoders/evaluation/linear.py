"""Linear classification of frozen features: the published grid of heads trained at once, and
logistic regression."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vision_core.errors import UserError
from vision_core.randomness import numpy_generator, seed_of

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
NUM_BLOCKS_READ = (1, 4)
BATCH = 128
REFERENCE_BATCH = 256
MOMENTUM = 0.9
HELD_OUT = 0.1
CS = tuple(10 ** (-6 + 11 * step / 44) for step in range(45))
PATIENCE = 5  # values of C in a row that may be worse than the best


@dataclass(frozen=True)
class LinearResult:
    """The accuracy of the best linear classifier.

    Attributes:
        top1, top5: percent on the test images.
        chosen: the settings that were best on the held-out images.
        table: the held-out accuracy of every setting.
    """

    top1: float
    top5: float
    chosen: dict[str, Any]
    table: list[dict[str, Any]]


@dataclass(frozen=True)
class HeadGroup:
    """The heads that read the same vector, one for each learning rate: the CLS tokens of `blocks`
    last blocks, with the mean of the patches or without it."""

    blocks: int
    with_patch_mean: bool

    def inputs(self, cls_blocks: Sequence[Tensor], patch_mean: Tensor) -> Tensor:
        """`[n, width]`: CLS of the last blocks, the earliest first, then the mean of the
        patches."""
        vectors = list(cls_blocks[-self.blocks :])
        if self.with_patch_mean:
            vectors.append(patch_mean)
        return torch.cat(vectors, dim=1)


class LinearHead(NamedTuple):
    """A trained head: its settings, the vector that it reads, its weight `[1, D, classes]` and bias
    `[1, classes]`."""

    setting: dict[str, Any]
    group: HeadGroup
    weight: Tensor
    bias: Tensor

    def scores(self, cls_blocks: Sequence[Tensor], patch_mean: Tensor) -> Tensor:
        """`[n, classes]` on the CPU."""
        inputs = self.group.inputs(cls_blocks, patch_mean).to(self.weight.device)
        return head_scores(inputs, self.weight, self.bias)[0]


def head_groups(num_blocks: int) -> list[HeadGroup]:
    """The published groups whose CLS tokens are among those of `num_blocks` blocks."""
    groups = []
    for blocks in NUM_BLOCKS_READ:
        if blocks <= num_blocks:
            groups += [HeadGroup(blocks, False), HeadGroup(blocks, True)]
    return groups


def linear_probe(
    cls_blocks: Sequence[Tensor],
    patch_mean: Tensor,
    labels: Tensor,
    test_cls_blocks: Sequence[Tensor],
    test_patch_mean: Tensor,
    test_labels: Tensor,
    *,
    iterations: int = 12_500,
    seed: int = 0,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> LinearResult:
    """DINOv2's linear evaluation on features that were computed once (section B.3;
    dinov2/eval/linear.py).

    13 learning rates x {1, 4} last blocks x {CLS, CLS beside the mean of the patches} = 52 heads,
    trained at once: SGD with momentum 0.9, no weight decay, batches of 128, learning rate times 128
    / 256 and by a cosine to 0, weights from N(0, 0.01^2). Published are 12,500 iterations on random
    crops; here every image has one view. A tenth of each class is held out to choose the head.

    Args:
        cls_blocks: CLS tokens `[n, D]` of the last blocks behind the final norm, earliest first;
            with fewer than 4, only heads on the last one are trained.
        patch_mean: `[n, D]` of the last block.
        labels: `[n]`.
        test_cls_blocks, test_patch_mean, test_labels: the same of the test images.

    Raises UserError for a single class, classes of one image, features that are not finite, or
    lengths that differ.
    """
    _check(labels, *cls_blocks, patch_mean)
    check_features(test_labels, *test_cls_blocks, test_patch_mean)
    num_classes = int(max(labels.max(), test_labels.max())) + 1
    kept, held_out = hold_out(labels, seed)

    def held_out_top1(scores: Tensor) -> float:
        return _top1_and_top5(scores, labels[held_out])[0]

    head, table = best_head(
        cls_blocks,
        patch_mean,
        labels[kept],
        num_classes,
        rows=(kept, held_out),
        measure=held_out_top1,
        figure_name="held_out_top1",
        iterations=iterations,
        seed=seed,
        progress=progress,
        device=device,
        error_of=one_class_error,
    )
    top1, top5 = _top1_and_top5(head.scores(test_cls_blocks, test_patch_mean), test_labels)
    return LinearResult(top1, top5, head.setting, table)


def one_class_error(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient `[heads, B, classes]` of the cross-entropy at `logits`, for class numbers `[B]`:
    softmax - one-hot."""
    error = logits.softmax(-1)
    error[:, torch.arange(len(labels), device=labels.device), labels] -= 1
    return error


def best_head(
    cls_blocks: Sequence[Tensor],
    patch_mean: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    rows: tuple[Tensor, Tensor],
    measure: Callable[[Tensor], float],
    figure_name: str,
    iterations: int,
    seed: int,
    progress: bool,
    device: torch.device | str,
    error_of: Callable[[Tensor, Tensor], Tensor],
) -> tuple[LinearHead, list[dict[str, Any]]]:
    """Train the published grid of heads; the one that is best on held-out images, and the settings
    of all with their figures.

    Args:
        labels: of the images that are trained on.
        rows: of the images to train on, and of those that are held out.
        measure: gives the figure of a head from its scores `[n, classes]` of the held-out images.
        figure_name: under which it goes into the table.
        error_of: see `train_heads`.
    """
    kept, held_out = rows
    labels = labels.to(device)
    best: LinearHead | None = None
    table = []
    for group in tqdm(head_groups(len(cls_blocks)), "linear heads", disable=not progress):
        inputs = group.inputs(cls_blocks, patch_mean).to(device)
        group_seed = seed_of(seed, group.blocks, group.with_patch_mean)
        weight, bias = train_heads(
            inputs[kept], labels, num_classes, iterations, group_seed, error_of=error_of
        )
        for number, scores in enumerate(head_scores(inputs[held_out], weight, bias)):
            setting = {
                "learning_rate": LEARNING_RATES[number],
                "blocks": group.blocks,
                "with_patch_mean": group.with_patch_mean,
                figure_name: measure(scores),
            }
            table.append(setting)
            if best is None or setting[figure_name] > best.setting[figure_name]:
                best = LinearHead(setting, group, weight[number : number + 1], bias[number : number + 1])
    return best, table


def train_heads(
    inputs: Tensor,
    labels: Tensor,
    num_classes: int,
    iterations: int,
    seed: int,
    rates: Sequence[float] = LEARNING_RATES,
    error_of: Callable[[Tensor, Tensor], Tensor] = one_class_error,
) -> tuple[Tensor, Tensor]:
    """Weights `[heads, D, classes]` and biases `[heads, classes]`, a head for each rate, all
    trained on the same batches of `inputs [n, D]`.

    For one head, with g the gradient of the batch's mean loss at w:

        v <- 0.9 v + g
        w <- w - rate * (128 / 256) * (1 + cos(pi t / T)) / 2 * v

    `error_of(logits, labels)` is the gradient of each image's loss at its logits, so autograd is
    not needed. Rows of `labels` belong to those of `inputs`.
    """
    generator = torch.Generator().manual_seed(seed)
    first_weight = 0.01 * torch.randn(inputs.shape[1], num_classes, generator=generator)
    weight = first_weight.to(inputs.device).repeat(len(rates), 1, 1)
    bias = torch.zeros(len(rates), num_classes, device=inputs.device)
    weight_velocity = torch.zeros_like(weight)
    bias_velocity = torch.zeros_like(bias)
    scaled_rates = torch.tensor(rates, device=inputs.device) * BATCH / REFERENCE_BATCH
    for step, batch in enumerate(_batches(len(inputs), iterations, seed)):
        x = inputs[batch]
        y = labels[batch]
        logits = torch.einsum("bd,hdc->hbc", x, weight) + bias[:, None]
        error = error_of(logits, y) / len(y)
        rate = scaled_rates * (1 + math.cos(math.pi * step / iterations)) / 2
        _sgd_step(weight, weight_velocity, torch.einsum("bd,hbc->hdc", x, error), rate.view(-1, 1, 1))
        _sgd_step(bias, bias_velocity, error.sum(1), rate.view(-1, 1))
    return weight, bias


def _sgd_step(value: Tensor, velocity: Tensor, gradient: Tensor, rate: Tensor) -> None:
    """Change `value` and `velocity` in place by a step of SGD with momentum."""
    velocity.mul_(MOMENTUM).add_(gradient)
    value.sub_(velocity * rate)


def logistic_regression(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    cs: Sequence[float] = CS,
    seed: int = 0,
    progress: bool = False,
) -> LinearResult:
    """Multinomial logistic regression by L-BFGS (dinov2/eval/log_regression.py): C chosen on a
    held-out tenth, then fitted to all of `features [n, D]`.

    C, the weight of the data against the L2 norm of the weights, goes through 45 values from 1e-6
    to 1e5; each starts where the one before ended, and the search stops when five in a row have not
    been better. Published are 1,000 iterations in float64 of cuML; this is scikit-learn's, in
    float64.
    """
    from sklearn.linear_model import LogisticRegression

    _check(labels, features)
    check_features(test_labels, test_features)
    kept, held_out = (rows.numpy() for rows in hold_out(labels, seed))
    x = features.double().numpy()
    y = labels.numpy()
    search = LogisticRegression(max_iter=1000, warm_start=True)
    table = []
    for c in tqdm(cs, "logistic regression", disable=not progress):
        search.set_params(C=c).fit(x[kept], y[kept])
        table.append({"C": c, "held_out_top1": 100 * search.score(x[held_out], y[held_out])})
        best = max(table, key=lambda row: row["held_out_top1"])
        if len(table) - table.index(best) > PATIENCE:
            break
    model = LogisticRegression(C=best["C"], max_iter=1000).fit(x, y)
    log_probabilities = torch.from_numpy(model.predict_log_proba(test_features.double().numpy()))
    num_classes = int(max(labels.max(), test_labels.max())) + 1
    scores = torch.full((len(test_features), num_classes), -torch.inf, dtype=torch.double)
    scores[:, torch.from_numpy(model.classes_)] = log_probabilities
    top1, top5 = _top1_and_top5(scores, test_labels)
    return LinearResult(top1, top5, {"C": best["C"]}, table)


def fit_logistic(features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor) -> float:
    """Top-1 in percent of scikit-learn's logistic regression with C = 1 on features of length 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import normalize

    model = LogisticRegression(max_iter=1000).fit(normalize(features.double().numpy()), labels.numpy())
    return 100 * model.score(normalize(test_features.double().numpy()), test_labels.numpy())


def hold_out(labels: Tensor, seed: int, share: float = HELD_OUT) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to choose by: `share` of each class, at least one image, by `seed`.
    Raises UserError for a class of one image."""
    kept, held_out = [], []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < 2:
            raise UserError(
                f"linear: class {label} has one training image, so none can be held out to choose by; "
                "give two or more, or leave it out"
            )
        order = numpy_generator(seed, "held out", label).permutation(len(rows))
        rows = rows[torch.from_numpy(order)]
        count = max(1, round(share * len(rows)))
        held_out.append(rows[:count])
        kept.append(rows[count:])
    return torch.cat(kept).sort().values, torch.cat(held_out).sort().values


def _batches(num_rows: int, iterations: int, seed: int) -> Iterator[Tensor]:
    """Rows of each iteration: epochs, each in its own order, joined end to end. Where there are
    fewer rows than a batch has, a batch is an epoch."""
    order = torch.empty(0, dtype=torch.long)
    epoch = 0
    for _ in range(iterations):
        while len(order) < min(BATCH, num_rows):
            of_epoch = numpy_generator(seed, "batches", epoch).permutation(num_rows)
            order = torch.cat([order, torch.from_numpy(of_epoch)])
            epoch += 1
        yield order[:BATCH]
        order = order[BATCH:]


def head_scores(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`[heads, n, classes]` on the CPU."""
    return (torch.einsum("bd,hdc->hbc", inputs, weight) + bias[:, None]).cpu()


def _top1_and_top5(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Percent of the `labels [n]` that have the greatest of `scores [n, classes]`, and one of the
    five greatest."""
    hits = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return 100 * hits[:, 0].double().mean().item(), 100 * hits.any(1).double().mean().item()


def _check(labels: Tensor, *features: Tensor) -> None:
    check_features(labels, *features)
    if len(labels.unique()) < 2:
        raise UserError(
            "linear: all images have one label, so there is nothing to tell apart; "
            "name data with two classes or more"
        )


def check_features(labels: Tensor, *features: Tensor) -> None:
    """Raise UserError for features that are not finite, or not as many as the labels."""
    for each in features:
        if len(each) != len(labels):
            raise UserError(
                f"linear: {len(each)} features and {len(labels)} labels; give one label per image"
            )
        if not each.isfinite().all():
            raise UserError(
                "linear: some features are not finite; extract them in float32, or from another checkpoint"
            )
