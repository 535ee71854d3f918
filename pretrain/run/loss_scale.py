"""Scales the loss so that small gradients do not round to 0 in float16, for GPUs that have no
bfloat16 (V100, T4).

The method is that of Micikevicius et al. 2018, sec. 3.2. Weights, optimizer, losses,
Sinkhorn-Knopp, KoLeo, norms and the sums of the residual branches stay float32; matrix products and
attention are float16. torch's scaler starts at 65536, halves where gradients overflow and doubles
after 2000 steps in which none did.
"""

import torch

LEAST_SCALE = 1.0  # below it the gradients themselves do not fit into float16


class LossScaler(torch.amp.GradScaler):
    """torch's GradScaler that tells an overflow, which a smaller scale cures, from gradients that
    are not finite by themselves.

    Where it is not enabled all of its methods leave things as they are.
    """

    def can_fall(self, loss: torch.Tensor) -> bool:
        """Whether a smaller scale may cure gradients that are not finite. loss: of the step, before
        it was scaled."""
        return self.is_enabled() and bool(loss.isfinite()) and self.get_scale() > LEAST_SCALE

    def load(self, state: dict | None) -> None:
        """Go on from `state_dict()`. None or an empty one, of a run in another precision, starts
        afresh."""
        if state and self.is_enabled():
            self.load_state_dict(state)

    def figures(self) -> dict[str, float]:
        """The scale, for metrics.jsonl; {} where it is not enabled."""
        return {"loss_scale": self.get_scale()} if self.is_enabled() else {}
