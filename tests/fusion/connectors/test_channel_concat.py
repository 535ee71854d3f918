"""Features side by side in the channels."""

import pytest
import torch

from fusion import build_connector
from vision_core.errors import UserError


@pytest.mark.parametrize(
    ("widths", "options", "millions"),
    [((1024, 1152), {"num_layers": 3}, 71.4), ((1152, 1024, 1536, 2560), {}, 42.5)],
)
def test_published_sizes(widths, options, millions):
    """Millions of parameters to a language model of 4096."""
    grids = (24,) * len(widths)
    with torch.device("meta"):
        connector = build_connector("channel_concat", widths, grids, 4096, 24, newline=False, **options)
    assert sum(each.numel() for each in connector.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_published_size_of_pixel_shuffle():
    with torch.device("meta"):
        shuffle = build_connector("pixel_shuffle", (768,), (32,), 960, 8, newline=False)
    assert sum(each.numel() for each in shuffle.parameters()) == 12288 * 960


@pytest.mark.parametrize(
    ("name", "widths", "grids", "options", "message"),
    [
        ("channel_concat", (5, 6), (4, 4), {"num_layers": 5}, "num_layers of 2 or 3"),
        ("pixel_shuffle", (5,), (6,), {}, "encoder 0 hands on a grid of 6 x 6"),
    ],
)
def test_bad_input(name, widths, grids, options, message):
    with pytest.raises(UserError, match=message):
        build_connector(name, widths, grids, 12, 4, **options)
