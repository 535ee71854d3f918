"""The head of Dense Prediction Transformers: four layers of a ViT, brought to four strides and
fused from the coarsest to the finest."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class DPTHead(nn.Module):
    """A map `[B, out_channels, 4h, 4w]` of four maps `[B, in_channels, h, w]`, earliest layer first
    (Ranftl et al. 2021, section 3.1).

    For a patch of 16 pixels the maps are brought to the strides 4, 8, 16 and 32. CLS is ignored.
    The paper's last doubling is left out: the output is resized afterwards at a fraction of its
    cost.
    """

    def __init__(self, in_channels: int, channels: int = 256, out_channels: int = 256) -> None:
        super().__init__()
        resamplers = (
            nn.ConvTranspose2d(channels, channels, 4, stride=4),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            nn.Identity(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        )
        self.reassemble = nn.ModuleList()
        for resampler in resamplers:
            self.reassemble.append(nn.Sequential(nn.Conv2d(in_channels, channels, 1), resampler))
        self.fusion = nn.ModuleList(FusionBlock(channels, joins=number < 3) for number in range(4))
        self.output = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, *layers: Tensor) -> Tensor:
        maps = [reassemble(layer) for reassemble, layer in zip(self.reassemble, layers, strict=True)]
        fused = self.fusion[3](maps[3], None, maps[2].shape[-2:])
        fused = self.fusion[2](maps[2], fused, maps[1].shape[-2:])
        fused = self.fusion[1](maps[1], fused, maps[0].shape[-2:])
        return self.output(self.fusion[0](maps[0], fused, maps[0].shape[-2:]))


class FusionBlock(nn.Module):
    """Adds a layer's map to the sum of the coarser layers, and brings the new sum to the next finer
    size (the paper's figure 1, right).

    joins: whether there are coarser layers.
    """

    def __init__(self, channels: int, joins: bool) -> None:
        super().__init__()
        self.entry = ResidualConvUnit(channels) if joins else nn.Identity()
        self.refine = ResidualConvUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, layer: Tensor, coarser: Tensor | None, size: tuple[int, int]) -> Tensor:
        fused = self.entry(layer)
        fused = self.refine(fused if coarser is None else fused + coarser)
        # not always twice the size: the coarsest map of an odd grid is rounded up
        if fused.shape[-2:] != size:
            fused = F.interpolate(fused, size, mode="bilinear", align_corners=False)
        return self.project(fused)


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3 x 3 (Lin et al. 2017, RefineNet)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))
