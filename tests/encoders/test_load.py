"""What a source text can be, and what is said about one that is wrong."""

import json

import pytest
import torch
from transformers import AutoImageProcessor, Dinov2Config, Dinov2Model

from encoders import list_encoders, load_encoder
from encoders.base import EncoderConfig
from encoders.load import check_source
from encoders.names import nearest_encoders
from encoders.preprocess import PUBLISHED_MARGIN, ImageTransform, save_image_processor
from encoders.saved import build_encoder
from vision_core.errors import UserError


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What pretraining leaves: config, weights, image processor."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        patch_size=8,
        image_size=32,
        layerscale_value=1e-5,
    )
    Dinov2Model(config).save_pretrained(folder)
    save_image_processor(folder, (32, 32), [0.4] * 3, [0.2] * 3, PUBLISHED_MARGIN)
    return folder


def test_a_run_of_pretraining(run_folder):
    encoder = load_encoder(run_folder)
    assert encoder.transform == ImageTransform(
        (32, 32), (0.4,) * 3, (0.2,) * 3, "crop", 37 / 32, preprocess="published"
    )
    assert not encoder.untrained and encoder.name == str(run_folder) and encoder.stride == 8
    assert load_encoder(run_folder, image_size=48).transform.size == (48, 48)
    assert load_encoder(run_folder, image_size=(48, 64)).transform.size == (48, 64)


def test_its_architecture_untrained(run_folder):
    trained, first, again, other = (
        load_encoder(run_folder),
        *(load_encoder(f"untrained:{run_folder}", seed=seed) for seed in (0, 0, 1)),
    )
    assert first.untrained and first.model.config.layerscale_value == 1.0
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(first(pixels).patch_map, again(pixels).patch_map)
    assert not torch.allclose(first(pixels).patch_map, other(pixels).patch_map)
    assert not torch.allclose(first(pixels).patch_map, trained(pixels).patch_map)


def test_random_weights_leave_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_encoder("tiny:clip")
    assert torch.equal(torch.rand(1), expected)


def test_frozen_or_not(run_folder):
    assert not any(parameter.requires_grad for parameter in load_encoder(run_folder).parameters())
    open_one = load_encoder(run_folder, frozen=False)
    assert all(parameter.requires_grad for parameter in open_one.parameters()) and open_one.train().training


def test_positions_can_be_antialiased(run_folder):
    pixels = torch.randn(1, 3, 16, 16)
    first, second = (
        load_encoder(run_folder, position_antialias=choice)(pixels).patch_map for choice in (False, True)
    )
    assert not torch.allclose(first, second)
    config = load_encoder(run_folder, position_antialias=True).config()
    assert (
        EncoderConfig.from_dict(config.to_dict()) == config
        and build_encoder(config).position_antialias is True
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "is no folder and names no encoder"),
        ("hub:facebook/dinov2-small", "names no encoder; nearest: hf:facebook/dinov2-small"),
        ("tiny:dinov4", "the families are dinov2"),
        ("timm:vit_smal_patch14_dinov2", "did you mean vit_small_patch14_dinov2"),
        ("open_clip:ViT-B-33/openai", "did you mean ViT-B-32"),
        (
            "open_clip:ViT-B-32/laion2b_s34b_b79",
            "has no weights laion2b_s34b_b79 for ViT-B-32; did you mean laion2b_s34b_b79k",
        ),
        ("open_clip:ViT-B-32", "names no weights"),
        ("hf:facebook/dinov2-smal", "cannot be loaded.*nearest: hf:facebook/dinov2-small"),
        ("dinov2_pth:absent.pth", "cannot be read as weights"),
        ("untrained:raw_pixels", "untrained: goes in front of"),
        ("untrained:tiny:clip", "untrained: goes in front of"),
    ],
)
def test_unknown_names(source, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for look_at in (load_encoder, check_source):
        with pytest.raises(UserError, match=said) as caught:
            look_at(source)
        assert "\n" not in str(caught.value)


def test_names_are_checked_without_their_weights(run_folder, tmp_path):
    for source in (
        "raw_pixels",
        "tiny:siglip",
        "timm:vit_small_patch14_dinov2",
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
        str(run_folder),
    ):
        assert check_source(source) is None
    (tmp_path / "config.json").write_text((run_folder / "config.json").read_text())
    with pytest.raises(UserError, match="has a config but no weights"):
        check_source(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text((run_folder / "preprocessor_config.json").read_text())
    assert check_source(f"untrained:{tmp_path}") is None


def test_folders_that_hold_no_encoder(run_folder, tmp_path):
    with pytest.raises(UserError, match="holds no encoder"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text((run_folder / "config.json").read_text())
    with pytest.raises(UserError, match="has a config but no weights"):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((run_folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((run_folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="has no image processor"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="is a bert, which is not a known vision tower"):
        load_encoder(tmp_path)


def test_a_checkpoint_without_some_weights(run_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in run_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights of a Dinov2Model, such as layernorm.weight"):
        load_encoder(tmp_path)


def test_sizes_layers_and_channels_that_do_not_fit(run_folder):
    with pytest.raises(UserError, match="a height of 50 is no multiple of the stride 8; use 48"):
        load_encoder(run_folder, image_size=50)
    with pytest.raises(UserError, match="layers 3 do not exist; it has 1 to 2"):
        load_encoder(run_folder, layers=[3])
    with pytest.raises(
        UserError, match=r"pixel_values must be \[batch, 3, height, width\], not \[1, 4, 32, 32\]"
    ):
        load_encoder(run_folder)(torch.zeros(1, 4, 32, 32))
    with pytest.raises(UserError, match="trained for 64 x 64 pixels and takes no other size"):
        load_encoder("tiny:aimv2", image_size=128)
    with pytest.raises(UserError, match="position_antialias is for"):
        load_encoder("tiny:timm_vit", position_antialias=True)
    with pytest.raises(
        UserError, match="position_antialias is for dinov2 and dinov2_with_registers, not siglip"
    ):
        build_encoder(
            EncoderConfig(**{**load_encoder("tiny:siglip").config().__dict__, "position_antialias": True})
        )


def test_a_native_size_that_is_no_multiple_of_the_patch():
    """SigLIP so400m at 384: 27 patches of 14, and 6 pixels that nothing sees."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from encoders.adapters.transformers_encoder import TransformersEncoder

    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "image_size": 62,
        "patch_size": 14,
    }
    encoder = TransformersEncoder(SiglipVisionModel(SiglipVisionConfig(**shape)), ImageTransform((62, 62)))
    assert encoder(torch.zeros(1, 3, 62, 62)).patch_map.shape == (1, 24, 4, 4) and encoder.grid(62, 62) == (
        4,
        4,
    )
    with pytest.raises(UserError, match="a height of 63 is no multiple of the stride 14; use 56"):
        encoder(torch.zeros(1, 3, 63, 62))
    with pytest.raises(UserError, match="layers 3 do not exist"):
        load_encoder("raw_pixels", layers=[3])


def test_names():
    assert "hf:google/siglip-base-patch16-224" in list_encoders("*siglip*") and len(list_encoders()) > 1500
    assert all("dinov2" in name.lower() for name in list_encoders("*DINOv2*"))
    assert list_encoders("nothing like this") == []
    assert "hf:facebook/dinov2-large" in nearest_encoders("facebook/dinov2_large")
    assert load_encoder("raw_pixels")(torch.zeros(1, 3, 64, 64)).pooled.shape == (1, 3072)


def test_the_processor_of_a_run_is_read_back(run_folder):
    processor = AutoImageProcessor.from_pretrained(run_folder, trust_remote_code=False)
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(load_encoder(run_folder).transform([image]), theirs, rtol=0, atol=2e-5)


def test_repositories_with_code_of_their_own_get_the_line_that_works(tmp_path):
    own_code = {
        "AutoConfig": "configuration_intern_vit.InternVisionConfig",
        "AutoModel": "modeling_intern_vit.InternVisionModel",
    }
    cases = {
        "intern_vit_6b": "hf:OpenGVLab/InternVL3-1B-hf",
        "internvl_chat": "the folder of the same name that ends in -hf",
        "radio": "hf:nvidia/C-RADIOv4-H",
        "somebodys_own": "in transformers' own format, or as timm:NAME",
    }
    for model_type, cure in cases.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": own_code}))
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match=f"needs code of its own .*which is never run here; .*{cure}"):
            load_encoder(tmp_path)


def test_files_that_are_named_without_their_kind(tmp_path):
    (tmp_path / "dinov2_vits14_pretrain.pth").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"is a file; write dinov2_pth:.*dinov2_vits14_pretrain.pth for a DINOv2"
    ):
        load_encoder(tmp_path / "dinov2_vits14_pretrain.pth")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="is a folder of open_clip; write open_clip:MODEL/"):
        load_encoder(tmp_path)
