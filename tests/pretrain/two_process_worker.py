"""Three training steps on a fixed global batch, shared among the processes; rank 0 writes the mean
losses."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pretrain.backbone import build_backbone
from pretrain.heads import ProjectionHead
from pretrain.losses.ibot import masked_token_weights
from pretrain.param_groups import clip_per_module
from pretrain.self_distillation import SelfDistillation

IMAGES, LOCAL = 8, 2


def share(tensor, views, rank, world):
    """This process's images of a crop-major tensor."""
    per_process = IMAGES // world
    return tensor.unflatten(0, (views, IMAGES))[:, rank * per_process : (rank + 1) * per_process].flatten(
        0, 1
    )


def main(output: str, centering: str) -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    backbone = build_backbone(
        32, 2, 2, patch_size=4, image_size=16, num_register_tokens=1, layerscale_value=1.0
    )
    method = SelfDistillation(
        backbone,
        ProjectionHead(32, 24, 16, 8),
        ProjectionHead(32, 20, 16, 8),
        centering=centering,
        center_reduction="tokens",
        koleo_gather=True,
    )
    model = DistributedDataParallel(method, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(method.student.parameters(), lr=1e-3)
    lines = []
    for step in range(3):
        torch.manual_seed(100 + step)
        masks = torch.rand(2 * IMAGES, 16) < 0.3
        masks[::3] = False
        crops, local = torch.randn(2 * IMAGES, 3, 16, 16), torch.randn(LOCAL * IMAGES, 3, 8, 8)
        own = share(masks, 2, rank, world)
        losses = model(
            share(crops, 2, rank, world), share(local, LOCAL, rank, world), own, own.flatten().nonzero().squeeze(1),
            masked_token_weights(own), teacher_temp=0.05,
        )  # fmt: skip
        losses["loss"].backward()
        norms = clip_per_module(dict(method.student.items()), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        method.update_teacher(0.9)
        method.update_centers()
        line = {}
        for name, value in losses.items():
            mean = value.detach().clone()
            dist.all_reduce(mean)
            line[name] = (mean / world).item()
        lines.append(line | {f"{name}_norm": value.item() for name, value in norms.items()})
    if rank == 0:
        Path(output).write_text(json.dumps(lines))
    dist.destroy_process_group()


main(*sys.argv[1:])
