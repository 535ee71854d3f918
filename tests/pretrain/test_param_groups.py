"""Learning rate, weight decay and clipping by the role of each module."""

import pytest
import torch

from pretrain.backbone import build_backbone
from pretrain.heads import ProjectionHead
from pretrain.param_groups import apply_schedules, clip_per_module, parameter_groups


def test_groups_follow_the_published_rules():
    torch.manual_seed(0)
    backbone = build_backbone(32, 3, 2, patch_size=4, image_size=16, num_register_tokens=2)
    head = ProjectionHead(32, 10, 16, 4)
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
