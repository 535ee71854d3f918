"""Vision towers of transformers against the bare models of the library."""

import json

import pytest
import torch

from encoders import load_encoder
from encoders.adapters.transformers_encoder import TransformersEncoder

PREFIX_TOKENS = {
    "dinov2": 1,
    "dinov2_with_registers": 5,
    "dinov3_vit": 5,
    "siglip": 0,
    "siglip2": 0,
    "clip": 1,
    "vit_mae": 1,
    "ijepa": 0,
    "aimv2": 0,
    "radio": 10,
    "tipsv2": 2,
}
WHOLE = {
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    "aimv2": "Aimv2Model",
}


PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 64},
    "crop_size": {"height": 64, "width": 64},
    "do_center_crop": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
}


@pytest.fixture(scope="module")
def encoders():
    made = {}
    return lambda family: (
        made.setdefault(family, load_encoder(f"tiny:{family}")) if family not in made else made[family]
    )


def pixels_for(encoder, batch=3, size=None):
    return torch.randn(
        batch, 3, *(size or encoder.transform.size), generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("family", sorted(PREFIX_TOKENS))
def test_against_the_bare_model_of_transformers(encoders, family):
    """The table of specs: how many tokens stand in front, which outputs are behind the norm."""
    encoder = encoders(family)
    if family == "siglip2":
        pytest.skip("takes patches; the test below compares it with its image processor")
    pixels = pixels_for(encoder, 2)
    captured = {}
    blocks = next(
        module
        for module in encoder.model.modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == 4
    )

    def keep(number):
        return lambda module, args, output: captured.update(
            {number: output[0] if isinstance(output, tuple) else output}
        )

    handles = [block.register_forward_hook(keep(number)) for number, block in enumerate(blocks, start=1)]
    features = encoder(pixels, [2, 4])
    for handle in handles:
        handle.remove()
    for layer in features.layers:
        norm = getattr(encoder.model, encoder.family.norm) if encoder.family.norm else torch.nn.Identity()
        tokens = norm(captured[layer.number])[:, PREFIX_TOKENS[family] :]
        torch.testing.assert_close(layer.patch_map.flatten(2).transpose(1, 2), tokens, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["internvl", "radio"])
def test_a_model_without_a_norm_says_so(encoders, family):
    assert not encoders(family)(pixels_for(encoders(family), 1)).normalised


def test_radio_pools_its_summary_and_normalises_pixels_itself(encoders):
    encoder = encoders("radio")
    pixels = pixels_for(encoder, 2)
    assert encoder.pooled_width == 2 * encoder.width
    assert torch.equal(encoder(pixels).pooled, encoder.model(pixels).summary)
    torch.testing.assert_close(encoder(pixels).patch_map.flatten(2).mT, encoder.model(pixels).features)


def test_the_tower_of_tipsv2(encoders, tmp_path):
    """The published layout, which transformers writes for this family, and its own processor."""
    import transformers

    tower = encoders("tipsv2")
    text = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 99,
    }
    config = transformers.Tipsv2Config(vision_config=tower.model.config.to_dict(), text_config=text)
    whole = transformers.Tipsv2Model(config)
    whole.vision_model.load_state_dict(tower.model.state_dict())
    whole.save_pretrained(tmp_path)
    transformers.Tipsv2ImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    loaded, pixels = load_encoder(tmp_path), pixels_for(tower, 2)
    assert torch.equal(loaded(pixels).patch_map, tower(pixels).patch_map)
    assert torch.equal(loaded(pixels).pooled, tower(pixels).pooled)
    assert loaded.transform.mean == (0.0,) and loaded.transform.fit == "squash"


def test_radio_in_the_layout_of_its_checkpoints(encoders, tmp_path):
    import transformers

    tower = encoders("radio")
    tower.model.save_pretrained(tmp_path)
    size = {"height": 64, "width": 64}
    transformers.CLIPImageProcessor(size=size, do_center_crop=False, do_normalize=False).save_pretrained(
        tmp_path
    )
    loaded, pixels = load_encoder(tmp_path), pixels_for(tower, 2)
    assert torch.equal(loaded(pixels).patch_map, tower(pixels).patch_map) and loaded.transform.std == (1.0,)


def test_siglip2_gets_the_patches_of_its_processor(encoders):
    from transformers import Siglip2ImageProcessor

    encoder = encoders("siglip2")
    image = torch.randint(0, 256, (3, 48, 80), dtype=torch.uint8)
    said = Siglip2ImageProcessor(patch_size=8, max_num_patches=60)(image, return_tensors="pt")
    assert said["spatial_shapes"].tolist() == [[6, 10]]
    expected = encoder.model(**said).last_hidden_state
    ours = encoder((image[None].float() / 255 - 0.5) / 0.5).patch_map.flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", sorted(WHOLE))
def test_the_tower_of_a_whole_image_text_model(encoders, family, tmp_path):
    import transformers

    tower = encoders(family)
    model_class = getattr(transformers, WHOLE[family])
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 99,
    }
    config = model_class.config_class(
        vision_config=tower.model.config.to_dict(), text_config={**text, "projection_size": 64}
    )
    whole = model_class(config)
    whole.vision_model.load_state_dict(tower.model.state_dict(), strict=True)
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, TransformersEncoder) and loaded.transform.fit == "crop"
    pixels = pixels_for(tower, 2)
    torch.testing.assert_close(loaded(pixels).patch_map, tower(pixels).patch_map, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("class_name", ["InternVLModel", "InternVLForConditionalGeneration"])
def test_the_tower_of_a_vision_language_model(encoders, class_name, tmp_path, capfd):
    import transformers

    tower = encoders("internvl")
    text = {
        "model_type": "qwen2",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 99,
    }
    config = transformers.InternVLConfig(
        vision_config=tower.model.config.to_dict(), text_config={**text, "intermediate_size": 32}
    )
    whole = getattr(transformers, class_name)(config)
    getattr(whole, "model", whole).vision_tower.load_state_dict(tower.model.state_dict())
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    capfd.readouterr()
    loaded = load_encoder(tmp_path)
    assert torch.equal(loaded(pixels_for(tower, 2)).patch_map, tower(pixels_for(tower, 2)).patch_map)
    assert "UNEXPECTED" not in "".join(capfd.readouterr())  # the language model's weights are no news
