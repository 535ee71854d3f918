"""The aggregator: released sizes, the published connector in float64 loops, padding, groups."""

import pytest
import torch

from fusion import SpatialVisionAggregator
from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.connectors.geometry import ImageLayout
from fusion.connectors.spatial_vision_aggregator import split_into_windows
from vision_core.errors import UserError

# specs: hidden size, layers in the language model, millions of parameters of the table
RELEASED = {"8B": (4096, 10, 302.8), "13B": (5120, 10, 334.2), "34B": (7168, 9, 375.0)}


@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(name):
    hidden_size, count, total = RELEASED[name]
    with torch.device("meta"):
        connector = SpatialVisionAggregator((1152, 1024, 1536, 5760), (24, 24, 24, 96), hidden_size)
        layer = VisionCrossAttentionLayer(hidden_size, 1024, 16, connector.window_sizes(24))

    def millions(module):
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    assert round(millions(connector.mm_projector_aux), 1) == 13.9
    assert round(millions(connector.vision_sampler), 1) == 47.3
    assert round(millions(layer), 2) == {4096: 22.06, 5120: 24.15, 7168: 28.35}[hidden_size]
    assert round(millions(connector.mm_projector), 2) == {4096: 20.98, 5120: 31.47, 7168: 58.73}[hidden_size]
    assert millions(connector) + count * millions(layer) == pytest.approx(total, abs=0.1)


def test_windows_are_split_as_the_docstring_says():
    patch_map, grid, r = torch.randn(2, 3, 6, 6), 2, 3
    windows = split_into_windows(patch_map, grid)
    for b in range(2):
        for i in range(grid):
            for j in range(grid):
                for u in range(r):
                    for v in range(r):
                        assert torch.equal(
                            windows[b * grid**2 + i * grid + j, u * r + v],
                            patch_map[b, :, i * r + u, j * r + v],
                        )


@pytest.mark.parametrize("path", ["plain", "fast"])
@pytest.mark.parametrize("rule", ["exact", "published"])
@pytest.mark.parametrize(
    ("grids", "group_grids"), [((2, 4), (2,)), ((2, 6, 8), (2, 2)), ((4, 4, 12), (2, 4, 4))]
)
def test_the_connector_is_the_published_one(references, shaken, path, rule, grids, group_grids):
    _, reference_aggregator, published_names = references
    torch.manual_seed(0)
    widths, grid, sizes = (
        (5, 7, 6)[: len(grids)],
        2 if max(group_grids) == 2 else 4,
        ((37, 60), (64, 40), (50, 50)),
    )
    connector = shaken(
        SpatialVisionAggregator(
            widths, grids, 10, grid, width=8, num_heads=2, depth=2, group_grids=group_grids, path=path
        )
    )
    maps = [torch.randn(len(sizes), width, side, side) for width, side in zip(widths, grids, strict=True)]
    layout = ImageLayout(sizes, rule=rule)
    images = connector.encode(maps, layout)
    state = connector.state_dict()
    weights = {
        published: state[own].double().numpy() for published, own in published_names(connector).items()
    }
    assert len(weights) == len(state)
    for index, (image, box) in enumerate(zip(images, layout.boxes(grid), strict=True)):
        valid = [layout.mask(side)[index].numpy() for side in grids]
        of_image = [each[index].double().numpy() for each in maps]
        cells = reference_aggregator(weights, of_image, valid, grid, group_grids, depth=2, num_heads=2)
        expected = torch.from_numpy(cells).view(grid, grid, -1)[box.top : box.bottom, box.left : box.right]
        tokens = image.tokens.double().view(box.rows, box.columns + 1, -1)
        assert torch.equal(tokens[:, -1], connector.image_newline.double().expand(box.rows, -1))
        assert (tokens[:, :-1] - expected).norm() / expected.norm() < 1e-5


def test_the_paths_agree_on_the_whole_connector(shaken):
    results = []
    for path in ("plain", "fast"):
        torch.manual_seed(0)
        connector = shaken(SpatialVisionAggregator((5, 6), (4, 8), 12, 4, width=8, num_heads=2, path=path))
        maps = [torch.randn(2, 5, 4, 4, requires_grad=True), torch.randn(2, 6, 8, 8, requires_grad=True)]
        tokens = torch.cat(
            [image.tokens for image in connector.encode(maps, ImageLayout(((30, 50), (9, 9))))]
        )
        tokens.square().sum().backward()
        results.append(
            [tokens.detach(), *(each.grad for each in maps), *(each.grad for each in connector.parameters())]
        )
    for plain, fast in zip(*results, strict=True):
        assert (plain - fast).norm() <= 1e-5 * plain.norm()


def test_context_is_of_the_first_encoder_or_of_all():
    maps = [torch.randn(1, 5, 4, 4), torch.randn(1, 6, 8, 8)]
    other = [maps[0], maps[1].clone()]
    other[1][..., :4, :] += torch.randn(1, 6, 4, 8)  # the upper half of the second encoder
    layout = ImageLayout(((8, 8),))
    for context, reaches in (("first", False), ("all", True)):
        torch.manual_seed(0)
        connector = SpatialVisionAggregator(
            (5, 6), (4, 8), 12, 4, newline=False, width=8, num_heads=2, context=context
        )
        changed = (
            connector.encode(maps, layout)[0].tokens - connector.encode(other, layout)[0].tokens
        ).abs().amax(1) > 1e-7
        assert changed[:8].all()
        assert changed[8:].any().item() is reaches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"grid": 3},
            "encoder 0 hands on a grid of 4 x 4, which the connector's 3 x 3 does not divide; hand on 3 ",
        ),
        ({"group_grids": (3,)}, "multiples of the group's 3"),
        ({"num_heads": 3}, "not a multiple of its 3 heads"),
        ({"depth": 0}, "depth of 1 or more"),
        ({"context": "some"}, "context is 'first' or 'all'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        SpatialVisionAggregator((5, 6), (4, 8), 12, **{"grid": 4, "width": 8, "num_heads": 2, **options})
