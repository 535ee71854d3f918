"""One contract, all connectors."""

import inspect

import pytest
import torch

from fusion import CONNECTORS, build_connector
from fusion.connectors.base import num_image_tokens
from fusion.connectors.geometry import ImageLayout
from vision_core.errors import UserError

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


def test_interleaved_tokens_alternate_and_additive_ones_are_mixed():
    connector, maps = make("interleaved", newline=False)
    tokens = connector.encode(maps, ImageLayout(((8, 8),) * len(SIZES)))[0].tokens
    for encoder in (0, 1):
        alone = connector.mm_projectors[encoder](maps[encoder][0].flatten(1).T)
        assert torch.allclose(tokens[encoder::2], alone, atol=1e-6)
    connector, maps = make("additive", newline=False)
    mixed = connector.mm_projector((0.75 * maps[0] + 0.25 * maps[1])[2].flatten(1).T)
    assert torch.allclose(connector.encode(maps, ImageLayout(SIZES))[2].tokens, mixed, atol=1e-6)


def test_published_sizes():
    """specs, table 2: millions of parameters to a language model of 4096."""
    for name, widths, grids, options, millions in [
        ("mlp", (1024,), (24,), {}, 20.98),
        ("channel_concat", (1024, 1152), (24, 24), {"num_layers": 3}, 71.4),
        ("channel_concat", (1152, 1024, 1536, 2560), (24,) * 4, {}, 42.5),
    ]:
        with torch.device("meta"):
            connector = build_connector(name, widths, grids, 4096, 24, newline=False, **options)
        assert sum(each.numel() for each in connector.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    with torch.device("meta"):
        shuffle = build_connector("pixel_shuffle", (768,), (32,), 960, 8, newline=False)
    assert sum(each.numel() for each in shuffle.parameters()) == 12288 * 960


@pytest.mark.parametrize(
    ("name", "widths", "grids", "options", "message"),
    [
        ("svaa", (5,), (4,), {}, "no connector 'svaa'; did you mean sva?"),
        ("nothing", (5,), (4,), {}, "no connector 'nothing'; known: sva"),
        ("mlp", (5, 6), (4, 4), {}, "MlpConnector needs one encoder"),
        ("mlp", (5,), (8,), {}, "MlpConnector needs encoder grids of 4, its own"),
        ("mlp", (5,), (4,), {"depth": 2}, "mlp has no option depth; it has newline"),
        ("additive", (5, 6), (4, 4), {}, "encoders of one width"),
        ("additive", (5, 5), (4, 4), {"shares": [1.0]}, "one share for each encoder"),
        ("channel_concat", (5, 6), (4, 4), {"num_layers": 5}, "num_layers of 2 or 3"),
        ("resampler", (5,), (4,), {"width": 10, "num_heads": 4}, "not a multiple of its 4 heads"),
        ("pixel_shuffle", (5,), (6,), {}, "encoder 0 hands on a grid of 6 x 6"),
    ],
)
def test_bad_input(name, widths, grids, options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        build_connector(name, widths, grids, HIDDEN, GRID, **options)


def test_constructors_are_alike():
    for connector in CONNECTORS.values():
        positional = [
            each.name
            for each in inspect.signature(connector).parameters.values()
            if each.kind == each.POSITIONAL_OR_KEYWORD
        ]
        assert positional == ["encoder_widths", "encoder_grids", "hidden_size", "grid"]
