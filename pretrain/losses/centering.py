"""Keeps the teacher from collapsing: softmax with a center of past batches, or Sinkhorn-Knopp on
this batch."""

from typing import Literal

import torch
from torch import Tensor, nn

from vision_core.processes.distributed import all_reduce_max, all_reduce_sum


class SoftmaxCentering(nn.Module):
    """Softmax of the teacher's logits around their running mean, the center (DINO, eq. 4).

    The statistics of a step enter the center by `update` after that step, so step s uses batches up
    to s - 1, as the published asynchronous order does (DINOv2 `loss/dino_clstoken_loss.py`):

        probs = softmax((logits - center) / temperature)
        center = momentum * center + (1 - momentum) * mean(logits)

    Args:
        reduction: "ranks", the published unweighted mean of each process's mean (processes without
            rows are left out), or "tokens", the mean over all rows.
    """

    def __init__(
        self, num_prototypes: int, momentum: float = 0.9, reduction: Literal["ranks", "tokens"] = "ranks"
    ) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1, num_prototypes))
        self.momentum, self.reduction = momentum, reduction
        self._sum: Tensor | None = None
        self._count = 0.0

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Float32 probabilities `[R, K]` of teacher logits `[R, K]`. The batch's statistics are
        remembered until `update` or `discard`."""
        logits = logits.float()
        if len(logits):
            weight = len(logits) if self.reduction == "tokens" else 1
            total = logits.mean(0, keepdim=True) * weight  # [1, K]
            self._sum = total if self._sum is None else self._sum + total
            self._count += weight
        return torch.softmax((logits - self.center) / temperature, dim=-1)  # [R, K]

    @torch.no_grad()
    def update(self) -> None:
        """Move the center by the mean of the remembered micro-batches of all processes. Every
        process calls it."""
        total = torch.zeros_like(self.center) if self._sum is None else self._sum
        count = total.new_full((1, 1), self._count)
        packed = all_reduce_sum(torch.cat([total, count], dim=1))  # [1, K + 1]
        if packed[0, -1] > 0:
            self.center.lerp_(packed[:, :-1] / packed[0, -1], 1 - self.momentum)
        self.discard()

    def discard(self) -> None:
        """Forget the remembered statistics: the step was skipped."""
        self._sum = None
        self._count = 0.0


class SinkhornKnopp(nn.Module):
    """Teacher probabilities for which the rows of all processes use all prototypes equally (SwAV,
    sec. 3; DINOv2).

    The published loop, which a test runs, is

        Q = exp(logits / temperature), [R, K], divided by its total
        three times:
            divide every prototype's column by its sum and by K
            divide every row by its sum and by R
        multiply by R

    Here only the two scaling vectors are kept (Q = diag(u) E diag(v)), and E is taken after
    subtracting the greatest logit, which cancels and cannot overflow.
    """

    def __init__(self, num_iterations: int = 3) -> None:
        super().__init__()
        self.num_iterations = num_iterations

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Float32 probabilities `[R, K]` of teacher logits `[R, K]`; each row sums to 1. R may differ
        between processes, and be 0."""
        # the sums are matrix products, which autocast would compute in half precision: off by
        # 0.4 %, or infinite in float16
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            return self._probabilities(logits.float() / temperature)

    def _probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities `[R, K]` of logits that are divided by the temperature."""
        smallest = torch.finfo(torch.float32).tiny
        if len(logits):
            shift = logits.amax(dim=1)  # [R]
            # one constant a row cancels in that row's normalisation, so no row can underflow to 0
            scores = torch.exp(logits - logits.amax(dim=1, keepdim=True))  # [R, K]
            greatest = all_reduce_max(shift.max())
        else:
            shift = logits.new_zeros(0)
            scores = logits
            greatest = all_reduce_max(logits.new_tensor(-torch.inf))
        row_scale = torch.exp(shift - greatest).clamp_min(smallest)  # [R]
        for _ in range(self.num_iterations):
            column_sums = all_reduce_sum(row_scale @ scores)  # [K]
            column_scale = 1 / column_sums.clamp_min(smallest)  # [K]
            row_scale = 1 / (scores @ column_scale)  # [R]
        return row_scale[:, None] * scores * column_scale if len(logits) else scores  # [R, K]

    def update(self) -> None:
        """Nothing is remembered."""

    def discard(self) -> None:
        """Nothing is remembered."""
