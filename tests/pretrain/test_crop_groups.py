"""Crop groups against plain separate forwards: the same numbers and the same gradients."""

import copy

import pytest
import torch

from pretrain.backbone import build_backbone
from pretrain.crop_groups import draw_kept_crops, forward_crop_groups


def small_backbone(registers: int, swiglu: bool = False):
    torch.manual_seed(0)
    backbone = build_backbone(
        48,
        3,
        3,
        patch_size=4,
        image_size=32,
        num_register_tokens=registers,
        use_swiglu_ffn=swiglu,
        layerscale_value=1.0,
    )
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def crops_and_masks(dtype=torch.float32):
    torch.manual_seed(1)
    crops = [torch.randn(shape).to(dtype) for shape in ((6, 3, 32, 32), (10, 3, 16, 16), (3, 3, 8, 24))]
    return crops, [torch.rand(6, 64) < 0.3, None, torch.rand(3, 12) < 0.5]


def separate_forward(backbone, crops, mask, kept):
    """One group alone, layer by layer, every branch computed for all crops and then kept or not."""
    tokens = backbone.embeddings(crops, bool_masked_pos=mask)
    for layer, (attention_rows, feed_forward_rows) in zip(backbone.encoder.layer, kept, strict=True):
        attended, _ = layer.attention(layer.norm1(tokens))
        tokens = tokens + keep(layer.layer_scale1(attended), attention_rows)
        tokens = tokens + keep(layer.layer_scale2(layer.mlp(layer.norm2(tokens))), feed_forward_rows)
    return backbone.layernorm(tokens)


def keep(branch, rows):
    weight = torch.zeros(len(branch), 1, 1, dtype=branch.dtype)
    weight[rows] = len(branch) / len(rows)
    return branch * weight


def relative_difference(left, right):
    return ((left - right).norm() / right.norm()).item()


def gradients(backbone, outputs):
    weights = [
        torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output) for output in outputs
    ]
    loss = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
    # the softmax does not see a bias of the keys: its gradient is 0 in exact arithmetic and only
    # rounding here
    parameters = [value for name, value in backbone.named_parameters() if not name.endswith("k_proj.bias")]
    return torch.autograd.grad(loss, parameters)


def assert_same(backbone, together, alone):
    """Outputs and gradients: to 1e-5 in float32 (all gradients as one vector), to 1e-10 in float64
    (every tensor by itself)."""
    exact = together[0].dtype == torch.float64
    left, right = gradients(backbone, together), gradients(backbone, alone)
    if not exact:
        left, right = ([torch.cat([gradient.flatten() for gradient in side])] for side in (left, right))
    differences = [
        relative_difference(*pair) for pair in zip([*together, *left], [*alone, *right], strict=True)
    ]
    print(f"largest relative difference {max(differences):.1e}")  # docs/results.md reads it from pytest -rP
    assert max(differences) < (1e-10 if exact else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_equals_the_models_own_forward(registers, swiglu, recompute, dtype):
    backbone, (groups, masks) = small_backbone(registers, swiglu).to(dtype), crops_and_masks(dtype)
    together = forward_crop_groups(backbone, groups, masks, recompute=recompute)
    alone = [
        backbone(crops, bool_masked_pos=mask).last_hidden_state
        for crops, mask in zip(groups, masks, strict=True)
    ]
    assert_same(backbone, together, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("registers", [0, 2])
def test_drop_path_equals_separate_forwards_with_the_same_rows(registers, dtype):
    backbone, (groups, masks) = small_backbone(registers).to(dtype), crops_and_masks(dtype)
    kept = draw_kept_crops(3, [6, 10, 3], 0.4)
    together = forward_crop_groups(backbone, groups, masks, kept)
    alone = []
    for index, (crops, mask) in enumerate(zip(groups, masks, strict=True)):
        rows = [(attention[index], feed_forward[index]) for attention, feed_forward in kept]
        alone.append(separate_forward(backbone, crops, mask, rows))
    assert_same(backbone, together, alone)


def test_dropped_crops_cost_nothing():
    """The feed-forward layer sees 60 % of the tokens at a drop path rate of 0.4."""
    backbone, (groups, masks) = small_backbone(0), crops_and_masks()
    seen = []
    backbone.encoder.layer[0].mlp.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0]))
    )
    forward_crop_groups(backbone, groups[:2], masks[:2], draw_kept_crops(3, [6, 10], 0.4))
    assert seen == [3 * 65 + 6 * 17]


def test_kept_rows_are_the_published_number_and_differ_between_branches():
    torch.manual_seed(0)
    kept = draw_kept_crops(12, [20, 1], 0.3)
    assert all(len(rows[0]) == 14 and len(rows[1]) == 1 for branches in kept for rows in branches)
    assert len({tuple(rows[0].tolist()) for branches in kept for rows in branches}) == 24
    assert draw_kept_crops(12, [20], 0.0) is None


def test_works_on_a_copy_as_the_teacher_does():
    backbone, (groups, _) = small_backbone(1), crops_and_masks()
    left, right = (
        forward_crop_groups(copy.deepcopy(backbone), groups),
        forward_crop_groups(backbone, groups),
    )
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
