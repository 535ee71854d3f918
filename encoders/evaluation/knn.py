"""Weighted k-nearest-neighbour classification of frozen features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_core.errors import UserError


@torch.no_grad()
def knn_predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int = 20, temperature: float = 0.07, chunk: int = 1024) -> Tensor:
    """Labels `[m]` of `queries [m, D]` from `bank [n, D]` with `bank_labels [n]` (Wu et al. 2018, section 3.4; DINO, appendix F.1).

    The k bank features of greatest cosine similarity s vote for their labels with weight exp(s / temperature). Similarities
    are computed for `chunk` queries at a time. Raises UserError where labels, k or features make this impossible.
    """
    _check(bank, bank_labels, queries, k)
    bank = F.normalize(bank.float(), dim=-1)
    num_classes = int(bank_labels.max()) + 1
    predictions = []
    for part in queries.split(chunk):
        similarity, nearest = (F.normalize(part.float(), dim=-1) @ bank.T).topk(k, dim=1)
        # subtracting the best similarity changes no vote's share and keeps exp in range
        weights = torch.exp((similarity - similarity[:, :1]) / temperature)
        votes = torch.zeros(len(part), num_classes, device=bank.device)
        predictions.append(votes.scatter_add_(1, bank_labels[nearest], weights).argmax(1))
    return torch.cat(predictions)


def knn_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, k: int = 20) -> float:
    """Top-1 accuracy of `knn_predict` in percent."""
    if len(queries) != len(query_labels):
        raise UserError(f"k-NN: {len(queries)} queries and {len(query_labels)} labels; give one label per query")
    return 100 * (knn_predict(bank, bank_labels, queries, k) == query_labels).double().mean().item()


def _check(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int) -> None:
    if len(bank) != len(bank_labels):
        raise UserError(f"k-NN: the bank has {len(bank)} features and {len(bank_labels)} labels; give one label per feature")
    if not 1 <= k <= len(bank):
        raise UserError(f"k-NN: k={k} is not possible with a bank of {len(bank)}; give 1 to {len(bank)} or enlarge the bank")
    if not (torch.isfinite(bank).all() and torch.isfinite(queries).all()):
        raise UserError("k-NN: some features are not finite: the encoder has diverged; take an earlier checkpoint or a lower learning rate")
