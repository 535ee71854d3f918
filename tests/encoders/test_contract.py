"""One test of the contract over every family, on tiny random models of the real libraries."""

import gc
import json

import pytest
import torch

from encoders import load_encoder
from encoders.adapters.tiny import FAMILY_NAMES
from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.base import EncoderConfig
from encoders.saved import build_encoder, save_encoder
from vision_core.errors import UserError

CLS = {
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "clip",
    "metaclip_2",
    "vit",
    "vit_mae",
    "internvl",
    "radio",
    "tipsv2",
    "timm_vit",
    "timm_dinov2",
    "open_clip_vit",
}
NO_POOLED = {"ijepa", "internvl"}
NATIVE_SIZE_ONLY = {"aimv2", "open_clip_vit"}
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
STAGES = {"dinov3_convnext", "convnext", "convnextv2", "timm_convnext", "timm_resnet", "open_clip_convnext"}
WHOLE = {
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    "aimv2": "Aimv2Model",
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


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_shapes_and_grid(encoders, family):
    encoder = encoders(family)
    height, width = encoder.transform.size
    features = encoder(pixels_for(encoder))
    by_hand = (height // encoder.stride, width // encoder.stride)
    assert features.patch_map.shape == (3, encoder.width, *by_hand) and encoder.grid(height, width) == by_hand
    assert (features.cls is not None) == (family in CLS)
    assert (features.pooled is None) == (family in NO_POOLED) == (encoder.pooled_width is None)
    if features.pooled is not None:
        assert features.pooled.shape == (3, encoder.pooled_width)
    if features.cls is not None:
        assert features.cls.shape == (3, encoder.width)
    assert encoder.untrained and encoder.frozen and not encoder.training


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_same_twice_and_alone_as_in_a_batch(encoders, family):
    encoder = encoders(family)
    pixels = pixels_for(encoder)
    torch.manual_seed(0)
    first = encoder(pixels)
    torch.manual_seed(1)  # ViTMAE draws numbers even with nothing masked
    second = encoder(pixels)
    assert torch.equal(first.patch_map, second.patch_map)
    alone = torch.cat([encoder(pixels[i : i + 1]).patch_map for i in range(3)])
    torch.testing.assert_close(first.patch_map, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_patches_are_where_they_are_in_the_image(encoders, family):
    """What is changed in one corner changes the features there most: neither shuffled (ViTMAE) nor
    transposed."""
    encoder = encoders(family)
    layer = 1 if encoder.num_layers == 4 else encoder.num_layers
    pixels = pixels_for(encoder, 1)
    changed = pixels.clone()
    side = encoder.transform.size[0] // 4
    changed[..., :side, -side:] += 3
    difference = (encoder(changed, [layer]).patch_map - encoder(pixels, [layer]).patch_map).norm(dim=1)[0]
    row, column = divmod(int(difference.argmax()), difference.shape[1])
    assert row < difference.shape[0] / 2 and column >= difference.shape[1] / 2


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_other_sizes(encoders, family):
    encoder = encoders(family)
    height, width = 2 * encoder.stride, 3 * encoder.stride
    if family in NATIVE_SIZE_ONLY:
        with pytest.raises(UserError, match=f"{height} x {width}|size"):
            encoder(pixels_for(encoder, 1, (height, width)))
    else:
        assert (
            encoder(pixels_for(encoder, 1, (height, width))).patch_map.shape[-2:]
            == (2, 3)
            == encoder.grid(height, width)
        )
        with pytest.raises(UserError, match="no multiple of the stride"):
            encoder(pixels_for(encoder, 1, (height + 1, width)))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_layers(encoders, family):
    encoder = encoders(family)
    pixels = pixels_for(encoder, 2)
    together = encoder(pixels, [1, -1])
    assert [layer.number for layer in together.layers] == [
        1,
        encoder.num_layers,
    ] and together.patch_map is together.layers[-1].patch_map
    for number in (1, encoder.num_layers):
        alone = encoder(pixels, [number])
        expected = next(layer for layer in together.layers if layer.number == number)
        torch.testing.assert_close(alone.patch_map, expected.patch_map, rtol=1e-5, atol=1e-6)
        if alone.pooled is not None:
            torch.testing.assert_close(alone.pooled, together.pooled, rtol=1e-5, atol=1e-6)
    for wrong in ([], [0], [encoder.num_layers + 1]):
        with pytest.raises(UserError, match="do not exist"):
            encoder(pixels, wrong)


@pytest.mark.parametrize("family", sorted({*FAMILY_NAMES} - {*STAGES, "internvl", "radio"}))
def test_the_norm_can_be_left_out(encoders, family):
    """Behind a norm, every patch has the same length (with random weights the norm's own are still
    1 and 0), before it they differ."""
    normed, raw = encoders(family), load_encoder(f"tiny:{family}", norm=False)
    pixels = pixels_for(normed, 2)
    for number in (2, normed.num_layers):
        lengths = normed(pixels, [number]).patch_map.norm(dim=1)
        assert normed(pixels, [number]).normalised and not raw(pixels, [number]).normalised
        assert not torch.allclose(raw(pixels, [number]).patch_map, normed(pixels, [number]).patch_map)
        torch.testing.assert_close(
            lengths, torch.full_like(lengths, lengths.mean().item()), rtol=0.02, atol=0
        )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_saved_and_loaded_it_is_bit_for_bit_the_same(encoders, family, tmp_path):
    encoder = encoders(family)
    save_encoder(encoder, tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    pixels = pixels_for(encoder)
    assert torch.equal(encoder(pixels).patch_map, loaded(pixels).patch_map)
    assert encoder.pooled_width is None or torch.equal(encoder(pixels).pooled, loaded(pixels).pooled)
    with pytest.raises(UserError, match="not empty"):
        save_encoder(encoder, tmp_path / "encoder")


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_config_alone_makes_the_same_shape(encoders, family):
    encoder = encoders(family)
    config = EncoderConfig.from_dict(json.loads(json.dumps(encoder.config().to_dict())))
    with torch.device("meta"):
        built = build_encoder(config)
    assert all(parameter.device.type == "meta" for parameter in built.parameters())
    assert {name: value.shape for name, value in built.state_dict().items()} == {
        n: v.shape for n, v in encoder.state_dict().items()
    }
    assert built.transform == encoder.transform


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_frozen_means_no_gradient_and_no_growth(encoders, family):
    encoder = encoders(family)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    pixels = pixels_for(encoder).requires_grad_()
    features = encoder(pixels)
    assert not features.patch_map.requires_grad and features.patch_map.grad_fn is None
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    del features
    tensors = []
    gc.freeze()  # what was there before is neither looked through nor counted
    try:
        for _ in range(3):
            encoder(pixels)
            gc.collect()
            tensors.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    finally:
        gc.unfreeze()
    assert tensors[2] <= tensors[1]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_unfrozen_it_trains(family):
    encoder = load_encoder(f"tiny:{family}", frozen=False).train()
    encoder(pixels_for(encoder)).patch_map.square().mean().backward()
    assert (
        sum(parameter.grad is not None for parameter in encoder.parameters())
        > len(list(encoder.parameters())) / 3
    )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_bfloat16(encoders, family):
    half = load_encoder(f"tiny:{family}", dtype=torch.bfloat16)
    pixels = pixels_for(half)
    exact, rounded = encoders(family)(pixels).patch_map, half(pixels).patch_map
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("family", ["dinov2", "siglip", "vit_mae", "timm_vit", "open_clip_vit"])
def test_compiled(encoders, family):
    encoder = load_encoder(f"tiny:{family}")
    pixels = pixels_for(encoder)
    compiled = torch.compile(encoder, backend="aot_eager")
    torch.testing.assert_close(compiled(pixels).patch_map, encoder(pixels).patch_map, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("family", sorted(STAGES))
def test_stages_have_their_own_widths_and_grids(encoders, family):
    encoder = encoders(family)
    layers = encoder(pixels_for(encoder, 1), range(1, encoder.num_layers + 1)).layers
    widths, rows = (
        [layer.patch_map.shape[1] for layer in layers],
        [layer.patch_map.shape[2] for layer in layers],
    )
    assert (
        widths == sorted(widths)
        and rows == sorted(rows, reverse=True)
        and rows[-1] * encoder.stride == encoder.transform.size[0]
    )
    assert not any(layer.normalised for layer in layers[:-1])


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


def test_a_reload_in_a_fresh_process_needs_no_network(runs, encoders, tmp_path):
    save_encoder(encoders("siglip"), tmp_path / "encoder")
    code = "import sys, torch\nfrom encoders import load_encoder\nprint([load_encoder(sys.argv[1])(torch.ones(1, 3, 64, 64)).patch_map.double().sum().item()])"
    printed = runs.finish(runs.start_plain(code, tmp_path / "encoder", project=True))
    assert str([encoders("siglip")(torch.ones(1, 3, 64, 64)).patch_map.double().sum().item()]) in printed
