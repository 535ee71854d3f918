"""Weighted k-nearest-neighbour classification of frozen features."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_core.errors import UserError

PUBLISHED_KS = (10, 20, 100, 200)
MOST_KEY_BITS = 62  # bits of an int64 that a key may use
# Bits to which similarities and votes are told apart: 1e-12, far above float64's noise and below
# float32's.
FINEST_BITS = 40
MOST_SIMILARITIES = 2**26  # held at a time


def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Labels `[m]` of `queries [m, D]` from `bank [n, D]` with `bank_labels [n]` (Wu et al. 2018,
    section 3.4; DINO, appendix F.1).

    The k bank features of greatest cosine similarity s vote for their labels with weight exp(s /
    temperature). Of equal similarities at the k-th place the one that comes first in the bank
    counts. Of classes with equal votes the one whose nearest neighbour is nearest wins, and of
    those the one with the lowest number. Similarities and votes are equal where they are to 12
    digits, in float64, so that neither the size of a chunk nor the device decides.

    For one query this is

        similarity = [sum(a * b for a, b in zip(unit(query), unit(row))) for row in bank]
        nearest = sorted(range(len(bank)), key=lambda index: (-round(similarity[index], 12), index))[:k]
        votes, best = {}, {}
        for index in nearest:
            label = bank_labels[index]
            votes[label] = votes.get(label, 0.0) + math.exp(similarity[index] / temperature)
            best[label] = max(best.get(label, -1.0), similarity[index])
        total = sum(votes.values())
        answer = min(votes, key=lambda label: (-round(votes[label] / total, 12), -round(best[label], 12), label))

    `chunk` queries at most are looked at together. Raises UserError where labels, k or features
    make this impossible.
    """
    similarity, neighbours = nearest_neighbours(bank, bank_labels, queries, k, chunk)
    num_classes = int(bank_labels.max()) + 1
    ranked = _ranked_classes(similarity, neighbours, num_classes, k, temperature, chunk)
    return torch.cat([classes[:, 0] for classes in ranked])


@torch.no_grad()
def nearest_neighbours(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Cosine similarity `[m, k]`, float64, falling, and labels `[m, k]` of the k nearest of `bank
    [n, D]` to each of `queries [m, D]`.

    Equal similarities keep the order of the bank: a neighbour's place is part of the number by
    which neighbours are compared.
    """
    _check(bank, bank_labels, queries, k)
    bank = F.normalize(bank.double(), dim=-1)
    place_bits = math.ceil(math.log2(len(bank) + 1))
    scale = 2 ** min(FINEST_BITS, MOST_KEY_BITS - place_bits)
    places = torch.arange(len(bank), device=bank.device)
    similarities, labels = [], []
    chunk = max(min(chunk, MOST_SIMILARITIES // len(bank)), 1)
    for part in queries.split(chunk):
        steps = (F.normalize(part.double(), dim=-1) @ bank.T).mul_(scale).round_().long()
        keys = steps.bitwise_left_shift_(place_bits).add_(len(bank) - places)
        best = keys.topk(k, dim=1).values
        nearest = len(bank) - (best & (2**place_bits - 1))
        similarities.append((best >> place_bits).double() / scale)
        labels.append(bank_labels[nearest])
    return torch.cat(similarities), torch.cat(labels)


def knn_accuracies(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    ks: Sequence[int] = PUBLISHED_KS,
    temperature: float = 0.07,
) -> dict[int, dict[str, float]]:
    """{k: {"top1", "top5"}} in percent by the votes of `knn_predict`, the neighbours being looked
    up once.

    Values of k above the bank's size are left out. Raises UserError where none is left, there is a
    single class, or as `knn_predict`.
    """
    _check_lengths(queries, query_labels)
    _check_classes(bank_labels)
    possible = possible_ks(ks, len(bank))
    similarity, neighbours = nearest_neighbours(bank, bank_labels, queries, max(possible))
    num_classes = int(bank_labels.max()) + 1
    accuracies = {}
    for k in possible:
        ranked = _ranked_classes(similarity, neighbours, num_classes, k, temperature)
        accuracies[k] = _top1_and_top5(torch.cat(list(ranked)), query_labels)
    return accuracies


def possible_ks(ks: Sequence[int], bank_size: int) -> list[int]:
    """The values of k that a bank has neighbours for; where none is left, all of the bank."""
    return [k for k in ks if k <= bank_size] or [bank_size]


def _ranked_classes(
    similarity: Tensor, neighbours: Tensor, num_classes: int, k: int, temperature: float, chunk: int = 1024
) -> Iterator[Tensor]:
    """The five first classes `[chunk, 5]` by the first k neighbours (or as many as there are), -1
    for one without a vote; chunk after chunk.

    A class's place is the order of one number: its share of the votes, then how near its nearest
    neighbour is, then its own number.
    """
    tie_size = (k + 1) * num_classes
    scale = 2 ** min(FINEST_BITS, MOST_KEY_BITS - math.ceil(math.log2(tie_size + 1)))
    reversed_numbers = torch.arange(num_classes - 1, -1, -1, device=similarity.device)
    for near, labels in zip(similarity[:, :k].split(chunk), neighbours[:, :k].split(chunk), strict=True):
        shares = (_vote_shares(near, labels, num_classes, temperature) * scale).round().long()
        nearest = _nearness_of_classes(near, labels, num_classes, k)
        keys = shares * tie_size + nearest * num_classes + reversed_numbers
        best = keys.topk(min(5, num_classes), dim=1)
        yield best.indices.masked_fill(nearest.gather(1, best.indices) == 0, -1)


def _vote_shares(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Each class's share of the votes of `[m, k]` neighbours, `[m, classes]`."""
    # subtracting the best similarity changes no vote's share and keeps exp in range
    weights = torch.exp((similarity - similarity[:, :1]) / temperature)
    votes = similarity.new_zeros(len(similarity), num_classes).scatter_add_(1, labels, weights)
    return votes / weights.sum(1, keepdim=True)


def _nearness_of_classes(similarity: Tensor, labels: Tensor, num_classes: int, k: int) -> Tensor:
    """How near the nearest neighbour of each class is, `[m, classes]`: k for the nearest distance,
    1 less for each greater one, 0 for a class without a neighbour."""
    farther = (similarity[:, 1:] < similarity[:, :-1]).long().cumsum(1)
    nearness = k - F.pad(farther, (1, 0))
    nearest = torch.zeros(len(similarity), num_classes, dtype=torch.long, device=similarity.device)
    return nearest.scatter_reduce_(1, labels, nearness, "amax")


def _top1_and_top5(ranked: Tensor, labels: Tensor) -> dict[str, float]:
    """Percent of the `labels [m]` that are the first, and any, of `ranked [m, 5]`."""
    hits = ranked == labels[:, None]
    return {"top1": 100 * hits[:, 0].double().mean().item(), "top5": 100 * hits.any(1).double().mean().item()}


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, k: int = 20
) -> float:
    """Top-1 accuracy of `knn_predict` in percent."""
    _check_lengths(queries, query_labels)
    return 100 * (knn_predict(bank, bank_labels, queries, k) == query_labels).double().mean().item()


def _check_lengths(queries: Tensor, query_labels: Tensor) -> None:
    if len(queries) != len(query_labels):
        raise UserError(
            f"k-NN: {len(queries)} queries and {len(query_labels)} labels; give one label per query"
        )


def _check_classes(bank_labels: Tensor) -> None:
    if len(bank_labels.unique()) < 2:
        raise UserError(
            "k-NN: all images of the bank have one label, so there is nothing to tell apart; "
            "name data with two classes or more"
        )


def check_k(k: int, bank_size: int) -> None:
    """Raise UserError for a number of neighbours that a bank does not have."""
    if not 1 <= k <= bank_size:
        raise UserError(
            f"k-NN: k={k} is not possible with a bank of {bank_size}; give 1 to {bank_size} or enlarge the bank"
        )


def _check(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int) -> None:
    if len(bank) != len(bank_labels):
        raise UserError(
            f"k-NN: the bank has {len(bank)} features and {len(bank_labels)} labels; give one label per feature"
        )
    check_k(k, len(bank))
    if not (torch.isfinite(bank).all() and torch.isfinite(queries).all()):
        raise UserError(
            "k-NN: some features are not finite: the encoder has diverged; "
            "take an earlier checkpoint or a lower learning rate"
        )
