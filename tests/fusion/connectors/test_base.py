"""One contract, all connectors."""

import pytest
import torch

from fusion import CONNECTORS, build_connector
from fusion.connectors.base import num_image_tokens
from fusion.connectors.geometry import ImageLayout

GRID, HIDDEN = 4, 12
SIZES = ((30, 50), (64, 16), (8, 8), (1, 1))
SMALL = {"width": 8, "num_heads": 2, "depth": 2}
CASES = {  # name: encoder widths, encoder grids, options
    "sva": ((5, 6), (4, 8), SMALL),
    "mlp": ((5,), (4,), {}),
    "linear": ((5,), (4,), {}),
    "channel_concat": ((5, 6), (4, 4), {"num_layers": 3}),
    "interleaved": ((5, 6), (4, 4), {}),
    "additive": ((5, 5), (4, 4), {"shares": [0.75, 0.25]}),
    "resampler": ((5, 6), (4, 8), {**SMALL, "num_queries": 7}),
    "pixel_shuffle": ((5, 6), (8, 4), {}),
}


def make(name, newline=True):
    widths, grids, options = CASES[name]
    torch.manual_seed(0)
    connector = build_connector(name, widths, grids, HIDDEN, GRID, newline=newline, **options)
    return connector, [
        torch.randn(len(SIZES), width, side, side) for width, side in zip(widths, grids, strict=True)
    ]


def test_every_connector_is_here():
    assert set(CASES) == set(CONNECTORS)


@pytest.mark.parametrize("newline", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_tokens_of_an_image_are_as_many_as_its_cells(name, newline):
    connector, maps = make(name, newline)
    layout = ImageLayout(SIZES)
    for image, box in zip(connector.encode(maps, layout), layout.boxes(GRID), strict=True):
        expected = connector.fixed_tokens or num_image_tokens(box, connector.tokens_per_cell, newline)
        assert image.tokens.shape == (expected, HIDDEN)
        assert image.cells.shape == (expected,)
        assert int((~image.cells).sum()) == (box.rows if newline and not connector.fixed_tokens else 0)
        assert (image.windows is not None) == (name == "sva")


@pytest.mark.parametrize("name", CASES)
def test_a_batch_gives_what_single_images_give(name):
    connector, maps = make(name)
    together = connector.encode(maps, ImageLayout(SIZES))
    for index, size in enumerate(SIZES):
        alone = connector.encode([each[index : index + 1] for each in maps], ImageLayout((size,)))[0]
        assert torch.allclose(alone.tokens, together[index].tokens, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_everything_learns(name):
    connector, maps = make(name)
    maps = [each.requires_grad_() for each in maps]
    torch.cat(
        [image.tokens for image in connector.encode(maps, ImageLayout(SIZES))]
    ).square().sum().backward()
    assert all(each.grad.abs().sum() > 0 for each in maps)
    assert [
        name
        for name, each in connector.named_parameters()
        if each.grad is None or not each.grad.abs().sum() > 0
    ] == []


@pytest.mark.parametrize(
    "name", sorted(set(CASES) - {"sva"})
)  # whose global context is published with the padding in it
def test_padding_changes_nothing(name):
    connector, maps = make(name)
    layout = ImageLayout(SIZES)
    before = connector.encode(maps, layout)
    # a coarse cell that the image touches counts whole, so a finer map's padding within it may
    # count as well: pixel shuffle hands on whole cells
    grid = GRID if name == "pixel_shuffle" else None
    for each in maps:
        side = each.shape[-1]
        mask = layout.mask(grid or side)
        mask = mask.repeat_interleave(side // mask.shape[-1], 1).repeat_interleave(side // mask.shape[-1], 2)
        each.add_(torch.randn(each.shape) * ~mask[:, None])
    for one, other in zip(before, connector.encode(maps, layout), strict=True):
        assert torch.allclose(one.tokens, other.tokens, atol=1e-6)
