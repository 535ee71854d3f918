"""Implements the full DINOv2 recipe: a student learns to predict a slow average of itself, its
teacher, across crops and masked patches.

The nouns are the paper's (Oquab et al. 2023, sec. 4; DINO, Caron et al. 2021; iBOT, Zhou et al.
2022; KoLeo, Sablayrolles et al. 2019). Letters in shapes:

    B images of a micro-batch      L local crops an image     M masked patches of all global crops
    N patches of a global crop     D width of the backbone    K prototypes of a head
"""

import copy
from typing import Literal, NamedTuple

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


class StudentOutputs(NamedTuple):
    """What the student makes of a micro-batch: CLS tokens before and after the DINO head, masked
    patches after the iBOT head.

    local_cls_after_head: None without local crops. patches_after_head: None without iBOT.
    """

    global_cls_before_head: Tensor  # [2B, D]
    global_cls_after_head: Tensor  # [2B, K]
    local_cls_after_head: Tensor | None  # [L*B, K]
    patches_after_head: Tensor | None  # [M, K]


class SelfDistillation(nn.Module):
    """Student, teacher, heads and losses in one module. `forward` returns the losses of a batch:
    their sum under `"loss"`, each under its name.

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
        networks = {"backbone": backbone, "dino_head": dino_head}
        if ibot_head is not None:
            networks["ibot_head"] = ibot_head
        self.student = nn.ModuleDict(networks)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()

        def make_centering(head: ProjectionHead) -> nn.Module:
            if centering == "sinkhorn_knopp":
                return SinkhornKnopp()
            return SoftmaxCentering(head.num_prototypes, center_momentum, center_reduction)

        self.dino_centering = make_centering(dino_head)
        self.ibot_centering = make_centering(ibot_head or dino_head)
        self.student_temp = student_temp
        self.dino_loss_weight = dino_loss_weight
        self.ibot_loss_weight = ibot_loss_weight
        self.ibot_weighting = ibot_weighting
        self.koleo_loss_weight = koleo_loss_weight
        self.koleo_gather = koleo_gather
        self.koleo_precision = koleo_precision
        self.drop_path_rate = drop_path_rate
        self.recompute = recompute

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
        cls_targets, patch_targets = self.teacher_targets(global_crops, mask_indices, teacher_temp)
        student = self.student_outputs(global_crops, local_crops, masks, mask_indices)
        losses = self.dino_losses(student, cls_targets)
        losses["koleo_loss"] = self.koleo_loss_weight * self.koleo(student.global_cls_before_head)
        if self.ibot_loss_weight:
            losses["ibot_loss"] = self.ibot_loss_weight * ibot_loss(
                student.patches_after_head,
                patch_targets,
                mask_weights,
                num_crops=len(masks),
                student_temp=self.student_temp,
                weighting=self.ibot_weighting,
            )
        return {"loss": sum(losses.values()), **{name: loss.detach() for name, loss in losses.items()}}

    @torch.no_grad()
    def teacher_targets(
        self, global_crops: Tensor, mask_indices: Tensor, teacher_temp: float
    ) -> tuple[Tensor, Tensor | None]:
        """The teacher's probabilities on the unmasked global crops, for CLS and for the patches that
        the student does not see (None without iBOT)."""
        (tokens,) = forward_crop_groups(self.teacher["backbone"], [global_crops])  # [2B, 1 + R + N, D]
        cls, patches = self._cls_and_patches(tokens)  # [2B, D], [2B, N, D]
        masked_patches = self._masked(patches, mask_indices)  # [M, D]
        cls_after_head, patches_after_head = self._apply_heads(self.teacher, cls, masked_patches)
        cls_targets = self.dino_centering(cls_after_head, teacher_temp)  # [2B, K]
        patch_targets = None
        if patches_after_head is not None:
            patch_targets = self.ibot_centering(patches_after_head, teacher_temp)  # [M, K]
        return (
            cls_targets.unflatten(0, (NUM_GLOBAL_CROPS, -1)),  # [2, B, K]
            patch_targets,  # [M, K]
        )

    def student_outputs(
        self, global_crops: Tensor, local_crops: Tensor | None, masks: Tensor, mask_indices: Tensor
    ) -> StudentOutputs:
        """The student's outputs on masked global crops and on local crops."""
        groups = [global_crops]
        group_masks: list[Tensor | None] = [masks]
        if local_crops is not None:
            groups.append(local_crops)
            group_masks.append(None)
        backbone = self.student["backbone"]
        crops_per_group = [len(group) for group in groups]
        kept_crops = draw_kept_crops(len(backbone.encoder.layer), crops_per_group, self.drop_path_rate)
        tokens = forward_crop_groups(backbone, groups, group_masks, kept_crops, self.recompute)
        global_cls, patches = self._cls_and_patches(tokens[0])  # [2B, D], [2B, N, D]
        cls = torch.cat([group[:, 0] for group in tokens])  # [2B + L*B, D]
        masked_patches = self._masked(patches, mask_indices)  # [M, D]
        cls_after_head, patches_after_head = self._apply_heads(self.student, cls, masked_patches)
        num_global = len(global_crops)
        return StudentOutputs(
            global_cls_before_head=global_cls,  # [2B, D]
            global_cls_after_head=cls_after_head[:num_global],  # [2B, K]
            local_cls_after_head=None if local_crops is None else cls_after_head[num_global:],  # [L*B, K]
            patches_after_head=patches_after_head,  # [M, K]
        )

    def dino_losses(self, student: StudentOutputs, cls_targets: Tensor) -> dict[str, Tensor]:
        """DINO's cross-entropies, across the two global crops and from local to global crops, each
        divided by their common number of terms. cls_targets: `[2, B, K]`."""
        num_images = cls_targets.shape[1]
        global_logits = student.global_cls_after_head.unflatten(0, (-1, num_images))  # [2, B, K]
        if student.local_cls_after_head is None:
            scale = self.dino_loss_weight / num_loss_terms(NUM_GLOBAL_CROPS, 0)
            global_loss = dino_loss(global_logits, cls_targets, True, self.student_temp)
            return {"dino_global_loss": scale * global_loss}
        local_logits = student.local_cls_after_head.unflatten(0, (-1, num_images))  # [L, B, K]
        scale = self.dino_loss_weight / num_loss_terms(NUM_GLOBAL_CROPS, len(local_logits))
        global_loss = dino_loss(global_logits, cls_targets, True, self.student_temp)
        local_loss = dino_loss(local_logits, cls_targets, False, self.student_temp)
        return {"dino_global_loss": scale * global_loss, "dino_local_loss": scale * local_loss}

    def koleo(self, global_cls: Tensor) -> Tensor:
        """KoLeo of the CLS tokens `[2B, D]`, summed over the first and the second global crops (so
        the published weight 0.1 counts once a crop)."""
        views = global_cls.chunk(NUM_GLOBAL_CROPS)  # 2 x [B, D]
        return sum(koleo_loss(view, self.koleo_gather, precision=self.koleo_precision) for view in views)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """The EMA update: teacher <- momentum * teacher + (1 - momentum) * student, for every
        parameter."""
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
        """`[crops, 1 + R + N, D]` without its R registers."""
        first_patch = 1 + num_register_tokens(self.student["backbone"])
        return (
            tokens[:, 0],  # [crops, D]
            tokens[:, first_patch:],  # [crops, N, D]
        )

    def _masked(self, patches: Tensor, mask_indices: Tensor) -> Tensor | None:
        """The masked ones of `[2B, N, D]` patches, as `[M, D]`; None without iBOT."""
        return patches.flatten(0, 1)[mask_indices] if self.ibot_loss_weight else None

    @staticmethod
    def _apply_heads(
        networks: nn.ModuleDict, cls: Tensor, patches: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Prototype logits of CLS tokens `[n, D]` and patches `[M, D]`: `[n, K]` and `[M, K]`. A head
        that they share is called once."""
        if patches is None:
            return networks["dino_head"](cls), None
        if "ibot_head" in networks:
            return networks["dino_head"](cls), networks["ibot_head"](patches)
        logits = networks["dino_head"](torch.cat([cls, patches]))  # [n + M, K]
        return logits.split([len(cls), len(patches)])
