"""Heads, parameter groups and the published initialisation."""

import copy

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from pretrain.backbone import build_backbone
from pretrain.heads import ProjectionHead
from pretrain.initial_weights import load_backbone_weights, resize_position_embeddings
from pretrain.param_groups import apply_schedules, clip_per_module, parameter_groups
from vision_core.errors import UserError


def tiny(registers=0, **settings):
    torch.manual_seed(0)
    return build_backbone(32, 3, 2, patch_size=4, image_size=16, num_register_tokens=registers, **settings)


@pytest.mark.parametrize(
    ("prototypes", "bottleneck", "millions"),
    [(65_536, 256, 23.7), (131_072, 384, 57.5), (131_072, 256, 40.5)],
)
def test_head_sizes_of_the_large_models(prototypes, bottleneck, millions):
    with torch.device("meta"):
        head = ProjectionHead(1024, prototypes, 2048, bottleneck)
    count = sum(parameter.numel() for parameter in head.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.2)


def test_head_is_its_formula():
    torch.manual_seed(0)
    head, tokens = ProjectionHead(8, 10, 16, 4), torch.randn(5, 8)
    hidden = tokens
    for module in head.mlp:
        hidden = module(hidden)
    weight = head.last_layer.parametrizations.weight
    rows = weight.original0 * weight.original1 / weight.original1.norm(dim=1, keepdim=True)
    expected = hidden / hidden.norm(dim=1, keepdim=True) @ rows.T
    torch.testing.assert_close(head(tokens), expected)
    assert weight.original0.eq(1).all() and weight.original0.requires_grad
    assert not ProjectionHead(
        8, 10, 16, 4, train_weight_g=False
    ).last_layer.parametrizations.weight.original0.requires_grad
    assert torch.equal(copy.deepcopy(head)(tokens), head(tokens))
    assert head(torch.zeros(0, 8)).shape == (0, 10)


@pytest.mark.parametrize(("width", "hidden"), [(1024, 2736), (1536, 4096)])
def test_swiglu_width(width, hidden):
    with torch.device("meta"):
        model = Dinov2Model(
            Dinov2Config(hidden_size=width, num_hidden_layers=1, num_attention_heads=16, use_swiglu_ffn=True)
        )
    assert model.encoder.layer[0].mlp.gate_proj.out_features == hidden


def test_published_initialisation():
    backbone = tiny(registers=4, layerscale_value=1e-5, register_init_std=1e-6)
    embeddings = backbone.embeddings
    assert embeddings.cls_token.abs().max() < 1e-5 and embeddings.cls_token.abs().max() > 0
    registers = embeddings.register_tokens[0]
    assert (registers[0] - registers[1]).abs().max() > 0 and registers.abs().max() < 1e-5
    assert embeddings.mask_token.abs().max() == 0
    assert embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.1)
    layer = backbone.encoder.layer[0]
    assert layer.layer_scale1.lambda1.eq(1e-5).all()
    assert (
        layer.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
        and layer.mlp.fc1.bias.abs().max() == 0
    )
    # the convolution keeps PyTorch's own: uniform within 1 / sqrt(fan in) = 1 / sqrt(48)
    assert 0.13 < embeddings.patch_embeddings.projection.weight.abs().max() <= 48**-0.5


def test_groups_follow_the_published_rules():
    backbone, head = tiny(registers=2), ProjectionHead(32, 10, 16, 4)
    groups = parameter_groups(backbone, [head], layerwise_decay=0.5, patch_embed_lr_mult=0.2)
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    everything = [*backbone.parameters(), *head.parameters()]
    assert sum(len(group["params"]) for group in groups) == len(everything) == len(found)

    def rule(parameter):
        group = found[id(parameter)]
        return group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"]

    embeddings, layer = backbone.embeddings, backbone.encoder.layer[1]
    for token in (
        embeddings.cls_token,
        embeddings.mask_token,
        embeddings.position_embeddings,
        embeddings.register_tokens,
    ):
        assert rule(token) == (0.5**4, 1.0, False)
    assert rule(embeddings.patch_embeddings.projection.weight) == (0.5**4 * 0.2, 1.0, False)
    assert rule(embeddings.patch_embeddings.projection.bias) == (0.5**4 * 0.2, 0.0, False)
    assert rule(layer.mlp.fc1.weight) == (0.5**2, 1.0, False)
    for undecayed in (layer.mlp.fc1.bias, layer.norm1.weight, layer.norm1.bias, layer.layer_scale1.lambda1):
        assert rule(undecayed) == (0.5**2, 0.0, False)
    assert rule(backbone.layernorm.weight) == (1.0, 0.0, False)
    assert rule(head.mlp[0].weight) == (1.0, 1.0, False)
    for norm_and_direction in head.last_layer.parameters():
        assert rule(norm_and_direction) == (1.0, 1.0, True)
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    apply_schedules(optimizer, 1e-3, 0.0, 0.1)
    assert {
        (group["lr"], group["weight_decay"]) for group in optimizer.param_groups if group["is_last_layer"]
    } == {(0.0, 0.1)}


def test_each_module_is_clipped_by_its_own_norm():
    left, right = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
    left.weight.grad, right.weight.grad = torch.full((3, 3), 10.0), torch.full((3, 3), 0.1)
    norms = clip_per_module({"left": left, "right": right}, 3.0)
    assert norms["left"].item() == pytest.approx(30) and norms["right"].item() == pytest.approx(0.3)
    assert left.weight.grad.norm().item() == pytest.approx(
        3, rel=1e-4
    ) and right.weight.grad.norm().item() == pytest.approx(0.3)


def test_weights_of_another_grid_are_resized_and_other_shapes_refused(tmp_path):
    donor = tiny()
    donor.save_pretrained(tmp_path)
    torch.manual_seed(1)
    larger = build_backbone(32, 3, 2, patch_size=4, image_size=32)
    lines = load_backbone_weights(larger, str(tmp_path))
    assert "resized from 4 x 4 to 8 x 8" in lines[1]
    assert torch.equal(larger.encoder.layer[0].mlp.fc1.weight, donor.encoder.layer[0].mlp.fc1.weight)
    wider = build_backbone(64, 3, 2, patch_size=4, image_size=16)
    with pytest.raises(UserError, match="do not fit"):
        load_backbone_weights(wider, str(tmp_path))


def test_resizing_a_constant_grid_keeps_it():
    table = torch.cat([torch.zeros(1, 1, 6), torch.ones(1, 16, 6)], dim=1)
    resized = resize_position_embeddings(table, 7)
    assert resized.shape == (1, 50, 6)
    torch.testing.assert_close(resized[:, 1:], torch.ones(1, 49, 6))
