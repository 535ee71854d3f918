"""The published layout, played by timm, which has the published names."""

import pytest
import timm
import torch

from encoders import load_encoder
from encoders.adapters.dinov2_weights import convert_dinov2, load_dinov2_pth, names_in_transformers
from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError


def timm_model(registers=0):
    """A small DINOv2 of timm with heads of 64, random in every parameter."""
    torch.manual_seed(0)
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    model = timm.create_model(
        name, img_size=70, embed_dim=128, depth=3, num_heads=2, num_classes=0, dynamic_img_size=True
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def published(model):
    """timm's state under the published names: a CLS position in front of the patches', and a mask
    token."""
    state = {
        key.replace("reg_token", "register_tokens"): value.clone()
        for key, value in model.state_dict().items()
    }
    if "register_tokens" in state:  # timm adds the CLS position into the token when it loads a published file
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, 128), state["pos_embed"]], dim=1)
    return state | {"mask_token": torch.zeros(1, 128)}


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("chunked", [False, True])
def test_same_weights_same_patch_features(registers, chunked, tmp_path):
    model = timm_model(registers)
    state = published(model)
    if chunked:  # the layout of a teacher dump
        state = {f"backbone.{key.replace('blocks.', 'blocks.0.')}": value for key, value in state.items()}
        state = {"teacher": state | {"dino_head.mlp.0.weight": torch.zeros(3)}}
    torch.save(state, tmp_path / "weights.pth")
    encoder = load_encoder(f"dinov2_pth:{tmp_path / 'weights.pth'}", image_size=70)
    pixels = torch.randn(2, 3, 70, 70)
    with torch.no_grad():
        theirs = model.forward_features(pixels)[:, 1 + registers :]
    ours = encoder(pixels).patch_map.flatten(2).transpose(1, 2)
    assert (ours - theirs).abs().max() < 1e-4
    report = encoder.conversion
    assert not report.missing and report.unused == (["dino_head.mlp.0.weight"] if chunked else [])
    assert report.matched[next(key for key in report.matched if key.endswith("0.attn.qkv.bias"))] == [
        f"encoder.layer.0.attention.{name}_proj.bias" for name in "qkv"
    ]
    assert "published keys matched" in str(report) and "missing" in str(report).splitlines()[0]


@pytest.mark.parametrize("registers", [0, 4])
def test_at_another_size_antialiasing_is_the_difference_to_timm(registers):
    """Below the stored grid the two libraries resample positions differently; the option makes them
    agree."""
    model = timm_model(registers)
    converted, _ = convert_dinov2(published(model))
    pixels = torch.randn(2, 3, 42, 56)
    with torch.no_grad():
        theirs = model.forward_features(pixels)[:, 1 + registers :]
    differences = {}
    for antialias in (False, True):
        encoder = TransformersEncoder(converted, ImageTransform((42, 56)), position_antialias=antialias)
        differences[antialias] = (
            (encoder(pixels).patch_map.flatten(2).transpose(1, 2) - theirs).abs().max().item()
        )
    assert differences[True] < 1e-4 < 5e-3 < differences[False]


def test_the_gated_mlp_is_the_published_one():
    """w12 holds gate and value in this order: silu(x w1) * (x w2), then w3."""
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(
        Dinov2Config(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            use_swiglu_ffn=True,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = model.state_dict()
    file = {
        "cls_token": state["embeddings.cls_token"],
        "mask_token": state["embeddings.mask_token"],
        "pos_embed": state["embeddings.position_embeddings"],
    }
    for part in ("weight", "bias"):
        file[f"patch_embed.proj.{part}"] = state[f"embeddings.patch_embeddings.projection.{part}"]
        file[f"norm.{part}"] = state[f"layernorm.{part}"]
        for i in range(2):
            layer = f"encoder.layer.{i}"
            file[f"blocks.{i}.norm1.{part}"], file[f"blocks.{i}.norm2.{part}"] = (
                state[f"{layer}.norm1.{part}"],
                state[f"{layer}.norm2.{part}"],
            )
            file[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(
                [state[f"{layer}.attention.{name}_proj.{part}"] for name in "qkv"]
            )
            file[f"blocks.{i}.attn.proj.{part}"] = state[f"{layer}.attention.o_proj.{part}"]
            file[f"blocks.{i}.mlp.w12.{part}"] = torch.cat(
                [state[f"{layer}.mlp.{name}_proj.{part}"] for name in ("gate", "up")]
            )
            file[f"blocks.{i}.mlp.w3.{part}"] = state[f"{layer}.mlp.down_proj.{part}"]
            if part == "weight":
                for number in (1, 2):
                    file[f"blocks.{i}.ls{number}.gamma"] = state[f"{layer}.layer_scale{number}.lambda1"]
    converted, report = convert_dinov2(file)
    assert not report.missing and not report.unused
    pixels = torch.randn(1, 3, 28, 28)
    x = torch.randn(5, 128)
    mlp = converted.encoder.layer[0].mlp
    w12, b12, w3, b3 = (
        file[f"blocks.0.mlp.{name}"] for name in ("w12.weight", "w12.bias", "w3.weight", "w3.bias")
    )
    gate, value = (x @ w12.T + b12).chunk(2, dim=-1)
    torch.testing.assert_close(
        mlp(x), (torch.nn.functional.silu(gate) * value) @ w3.T + b3, rtol=1e-4, atol=1e-4
    )
    assert torch.equal(converted(pixels).last_hidden_state, model.eval()(pixels).last_hidden_state)


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_dinov2_pth(tmp_path / "absent.pth")
    torch.save({"state": [1, 2]}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not a DINOv2 backbone"):
        load_dinov2_pth(tmp_path / "other.pth")
    state = published(timm_model())
    del state["blocks.1.norm1.weight"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(UserError, match=r"nothing for 1 weights, such as encoder.layer.1.norm1.weight"):
        load_dinov2_pth(tmp_path / "partial.pth")


def test_unknown_keys_have_no_place():
    assert (
        names_in_transformers("head.weight") == []
        and names_in_transformers("blocks.3.other.bias") == []
        and names_in_transformers("norm.bias") == ["layernorm.bias"]
    )


@pytest.mark.parametrize(("width", "name"), [(384, "vits16"), (1024, "vitl16"), (4096, "vit7b16")])
def test_dinov3_files_and_shares_of_sharded_weights(tmp_path, width, name):
    """Names of facebookresearch/dinov3's vision_transformer.py, and of FSDP's local states."""
    state = {
        "cls_token": torch.zeros(1, 1, width),
        "storage_tokens": torch.zeros(1, 4, width),
        "rope_embed.periods": torch.zeros(16),
    }
    torch.save(state | {"patch_embed.proj.weight": torch.zeros(width, 3, 16, 16)}, tmp_path / "dinov3.pth")
    with pytest.raises(
        UserError,
        match=rf"is a DINOv3.*hf:facebook/dinov3-{name}-pretrain-lvd1689m, .*accept the licence.*timm:\*dinov3",
    ):
        load_encoder(f"dinov2_pth:{tmp_path / 'dinov3.pth'}")
    shares = {"model": {"teacher.backbone._fsdp_wrapped_module._flat_param": torch.zeros(3)}}
    torch.save(shares, tmp_path / "model_0000.rank_0.pth")
    with pytest.raises(
        UserError,
        match="one process's share of sharded weights; give the eval/training_N/teacher_checkpoint.pth",
    ):
        load_encoder(f"dinov2_pth:{tmp_path / 'model_0000.rank_0.pth'}")
