import pytest
import torch
from torch.nn import functional as F

from encoders.evaluation.dpt_head import DPTHead, FusionBlock, ResidualConvUnit


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 4), (5, 7), (16, 9)])
def test_any_grid(grid):
    head = DPTHead(6, channels=8, out_channels=5)
    assert head(*torch.randn(4, 2, 6, *grid)).shape == (2, 5, 4 * grid[0], 4 * grid[1])


def test_strides_of_the_reassembled_maps():
    """A patch of 16 pixels: strides 4, 8, 16, 32."""
    head = DPTHead(6, channels=8)
    layer = torch.randn(1, 6, 6, 10)
    assert [tuple(reassemble(layer).shape[1:]) for reassemble in head.reassemble] == [
        (8, 24, 40),
        (8, 12, 20),
        (8, 6, 10),
        (8, 3, 5),
    ]


def test_residual_unit_and_fusion_are_their_formulas():
    unit = ResidualConvUnit(3)
    x = torch.randn(1, 3, 4, 4)
    inner = F.conv2d(x.clamp_min(0), unit.first.weight, unit.first.bias, padding=1).clamp_min(0)
    assert torch.allclose(
        unit(x), x + F.conv2d(inner, unit.second.weight, unit.second.bias, padding=1), atol=1e-6
    )

    block, coarser = FusionBlock(3, joins=True), torch.randn(1, 3, 4, 4)
    upsampled = F.interpolate(block.refine(block.entry(x) + coarser), scale_factor=2, mode="bilinear")
    assert torch.allclose(block(x, coarser, (8, 8)), block.project(upsampled), atol=1e-6)


def test_every_layer_and_every_weight_counts():
    head = DPTHead(6, channels=8, out_channels=5)
    layers = torch.randn(4, 2, 6, 3, 3, requires_grad=True)
    head(*layers).square().mean().backward()
    assert all(gradient.abs().sum() > 0 for gradient in layers.grad)
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.parameters()
    )
    with torch.no_grad():
        assert not torch.allclose(head(*layers), head(*layers.flip(0)))


def test_translation_by_two_patches_moves_the_output():
    """Away from the borders: what is seen moves along, by four pixels a patch."""
    head = DPTHead(4, channels=4, out_channels=2).eval()
    layers = torch.randn(4, 1, 4, 40, 40)
    with torch.no_grad():
        output, moved = head(*layers), head(*layers.roll((2, 2), (-2, -1)))
    centre = slice(72, 88)
    assert torch.allclose(
        output.roll((8, 8), (-2, -1))[..., centre, centre], moved[..., centre, centre], atol=1e-4
    )


def test_four_layers():
    with pytest.raises(ValueError):
        DPTHead(4, channels=4)(*torch.randn(3, 1, 4, 2, 2))
