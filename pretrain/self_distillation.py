"""DINOv2 self-distillation: a student learns to predict a slow average of itself across crops and
masked patches.

The nouns are the paper's (Oquab et al. 2023, sec. 4; DINO, Caron et al. 2021; iBOT, Zhou et al.
2022; KoLeo, Sablayrolles et al. 2019).
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.backbone import Backbone, num_register_tokens
from pretrain.batches import NUM_GLOBAL_CROPS
from pretrain.crop_groups import draw_kept_crops, forward_crop_groups
from pretrain.heads import ProjectionHead
from pretrain.losses.centering import SinkhornKnopp, SoftmaxCentering
from pretrain.losses.dino import dino_loss, num_loss_terms
from pretrain.losses.ibot import ibot_loss
from pretrain.losses.koleo import koleo_loss


class SelfDistillation(nn.Module):
    """Student, teacher, heads and losses in one module; `forward` returns the losses of a batch
    under `"loss"` and their names.

    Teacher and student start equal. Only the student has gradients; the teacher moves by
    `update_teacher`. After a step that was taken call `update_teacher` and `update_centers`, after
    one that was skipped `discard_centers`.

    Args:
        backbone: the student's; the teacher is a copy.
        dino_head: projects CLS tokens.
        ibot_head: projects patch tokens; None shares `dino_head`. Not used when `ibot_loss_weight`
            is 0.
        centering: "softmax" (center of past batches) or "sinkhorn_knopp" (this batch, over all
            processes).
        koleo_gather: search KoLeo neighbours over all processes (published: each process alone).
        drop_path_rate: stochastic depth of the student, as a subset of each group's crops.
        recompute: trade memory for a second forward of every layer of the student.
    """

    def __init__(
        self,
        backbone: Backbone,
        dino_head: ProjectionHead,
        ibot_head: ProjectionHead | None = None,
        *,
        centering: Literal["softmax", "sinkhorn_knopp"] = "softmax",
        center_momentum: float = 0.9,
        center_reduction: Literal["ranks", "tokens"] = "ranks",
        student_temp: float = 0.1,
        dino_loss_weight: float = 1.0,
        ibot_loss_weight: float = 1.0,
        ibot_weighting: Literal["published", "masked_crops"] = "published",
        koleo_loss_weight: float = 0.1,
        koleo_gather: bool = False,
        koleo_precision: Literal["float32", "autocast"] = "float32",
        drop_path_rate: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        heads = {"dino_head": dino_head} | ({"ibot_head": ibot_head} if ibot_head is not None else {})
        self.student = nn.ModuleDict({"backbone": backbone, **heads})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

        def make_centering(head: ProjectionHead) -> nn.Module:
            if centering == "sinkhorn_knopp":
                return SinkhornKnopp()
            return SoftmaxCentering(head.num_prototypes, center_momentum, center_reduction)

        self.dino_centering = make_centering(dino_head)
        self.ibot_centering = make_centering(ibot_head or dino_head)
        self.student_temp = student_temp
        self.dino_loss_weight, self.ibot_loss_weight = dino_loss_weight, ibot_loss_weight
        self.ibot_weighting = ibot_weighting
        self.koleo_loss_weight, self.koleo_gather, self.koleo_precision = (
            koleo_loss_weight,
            koleo_gather,
            koleo_precision,
        )
        self.drop_path_rate, self.recompute = drop_path_rate, recompute

    def train(self, mode: bool = True) -> "SelfDistillation":
        """The teacher is always in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None,
        masks: Tensor,
        mask_indices: Tensor,
        mask_weights: Tensor,
        teacher_temp: float,
    ) -> dict[str, Tensor]:
        """The losses of one batch (spec: DINOv2 `train/ssl_meta_arch.py`).

        Args:
            global_crops: `[2B, C, H, W]`, crop-major (first crops of all images, then second
                crops).
            local_crops: `[L*B, C, h, w]`, crop-major, or None.
            masks: `[2B, N]` bool, the student's masked patches.
            mask_indices: `[M]` flat positions of the True entries in `masks`; given so that no
                device has to wait for them.
            mask_weights: `[M]` 1 / masked patches of the crop.
            teacher_temp: temperature of the teacher's softmax at this step.

        Draws stochastic depth from torch's global CPU generator.
        """
        teacher_cls, teacher_patches = self.teacher_targets(global_crops, mask_indices, teacher_temp)
        student = self.student_outputs(global_crops, local_crops, masks, mask_indices)
        losses = self.dino_losses(student, teacher_cls) | {
            "koleo_loss": self.koleo_loss_weight * self.koleo(student["global_cls"])
        }
        if self.ibot_loss_weight:
            losses["ibot_loss"] = self.ibot_loss_weight * ibot_loss(
                student["patch_logits"],
                teacher_patches,
                mask_weights,
                len(masks),
                self.student_temp,
                self.ibot_weighting,
            )
        return {"loss": sum(losses.values()), **{name: loss.detach() for name, loss in losses.items()}}

    @torch.no_grad()
    def teacher_targets(
        self, global_crops: Tensor, mask_indices: Tensor, teacher_temp: float
    ) -> tuple[Tensor, Tensor | None]:
        """Teacher probabilities of the unmasked global crops: CLS `[2, B, K]` and masked patches
        `[M, K]` (None without iBOT)."""
        (tokens,) = forward_crop_groups(self.teacher["backbone"], [global_crops])
        cls, patches = self._cls_and_patches(tokens)
        cls_logits, patch_logits = self._project(self.teacher, cls, self._masked(patches, mask_indices))
        cls_probs = self.dino_centering(cls_logits, teacher_temp).unflatten(0, (NUM_GLOBAL_CROPS, -1))
        return cls_probs, None if patch_logits is None else self.ibot_centering(patch_logits, teacher_temp)

    def student_outputs(
        self, global_crops: Tensor, local_crops: Tensor | None, masks: Tensor, mask_indices: Tensor
    ) -> dict[str, Tensor | None]:
        """Student logits of masked global crops and of local crops, and the global CLS tokens
        before the head."""
        groups = [global_crops] if local_crops is None else [global_crops, local_crops]
        backbone = self.student["backbone"]
        kept = draw_kept_crops(
            len(backbone.encoder.layer), [len(group) for group in groups], self.drop_path_rate
        )
        group_masks = [masks, None][: len(groups)]
        tokens = forward_crop_groups(backbone, groups, group_masks, kept, self.recompute)
        global_cls, patches = self._cls_and_patches(tokens[0])
        cls = torch.cat([group[:, 0] for group in tokens])
        cls_logits, patch_logits = self._project(self.student, cls, self._masked(patches, mask_indices))
        return {
            "global_cls": global_cls,
            "global_logits": cls_logits[: len(global_crops)],
            "local_logits": cls_logits[len(global_crops) :] if local_crops is not None else None,
            "patch_logits": patch_logits,
        }

    def dino_losses(self, student: dict[str, Tensor | None], teacher_cls: Tensor) -> dict[str, Tensor]:
        """DINO's cross-entropies, local to global and across the two global crops, over their
        common number of terms."""
        images = teacher_cls.shape[1]
        global_logits = student["global_logits"].unflatten(0, (-1, images))
        local_logits = (
            None if student["local_logits"] is None else student["local_logits"].unflatten(0, (-1, images))
        )
        scale = self.dino_loss_weight / num_loss_terms(
            NUM_GLOBAL_CROPS, 0 if local_logits is None else len(local_logits)
        )
        losses = {"dino_global_loss": scale * dino_loss(global_logits, teacher_cls, True, self.student_temp)}
        if local_logits is not None:
            losses["dino_local_loss"] = scale * dino_loss(local_logits, teacher_cls, False, self.student_temp)
        return losses

    def koleo(self, global_cls: Tensor) -> Tensor:
        """KoLeo of each global crop's CLS tokens, summed over the crops (so the published weight
        0.1 counts once a crop)."""
        views = global_cls.chunk(NUM_GLOBAL_CROPS)
        return sum(koleo_loss(view, self.koleo_gather, precision=self.koleo_precision) for view in views)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)

    def update_centers(self) -> None:
        """Take this step's batch statistics into the centers."""
        self.dino_centering.update()
        self.ibot_centering.update()

    def discard_centers(self) -> None:
        """Forget this step's batch statistics: the step was skipped."""
        self.dino_centering.discard()
        self.ibot_centering.discard()

    def _cls_and_patches(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[crops, 1 + R + N, D] -> CLS [crops, D] and patches [crops, N, D]"""
        return tokens[:, 0], tokens[:, 1 + num_register_tokens(self.student["backbone"]) :]

    def _masked(self, patches: Tensor, mask_indices: Tensor) -> Tensor | None:
        return patches.flatten(0, 1)[mask_indices] if self.ibot_loss_weight else None

    @staticmethod
    def _project(
        networks: nn.ModuleDict, cls: Tensor, patches: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Prototype logits of CLS and patch tokens; one call of the head where it is shared."""
        if patches is None:
            return networks["dino_head"](cls), None
        if "ibot_head" in networks:
            return networks["dino_head"](cls), networks["ibot_head"](patches)
        return networks["dino_head"](torch.cat([cls, patches])).split([len(cls), len(patches)])
