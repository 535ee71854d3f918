"""The projection head."""

import copy

import pytest
import torch

from pretrain.heads import ProjectionHead


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
