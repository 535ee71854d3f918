"""The open_clip adapter against open_clip itself, on tiny random models that it is told of for the
test."""

import json

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from safetensors.torch import save_file

from encoders import load_encoder
from encoders.adapters.open_clip_encoder import (
    build_open_clip,
    load_both_towers,
    load_open_clip,
    open_clip_from_architecture,
    transform_from_preprocess,
)
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError

TEXT = {"context_length": 8, "vocab_size": 99, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 3, "width": 24, "head_width": 12, "patch_size": 8}
CONFIGS = {
    "tiny-vit": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-vit-average": {
        "embed_dim": 16,
        "vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT,
    },
    "tiny-convnext": {
        "embed_dim": 16,
        "vision_cfg": {
            "timm_model_name": "test_convnext",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": TEXT,
    },
    "tiny-timm-vit": {
        "embed_dim": 64,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "", "image_size": 160},
        "text_cfg": TEXT,
    },
    "tiny-timm-vit-without-cls": {
        "embed_dim": 16,
        "vision_cfg": {
            "timm_model_name": "vit_srelpos_small_patch16_224",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": TEXT,
    },
}


@pytest.fixture(autouse=True)
def models(monkeypatch):
    for name, config in CONFIGS.items():
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)


@pytest.fixture
def weights(tmp_path):
    """`weights(name, **options)`: a whole random model of open_clip and the file of its weights."""

    def make(name, **options):
        torch.manual_seed(0)
        model = open_clip.create_model(name, **options).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        path = tmp_path / f"{name}.safetensors"
        save_file(model.state_dict(), path)
        return model, str(path)

    return make


def pixels(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-vit-average", "tiny-convnext", "tiny-timm-vit"])
@torch.no_grad()
def test_pooled_is_the_image_vector_of_the_whole_model(name, weights):
    model, path = weights(name)
    encoder = load_open_clip(name, path, source="here")
    images = pixels(*encoder.transform.size)
    assert encoder.pooled_width == CONFIGS[name]["embed_dim"] and encoder.name == "here"
    torch.testing.assert_close(encoder(images).pooled, model.encode_image(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_layers_of_a_vit_are_what_its_blocks_left(norm, weights):
    _, path = weights("tiny-vit")
    encoder = load_open_clip("tiny-vit", path, norm=norm, layers=[1, 3])
    left = {}
    for number, block in enumerate(encoder.model.transformer.resblocks, start=1):
        block.register_forward_hook(lambda module, args, output, number=number: left.update({number: output}))
    features = encoder(pixels(32, 32))
    assert [layer.number for layer in features.layers] == [1, 3]
    for layer in features.layers:
        tokens = encoder.model.ln_post(left[layer.number]) if norm else left[layer.number]
        assert layer.patch_map.shape == (2, 24, 4, 4) and layer.normalised is norm
        for row, column in ((0, 0), (0, 3), (2, 1)):
            torch.testing.assert_close(layer.patch_map[:, :, row, column], tokens[:, 1 + 4 * row + column])
        torch.testing.assert_close(layer.cls, tokens[:, 0])
    torch.testing.assert_close(features.pooled, encoder.model.ln_post(left[3])[:, 0] @ encoder.model.proj)


@torch.no_grad()
def test_layers_of_a_convnext_are_those_of_its_trunk(weights):
    _, path = weights("tiny-convnext")
    encoder = load_open_clip("tiny-convnext", path)
    layers = encoder(pixels(64, 96), range(1, 5)).layers
    expected = encoder.model.trunk.forward_intermediates(pixels(64, 96), intermediates_only=True)
    for layer, raw in zip(layers[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(layer.patch_map, raw)
    assert [layer.normalised for layer in layers] == [False, False, False, True] and encoder.grid(64, 96) == (
        2,
        3,
    )
    one_place = encoder(pixels(32, 32))
    torch.testing.assert_close(
        encoder.model.head(one_place.patch_map[..., 0, 0]), one_place.pooled, rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_a_timm_vit_has_its_cls_and_norm(weights):
    _, path = weights("tiny-timm-vit")
    encoder = load_open_clip("tiny-timm-vit", path)
    tokens = encoder.model.trunk.forward_features(pixels(160, 160))
    features = encoder(pixels(160, 160))
    torch.testing.assert_close(
        features.patch_map.flatten(2).transpose(1, 2), tokens[:, 1:], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(features.cls, tokens[:, 0], rtol=1e-5, atol=1e-5)
    assert features.normalised
    assert encoder.has_cls


def test_a_timm_vit_without_any_token_in_front():
    """open_clip fails where it is asked for prefix tokens of such a trunk (PE-Core-bigG-14-448 is
    one)."""
    with torch.device("meta"):
        encoder = load_open_clip("tiny-timm-vit-without-cls", None)
        features = encoder(torch.zeros(1, 3, 224, 224))
    assert features.cls is None and features.patch_map.shape == (1, 384, 14, 14)


@pytest.mark.parametrize(
    ("name", "size"), [("tiny-vit", (48, 32)), ("tiny-timm-vit", (96, 64)), ("tiny-convnext", (96, 64))]
)
@torch.no_grad()
def test_another_size_is_open_clips_own_resampling_and_survives_a_round_trip(name, size, weights):
    _, path = weights(name)
    encoder = load_open_clip(name, path, image_size=size)
    whole = open_clip.create_model(name, pretrained=path, force_image_size=size).eval()
    assert encoder.transform.size == size
    torch.testing.assert_close(
        encoder(pixels(*size)).pooled, whole.encode_image(pixels(*size)), rtol=1e-5, atol=1e-6
    )
    architecture = json.loads(json.dumps(encoder.architecture()))
    built = open_clip_from_architecture(architecture, encoder.transform, dtype=torch.float32).eval()
    built.load_state_dict(encoder.state_dict())
    assert torch.equal(built(pixels(*size)).patch_map, encoder(pixels(*size)).patch_map)
    assert torch.equal(built(pixels(*size)).pooled, encoder(pixels(*size)).pooled)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-timm-vit"])
def test_a_size_that_a_vit_was_not_made_for(name):
    encoder = build_open_clip(CONFIGS[name])
    side = CONFIGS[name]["vision_cfg"]["image_size"]
    with pytest.raises(
        UserError,
        match=f"images of {side} x {side} pixels and no other size, such as {side} x {2 * side}; load it with image",
    ):
        encoder(pixels(side, 2 * side))


def test_the_size_of_a_vit_need_not_be_a_multiple_of_its_patch():
    """As SigLIP's 384 with patches of 14: the last pixels are left out."""
    encoder = build_open_clip({**CONFIGS["tiny-vit"], "vision_cfg": {**VIT, "image_size": 37}})
    assert encoder(pixels(37, 37)).patch_map.shape[-2:] == (4, 4) == encoder.grid(37, 37)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-convnext", "tiny-timm-vit"])
def test_the_description_alone_makes_the_tower(name):
    encoder = load_open_clip(name, None, untrained=True)
    with torch.device("meta"):
        built = open_clip_from_architecture(
            json.loads(json.dumps(encoder.architecture())), encoder.transform, dtype=torch.float32
        )
    assert all(parameter.device.type == "meta" for parameter in built.parameters())
    assert {key: value.shape for key, value in built.state_dict().items()} == {
        key: value.shape for key, value in encoder.state_dict().items()
    }
    assert (
        CONFIGS[name] == factory._MODEL_CONFIGS[name] and "quick_gelu" not in CONFIGS[name]
    )  # open_clip's own are left as they were


@torch.no_grad()
def test_the_activation_is_that_of_the_weights(weights, monkeypatch):
    """As ViT-B-32/openai: the model's description says nothing, that of the weights says QuickGELU,
    and open_clip only warns."""
    model, path = weights("tiny-vit", force_quick_gelu=True)
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-vit", {"quick": {"url": "nowhere", "quick_gelu": True}})
    monkeypatch.setattr(factory, "download_pretrained", lambda *args, **kwargs: path)
    encoder = load_open_clip("tiny-vit", "quick")
    torch.testing.assert_close(
        encoder(pixels(32, 32)).pooled, model.encode_image(pixels(32, 32)), rtol=1e-5, atol=1e-6
    )
    with pytest.warns(UserWarning, match="QuickGELU mismatch"):
        wrong = open_clip.create_model("tiny-vit", pretrained="quick").eval()
    assert not torch.allclose(encoder(pixels(32, 32)).pooled, wrong.encode_image(pixels(32, 32)), atol=1e-4)
    built = open_clip_from_architecture(encoder.architecture(), encoder.transform, dtype=torch.float32).eval()
    built.load_state_dict(encoder.state_dict())
    assert torch.equal(built(pixels(32, 32)).pooled, encoder(pixels(32, 32)).pooled)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-convnext"])
@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_a_checkpoint_of_open_clips_own_training(name, prefix, weights, tmp_path):
    """What `open_clip_train/main.py` writes as epoch_3.pt, with and without distributed
    training."""
    model, _ = weights(name)
    optimizer = torch.optim.AdamW(model.parameters())
    state = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    checkpoint = {"epoch": 3, "name": "a run", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, tmp_path / "epoch_3.pt")
    encoder = load_encoder(f"open_clip:{name}/{tmp_path / 'epoch_3.pt'}")
    images = pixels(*encoder.transform.size)
    torch.testing.assert_close(encoder(images).pooled, model.encode_image(images), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.nn.Identity()}}, tmp_path / "epoch_3.pt")
    with pytest.raises(UserError, match="epoch_3.pt cannot be loaded"):
        load_encoder(f"open_clip:tiny-vit/{tmp_path / 'epoch_3.pt'}")
    with pytest.raises(
        UserError,
        match="epoch_3.pt is a file; write .*open_clip:MODEL/.*epoch_3.pt for a checkpoint of open_clip",
    ):
        load_encoder(tmp_path / "epoch_3.pt")


def test_a_folder_named_like_a_tag_hides_no_weights(weights, monkeypatch, tmp_path):
    _, path = weights("tiny-vit")
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-vit", {"openai": {"url": "nowhere"}})
    monkeypatch.setattr(factory, "download_pretrained", lambda *args, **kwargs: path)
    (tmp_path / "openai").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not load_open_clip("tiny-vit", "openai").untrained


def test_preprocessing():
    as_published = {"preprocess": "published", "resampler": "pillow"}
    assert transform_from_preprocess({"size": 224}) == ImageTransform(
        (224, 224), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), **as_published
    )
    said = {
        "size": (64, 96),
        "resize_mode": "squash",
        "interpolation": "bilinear",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    assert transform_from_preprocess(said) == ImageTransform(
        (64, 96), (0.5,) * 3, (0.5,) * 3, "squash", 1.0, "bilinear", **as_published
    )
    with pytest.raises(UserError, match="resize_mode longest pads images, which is not understood"):
        transform_from_preprocess({"resize_mode": "longest"})


def test_wrong_names_and_files(tmp_path, weights):
    for load in (load_open_clip, load_both_towers):
        with pytest.raises(UserError, match="open_clip has no model tiny-vitt; did you mean tiny-vit"):
            load("tiny-vitt", "openai")
        with pytest.raises(UserError, match="open_clip has no weights laion for tiny-vit; it has none"):
            load("tiny-vit", "laion")
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="weights.bin is not a .safetensors file; convert it"):
        load_open_clip("tiny-vit", str(tmp_path / "weights.bin"))
    _, path = weights("tiny-convnext")
    with pytest.raises(
        UserError, match="open_clip:tiny-vit/.* cannot be loaded .*check the file, or the network"
    ):
        load_open_clip("tiny-vit", path)


@pytest.mark.parametrize(
    "vision", [{**VIT, "layers": [1, 1, 1, 1], "head_width": 8}, {**VIT, "attentional_pool": True}]
)
def test_towers_that_are_not_understood(vision):
    with pytest.raises(UserError, match="neither a plain ViT nor a timm model"):
        build_open_clip({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT})


def test_without_open_clip(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(
        UserError, match=r"needs the package open_clip_torch; pip install 'vision-encoder-fusion\[encoders\]'"
    ):
        load_open_clip("ViT-B-32", "openai")
