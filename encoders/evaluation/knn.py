"""Weighted k-nearest-neighbour classification of frozen features."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_core.errors import UserError

PUBLISHED_KS = (10, 20, 100, 200)


def knn_predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int = 20, temperature: float = 0.07, chunk: int = 1024) -> Tensor:
    """Labels `[m]` of `queries [m, D]` from `bank [n, D]` with `bank_labels [n]` (Wu et al. 2018, section 3.4; DINO, appendix F.1).

    The k bank features of greatest cosine similarity s vote for their labels with weight exp(s / temperature). Similarities
    are computed for `chunk` queries at a time. Raises UserError where labels, k or features make this impossible.
    """
    similarity, neighbours = nearest_neighbours(bank, bank_labels, queries, k, chunk)
    return torch.cat([votes.argmax(1) for votes in _votes(similarity, neighbours, int(bank_labels.max()) + 1, k, temperature, chunk)])


@torch.no_grad()
def nearest_neighbours(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Cosine similarity `[m, k]`, falling, and labels `[m, k]` of the k nearest of `bank [n, D]` to each of `queries [m, D]`."""
    _check(bank, bank_labels, queries, k)
    bank = F.normalize(bank.float(), dim=-1)
    similarities, labels = [], []
    for part in queries.split(chunk):
        similarity, nearest = (F.normalize(part.float(), dim=-1) @ bank.T).topk(k, dim=1)
        similarities.append(similarity)
        labels.append(bank_labels[nearest])
    return torch.cat(similarities), torch.cat(labels)


def knn_accuracies(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, ks: Sequence[int] = PUBLISHED_KS, temperature: float = 0.07
) -> dict[int, dict[str, float]]:
    """{k: {"top1", "top5"}} in percent by the votes of `knn_predict`, the neighbours being looked up once.

    Values of k above the bank's size are left out. Raises UserError where none is left, there is a single class, or as `knn_predict`.
    """
    _check_lengths(queries, query_labels)
    if len(bank_labels.unique()) < 2:
        raise UserError(
            "k-NN: all images of the bank have one label, so there is nothing to tell apart; name data with two classes or more"
        )
    possible = [k for k in ks if k <= len(bank)] or [len(bank)]
    similarity, neighbours = nearest_neighbours(bank, bank_labels, queries, max(possible))
    num_classes = int(torch.maximum(bank_labels.max(), query_labels.max())) + 1
    return {k: _top(torch.cat(list(_votes(similarity, neighbours, num_classes, k, temperature))), query_labels) for k in possible}


def _votes(similarity: Tensor, neighbours: Tensor, num_classes: int, k: int, temperature: float, chunk: int = 1024) -> Iterator[Tensor]:
    """Votes `[chunk, classes]` of the first k neighbours, chunk after chunk."""
    for near, labels in zip(similarity[:, :k].split(chunk), neighbours[:, :k].split(chunk), strict=True):
        # subtracting the best similarity changes no vote's share and keeps exp in range
        weights = torch.exp((near - near[:, :1]) / temperature)
        yield torch.zeros(len(near), num_classes, device=near.device).scatter_add_(1, labels, weights)


def _top(votes: Tensor, labels: Tensor) -> dict[str, float]:
    ranked = votes.topk(min(5, votes.shape[1]), dim=1)
    hits = (ranked.indices == labels[:, None]) & (ranked.values > 0)  # a class without a vote is no guess
    return {"top1": 100 * hits[:, 0].double().mean().item(), "top5": 100 * hits.any(1).double().mean().item()}


def knn_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, k: int = 20) -> float:
    """Top-1 accuracy of `knn_predict` in percent."""
    _check_lengths(queries, query_labels)
    return 100 * (knn_predict(bank, bank_labels, queries, k) == query_labels).double().mean().item()


def _check_lengths(queries: Tensor, query_labels: Tensor) -> None:
    if len(queries) != len(query_labels):
        raise UserError(f"k-NN: {len(queries)} queries and {len(query_labels)} labels; give one label per query")


def _check(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int) -> None:
    if len(bank) != len(bank_labels):
        raise UserError(f"k-NN: the bank has {len(bank)} features and {len(bank_labels)} labels; give one label per feature")
    if not 1 <= k <= len(bank):
        raise UserError(f"k-NN: k={k} is not possible with a bank of {len(bank)}; give 1 to {len(bank)} or enlarge the bank")
    if not (torch.isfinite(bank).all() and torch.isfinite(queries).all()):
        raise UserError("k-NN: some features are not finite: the encoder has diverged; take an earlier checkpoint or a lower learning rate")
