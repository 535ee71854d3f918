"""Interleaved and additive mixtures of features."""

import pytest
import torch

from fusion import build_connector
from fusion.connectors.geometry import ImageLayout
from vision_core.errors import UserError

SIZES = ((30, 50), (64, 16), (8, 8), (1, 1))


def test_interleaved_tokens_alternate():
    connector = build_connector("interleaved", (5, 6), (4, 4), 12, 4, newline=False)
    maps = [torch.randn(len(SIZES), width, 4, 4) for width in (5, 6)]
    tokens = connector.encode(maps, ImageLayout(((8, 8),) * len(SIZES)))[0].tokens
    for encoder in (0, 1):
        alone = connector.mm_projectors[encoder](maps[encoder][0].flatten(1).T)
        assert torch.allclose(tokens[encoder::2], alone, atol=1e-6)


def test_additive_tokens_are_mixed():
    connector = build_connector("additive", (5, 5), (4, 4), 12, 4, newline=False, shares=[0.75, 0.25])
    maps = [torch.randn(len(SIZES), 5, 4, 4) for _ in range(2)]
    mixed = connector.mm_projector((0.75 * maps[0] + 0.25 * maps[1])[2].flatten(1).T)
    assert torch.allclose(connector.encode(maps, ImageLayout(SIZES))[2].tokens, mixed, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "widths", "grids", "options", "message"),
    [
        ("additive", (5, 6), (4, 4), {}, "encoders of one width"),
        ("additive", (5, 5), (4, 4), {"shares": [1.0]}, "one share for each encoder"),
    ],
)
def test_bad_input(name, widths, grids, options, message):
    with pytest.raises(UserError, match=message):
        build_connector(name, widths, grids, 12, 4, **options)
