"""The module of facebookresearch/dinov2 written anew from its published names and formulas: an
independent reference.

Names: `vision_transformer.py` (DinoVisionTransformer), its `BlockChunk`, `layers/block.py` and
`layers/layer_scale.py`.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(-1)
        x = x + self.ls1.gamma * self.attn["proj"](
            (weights @ value).transpose(1, 2).reshape(batch, tokens, width)
        )
        return x + self.ls2.gamma * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class PublishedDinov2(nn.Module):
    """Images `[B, C, H, W]` to tokens `[B, 1 + registers + patches, D]` behind the norm."""

    def __init__(
        self,
        width=128,
        depth=3,
        heads=2,
        patch=14,
        side=5,
        registers=0,
        channels=3,
        offset=0.1,
        antialias=False,
        chunks=0,
    ):
        super().__init__()
        self.patch, self.offset, self.antialias = patch, offset, antialias
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        blocks = [Block(width, heads) for _ in range(depth)]
        if chunks:  # a chunk's list begins with as many identities as there are blocks before it
            size = depth // chunks
            starts = range(0, depth, size)
            self.blocks = nn.ModuleList(
                nn.ModuleList([nn.Identity()] * i + blocks[i : i + size]) for i in starts
            )
        else:
            self.blocks = nn.ModuleList(blocks)
        self.order, self.norm = blocks, nn.LayerNorm(width, eps=1e-6)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)

    def state_dict(self, *args, **kwargs):
        return {
            name: value
            for name, value in super().state_dict(*args, **kwargs).items()
            if not name.startswith("order.")
        }

    def positions(self, rows, columns):
        """The published formula of `interpolate_pos_encoding`, in the positions' own precision."""
        table, count = self.pos_embed, self.pos_embed.shape[1] - 1
        if rows * columns == count and rows == columns:
            return table
        side = int(math.sqrt(count))
        options = {"size": (rows, columns)}
        if self.offset:
            options = {
                "scale_factor": (float(rows + self.offset) / side, float(columns + self.offset) / side)
            }
        grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, mode="bicubic", antialias=self.antialias, **options)
        assert grid.shape[-2:] == (rows, columns)
        return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)], dim=1)

    @torch.no_grad()
    def forward(self, images):
        x = self.patch_embed["proj"](images)
        rows, columns = x.shape[-2:]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + self.positions(rows, columns)
        if self.register_tokens is not None:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], dim=1)
        for block in self.order:
            x = block(x)
        return self.norm(x)
