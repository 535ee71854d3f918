import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.evaluation.features import (
    depth_layers,
    draw_subset,
    extract_features,
    map_features,
    vector_features,
)
from encoders.load import load_encoder
from encoders.modes import evaluating
from encoders.preprocess import ImageTransform


def wrap(model):
    return TransformersEncoder(model, ImageTransform((32, 32)))


@pytest.mark.parametrize("registers", [None, 0, 3])
def test_features_are_those_of_the_tokens(tiny_model, registers):
    model = tiny_model(registers).eval()
    pixels = torch.randn(5, 3, 16, 32)
    features = extract_features(wrap(model), pixels, batch_size=2)
    with torch.no_grad():
        hidden = model(pixels, output_hidden_states=True).hidden_states[-1]  # before the final norm
    tokens = nn.functional.layer_norm(
        hidden, (24,), model.layernorm.weight, model.layernorm.bias, model.config.layer_norm_eps
    )
    assert tokens.shape[1] == 1 + (registers or 0) + 8
    torch.testing.assert_close(features["cls"], tokens[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features["patch_mean"], tokens[:, -8:].mean(1), rtol=1e-5, atol=1e-5)


def test_batches_one_after_another_are_the_whole(tiny_model):
    model, pixels = tiny_model(2), torch.randn(7, 3, 32, 32)
    whole = extract_features(wrap(model), pixels)
    for other in (
        extract_features(wrap(model), iter(pixels.split(3))),
        extract_features(wrap(model), pixels, batch_size=1),
    ):
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5)


def test_features_are_float32_and_without_gradient(tiny_model):
    features = extract_features(wrap(tiny_model().bfloat16()), torch.randn(2, 3, 32, 32))
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in features.values())


def test_every_module_gets_its_mode_back_even_after_an_error(tiny_model):
    model = tiny_model().train()
    model.encoder.layer[0].eval()
    before = [module.training for module in model.modules()]
    extract_features(wrap(model), torch.randn(1, 3, 32, 32))
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        _ = 1 / 0
    assert [module.training for module in model.modules()] == before and torch.is_grad_enabled()


def test_dropout_does_not_touch_features():
    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 8,
        "image_size": 32,
    }
    model = Dinov2Model(Dinov2Config(**shape, hidden_dropout_prob=0.5, drop_path_rate=0.5)).train()
    pixels = torch.randn(4, 3, 32, 32)
    assert torch.equal(
        extract_features(wrap(model), pixels)["cls"], extract_features(wrap(model), pixels)["cls"]
    )


@pytest.mark.parametrize("family", ["dinov2_with_registers", "siglip", "ijepa", "convnext"])
def test_vectors_are_those_of_the_layers(family):
    encoder, pixels = load_encoder(f"tiny:{family}"), torch.randn(2, 3, 64, 64)
    vectors = vector_features(encoder, pixels)
    for back in range(1, 5):
        layer = encoder(pixels, [-back]).layers[0]
        expected = layer.patch_map.mean((2, 3)) if layer.cls is None else layer.cls
        if back == 1 and family in ("siglip", "convnext"):
            expected = encoder(pixels).pooled
        torch.testing.assert_close(vectors[f"block_{back}"], expected, rtol=1e-4, atol=1e-5)
    whole = encoder(pixels)
    torch.testing.assert_close(vectors["patch_mean"], whole.patch_map.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert ("pooled" in vectors) == (whole.pooled is not None) == (family != "ijepa")


def test_maps_and_the_layers_of_depth():
    assert (
        depth_layers(12) == (3, 6, 9, 12)
        and depth_layers(24) == (6, 12, 18, 24)
        and depth_layers(1) == (1,)
        and depth_layers(5)[-1] == 5
    )
    encoder, pixels = load_encoder("tiny:dinov2"), torch.randn(2, 3, 64, 64)
    stored = map_features(encoder, pixels, [2, 4])
    assert set(stored) == {"map_2", "map_4", "cls_2", "cls_4"} and stored["map_2"].dtype == torch.float16
    torch.testing.assert_close(stored["map_2"].float(), encoder(pixels, [2]).patch_map, rtol=1e-2, atol=1e-3)


def test_a_subset_is_a_function_of_its_names():
    subset = draw_subset(1000, 50, 0, "bank")
    assert len(set(subset)) == 50 and set(subset) <= set(range(1000))
    assert subset == draw_subset(1000, 50, 0, "bank")
    assert subset != draw_subset(1000, 50, 1, "bank") and subset != draw_subset(1000, 50, 0, "queries")
    assert subset == draw_subset(1000, 70, 0, "bank")[:50]  # a larger draw only adds
    assert sorted(draw_subset(10, 50, 0)) == list(range(10))
