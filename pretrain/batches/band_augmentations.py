"""Augments images of any number of channels, in units that the data gives itself: each channel's
mean and std.

Bands have no common black and white: reflectance, kelvin, decibels and counts start at different
values. So nothing here depends on the units. With z = (x - mean) / std, brightness adds to z,
contrast stretches z around the crop's own mean, and solarize reflects z at 0. For data a * x + b
with a > 0, with its own mean and std, the normalised crops are the same.
"""

import torch
from torch import Tensor

JITTER_PROBABILITY = 0.8  # as for RGB
# The published brightness factor of 1 +- 0.4 moves a pixel at ImageNet's mean, which is 2 std above
# black, by 0.8 std.
BRIGHTNESS_REACH = 0.8
CONTRAST_REACH = 0.4


def random_band_jitter(view: Tensor, std: Tensor, strength: float) -> Tensor:
    """`[C, h, w]`, with probability 0.8 with another brightness and contrast, the same for all
    channels.

        x -> m + f * (x - m) + b * std, with m the channel's mean over the crop

    f is uniform in 1 +- 0.4 * strength, b in +- 0.8 * strength. std: `[C, 1, 1]`.
    """
    happens, brightness, contrast = torch.rand(3).tolist()
    if happens >= JITTER_PROBABILITY:
        return view
    factor = 1 + strength * CONTRAST_REACH * (2 * contrast - 1)
    shift = strength * BRIGHTNESS_REACH * (2 * brightness - 1)
    own_mean = view.mean((-2, -1), keepdim=True)
    return own_mean + factor * (view - own_mean) + shift * std


def solarize_bands(view: Tensor, mean: Tensor) -> Tensor:
    """`[C, h, w]` with the values above their channel's mean reflected at it. mean: `[C, 1, 1]`."""
    return torch.where(view > mean, 2 * mean - view, view)


def random_dropped_channels(num_channels: int, probability: float) -> list[int]:
    """The channels that an image loses: with `probability` all but a random set of 1 to C - 1, each
    size alike (ChannelViT, Bao et al. 2024), else none."""
    if num_channels < 2 or torch.rand(()).item() >= probability:
        return []
    kept = int(torch.randint(1, num_channels, ()))
    return sorted(torch.randperm(num_channels)[kept:].tolist())
