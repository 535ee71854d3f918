"""What keeps the teacher from collapsing: softmax with a center of past batches, or Sinkhorn-Knopp
on this batch."""

from typing import Literal

import torch
from torch import Tensor, nn

from vision_core.processes.distributed import all_reduce_max, all_reduce_sum


class SoftmaxCentering(nn.Module):
    """softmax((logits - center) / temperature), the center being a running mean of teacher logits
    (DINO, eq. 4).

    The statistics of a step enter the center by `update` after that step, so step s uses batches up
    to s - 1, as the published asynchronous order does (DINOv2 `loss/dino_clstoken_loss.py`):

        probs = softmax((logits - center) / temperature);  center = momentum * center + (1 - momentum) * mean(logits)

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
        """`[R, K]` teacher logits -> float32 probabilities; remembers the batch's statistics until
        `update` or `discard`."""
        logits = logits.float()
        if len(logits):
            weight = len(logits) if self.reduction == "tokens" else 1
            total = logits.mean(0, keepdim=True) * weight
            self._sum = total if self._sum is None else self._sum + total
            self._count += weight
        return torch.softmax((logits - self.center) / temperature, dim=-1)

    @torch.no_grad()
    def update(self) -> None:
        """Move the center by the mean of the remembered micro-batches of all processes. Every
        process calls it."""
        total = torch.zeros_like(self.center) if self._sum is None else self._sum
        packed = all_reduce_sum(torch.cat([total, total.new_full((1, 1), self._count)], dim=1))
        if packed[0, -1] > 0:
            self.center.lerp_(packed[:, :-1] / packed[0, -1], 1 - self.momentum)
        self.discard()

    def discard(self) -> None:
        """Forget the remembered statistics: the step was skipped."""
        self._sum, self._count = None, 0.0


class SinkhornKnopp(nn.Module):
    """Teacher probabilities such that all prototypes are used equally by the rows of all processes
    (SwAV, sec. 3; DINOv2).

    The published loop on Q = exp(logits / temperature) `[R, K]`, which a test runs: divide by the
    total; three times {divide every prototype's column by its sum and by K; divide every row by its
    sum and by R}; multiply by R. Here only the two scaling vectors are kept (Q = diag(u) E
    diag(v)), and E is taken after subtracting the greatest logit, which cancels and cannot
    overflow.
    """

    def __init__(self, num_iterations: int = 3) -> None:
        super().__init__()
        self.num_iterations = num_iterations

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """`[R, K]` teacher logits (R may differ between processes, and be 0) -> float32
        probabilities, each row summing to 1."""
        # its sums are matrix products, which autocast would compute in half precision: off by 0.4
        # %, or infinite in float16
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            return self._probabilities(logits.float() / temperature)

    def _probabilities(self, logits: Tensor) -> Tensor:
        # one constant a row cancels in that row's normalisation, so no row can underflow to 0 as a
        # whole
        scores = torch.exp(logits - logits.amax(dim=1, keepdim=True)) if len(logits) else logits
        shift = logits.amax(dim=1) if len(logits) else logits.new_zeros(0)
        greatest = all_reduce_max(shift.max() if len(shift) else logits.new_tensor(-torch.inf))
        row_scale = torch.exp(shift - greatest).clamp_min(torch.finfo(torch.float32).tiny)
        for _ in range(self.num_iterations):
            column_sums = all_reduce_sum(row_scale @ scores)
            column_scale = 1 / column_sums.clamp_min(torch.finfo(torch.float32).tiny)
            row_scale = 1 / (scores @ column_scale)
        return row_scale[:, None] * scores * column_scale if len(logits) else scores

    def update(self) -> None:
        """Nothing is remembered."""

    def discard(self) -> None:
        """Nothing is remembered."""
