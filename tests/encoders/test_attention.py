import pytest
import torch

from encoders import load_encoder
from encoders.attention import attention_maps, last_attention
from vision_core.errors import UserError

OWN_ROW = [
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "clip",
    "metaclip_2",
    "vit",
    "vit_mae",
    "internvl",
]


@pytest.fixture(autouse=True)
def larger_weights(monkeypatch):
    """Attention of freshly drawn weights is nearly even, in which a mistake would not show."""

    def load(family):
        encoder = load_encoder(f"tiny:{family}")
        for name, parameter in encoder.named_parameters():
            if parameter.ndim == 2:
                torch.manual_seed(len(name))
                torch.nn.init.normal_(parameter, std=0.3)
        return encoder

    return load


def pixels_for(encoder, batch=2):
    return torch.randn(batch, 3, *encoder.transform.size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*OWN_ROW, "ijepa"])
def test_against_transformers_own_attentions(family, implementation, larger_weights):
    encoder = larger_weights(family)
    pixels = pixels_for(encoder)
    encoder.model.set_attn_implementation("eager")
    grid = encoder.grid(*pixels.shape[-2:])
    with torch.no_grad():
        theirs = encoder.model(**encoder._inputs(pixels, grid), output_attentions=True).attentions[-1]
    theirs = (theirs[:, :, 0] if family in OWN_ROW else theirs.mean(2))[
        ..., encoder.num_prefix_tokens :
    ].unflatten(-1, grid)
    encoder.model.set_attn_implementation(implementation)
    ours = attention_maps(encoder, pixels)
    assert encoder.model.config._attn_implementation == implementation
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert (theirs / theirs.sum((2, 3), keepdim=True)).std() > 0.2 / grid[0] / grid[1]
    assert last_attention(encoder, pixels).query == ("cls" if family in OWN_ROW else "mean")


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_the_pooling_query_of_siglip(family, larger_weights):
    encoder = larger_weights(family)
    pixels = pixels_for(encoder)
    head, seen = encoder.model.head, {}
    handle = head.attention.register_forward_pre_hook(
        lambda module, args: seen.update(probe=args[0], tokens=args[1])
    )
    encoder(pixels)
    handle.remove()
    with torch.no_grad():
        _, weights = head.attention(seen["probe"], seen["tokens"], seen["tokens"], average_attn_weights=False)
    ours = attention_maps(encoder, pixels)
    torch.testing.assert_close(ours.flatten(2), weights[:, :, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.sum((2, 3)), torch.ones(2, 4))
    assert last_attention(encoder, pixels).query == "pooling"


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", ["timm_vit", "timm_dinov2"])
def test_timm_by_hand(family, fused, larger_weights):
    encoder = larger_weights(family)
    attention, seen = encoder.model.blocks[-1].attn, {}
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    pixels = pixels_for(encoder)
    handle = attention.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    ours = attention_maps(encoder, pixels)
    handle.remove()
    assert attention.fused_attn is fused
    with torch.no_grad():
        q, k, _ = (
            attention.qkv(seen["x"])
            .reshape(2, -1, 3, attention.num_heads, attention.head_dim)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        weights = (q[:, :, :1] @ k.mT * attention.scale).softmax(-1)[
            :, :, 0, encoder.model.num_prefix_tokens :
        ]
    torch.testing.assert_close(ours.flatten(2), weights, rtol=1e-4, atol=1e-6)


def test_open_clip_by_its_own_weights(larger_weights):
    encoder = larger_weights("open_clip_vit")
    block, seen = encoder.model.transformer.resblocks[-1], {}
    pixels = pixels_for(encoder)
    handle = block.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    ours = attention_maps(encoder, pixels)
    handle.remove()
    with torch.no_grad():
        x = block.ln_1(seen["x"])
        _, weights = block.attn(x, x, x, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(ours.flatten(2), weights[:, :, 0, 1:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["aimv2", "timm_siglip"])
def test_other_pooling_heads(family, larger_weights):
    encoder = larger_weights(family)
    attention = last_attention(encoder, pixels_for(encoder))
    maps = attention.maps
    assert maps.shape[-2:] == (8, 8) and attention.query == "pooling"
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(maps.shape[:2]))


@pytest.mark.parametrize("family", ["convnext", "timm_resnet", "open_clip_convnext"])
def test_without_attention(family):
    encoder = load_encoder(f"tiny:{family}")
    with pytest.raises(UserError, match=f"tiny:{family} has no attention that can be shown"):
        attention_maps(encoder, pixels_for(encoder))
    raw = load_encoder("raw_pixels")
    with pytest.raises(UserError, match="raw_pixels has no attention that can be shown"):
        attention_maps(raw, pixels_for(raw))


def test_everything_is_put_back_after_an_error():
    encoder = load_encoder("tiny:dinov2", frozen=False).train()
    encoder.model.set_attn_implementation("eager")
    encoder.model.encoder.layer[1].register_forward_hook(lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attention_maps(encoder, pixels_for(encoder))
    assert encoder.model.config._attn_implementation == "eager" and encoder.training


def test_features_do_not_change_while_attention_is_read(larger_weights):
    encoder = larger_weights("clip")
    pixels = pixels_for(encoder)
    before = encoder(pixels).patch_map
    attention_maps(encoder, pixels)
    assert torch.equal(before, encoder(pixels).patch_map)
