"""The published shape and initialisation of the backbone."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from pretrain.backbone import build_backbone


@pytest.mark.parametrize(("width", "hidden"), [(1024, 2736), (1536, 4096)])
def test_swiglu_width(width, hidden):
    with torch.device("meta"):
        model = Dinov2Model(
            Dinov2Config(hidden_size=width, num_hidden_layers=1, num_attention_heads=16, use_swiglu_ffn=True)
        )
    assert model.encoder.layer[0].mlp.gate_proj.out_features == hidden


def test_published_initialisation():
    torch.manual_seed(0)
    backbone = build_backbone(
        32,
        3,
        2,
        patch_size=4,
        image_size=16,
        num_register_tokens=4,
        layerscale_value=1e-5,
        register_init_std=1e-6,
    )
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
