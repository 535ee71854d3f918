"""KoLeo spreads the features of a batch by pushing nearest neighbours apart."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_core.processes.distributed import gather_rows, rank


def koleo_loss(
    features: Tensor,
    gather: bool = False,
    eps: float = 1e-8,
    precision: Literal["float32", "autocast"] = "float32",
) -> Tensor:
    """Kozachenko-Leonenko estimator of differential entropy (Sablayrolles et al. 2019, eq. 2), on
    L2-normalised features; a scalar.

        mean over i of -log(eps + min over j != i of ||x_i - x_j + eps||)

    Args:
        features: `[B, D]`. B < 2 has no neighbour and gives 0.
        gather: search neighbours among the rows of all processes; the mean is over this process's
            rows, so that the average over processes is the value of the global batch.
        precision: "autocast" keeps the features' type, as the published code does: in half
            precision duplicates give inf.
    """
    with torch.autocast(features.device.type, enabled=False):
        if precision == "float32":
            features = features.float()
        own = F.normalize(features, p=2.0, dim=-1, eps=eps)  # [B, D]
        rows = gather_rows(own) if gather else own  # [B or B of all processes, D]
        if len(rows) < 2:
            return features.sum() * 0
        first = rank() * len(own) if gather else 0  # this process's first row
        nearest = _nearest_rows(own, rows, first)  # [B]
        distance = F.pairwise_distance(own, rows[nearest], p=2.0, eps=eps)  # [B]
        return -torch.log(distance + eps).mean()


@torch.no_grad()
def _nearest_rows(own: Tensor, rows: Tensor, first: int) -> Tensor:
    """The index `[B]` among `rows` of the neighbour of each of `own` `[B, D]`, which begin at row
    `first` and are not their own neighbours."""
    similarity = own @ rows.T  # [B, rows]
    itself = torch.arange(len(own), device=own.device)
    similarity[itself, first + itself] = -1
    return similarity.argmax(dim=1)
