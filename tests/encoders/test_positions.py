"""The published offset of 0.1, against the published module in float64."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, Dinov2Config, Dinov2Model

from encoders import load_encoder, save_encoder
from encoders.adapters.dinov2_weights import convert_dinov2
from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.base import EncoderConfig
from encoders.preprocess import ImageTransform, save_image_processor
from encoders.saved import build_encoder
from tests.published_dinov2 import PublishedDinov2
from vision_core.errors import UserError


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    model = PublishedDinov2()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return model, f"dinov2_pth:{tmp_path / 'weights.pth'}"


@pytest.mark.parametrize("size", [(42, 42), (56, 98), (70, 70), (28, 126), (98, 70)])
def test_the_offset_is_that_of_the_published_code(file, size):
    model, source = file
    pixels = torch.randn(2, 3, *size)
    expected = copy.deepcopy(model).double()(pixels.double())[:, 1:]
    ours = load_encoder(source, image_size=size, position_offset=0.1)(pixels).patch_map.flatten(2).mT
    assert (ours - expected).abs().max() < 1e-4
    if size != (70, 70):  # the stored grid
        without = load_encoder(source, image_size=size)(pixels).patch_map.flatten(2).mT
        assert (without - expected).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(42, 56), (98, 70)])
def test_with_registers_the_published_code_antialiases_and_has_no_offset(size):
    torch.manual_seed(0)
    model = PublishedDinov2(registers=4, offset=0.0, antialias=True)
    converted, _ = convert_dinov2(model.state_dict())
    pixels = torch.randn(2, 3, *size)
    expected = copy.deepcopy(model).double()(pixels.double())[:, 5:]
    for offset in (None, 0.0):
        encoder = TransformersEncoder(copy.deepcopy(converted), ImageTransform(size), position_offset=offset)
        assert (encoder(pixels).patch_map.flatten(2).mT - expected).abs().max() < 1e-4


def test_it_goes_into_the_config_through_saving_and_compiling(file, tmp_path):
    _, source = file
    pixels = torch.randn(1, 3, 42, 56)
    encoder = load_encoder(source, image_size=(42, 56), position_offset=0.1)
    config = EncoderConfig.from_dict(json.loads(json.dumps(encoder.config().to_dict())))
    assert config.position_offset == 0.1 and build_encoder(config).position_offset == 0.1
    save_encoder(encoder, tmp_path / "saved")
    loaded = load_encoder(tmp_path / "saved")
    assert torch.equal(loaded(pixels).patch_map, encoder(pixels).patch_map)
    compiled = torch.compile(encoder, backend="aot_eager")
    torch.testing.assert_close(compiled(pixels).patch_map, encoder(pixels).patch_map, rtol=1e-5, atol=1e-6)
    old = {name: value for name, value in config.to_dict().items() if name != "position_offset"}
    assert EncoderConfig.from_dict(old).position_offset is None


def test_a_run_that_was_trained_with_it_says_so_in_its_config(tmp_path):
    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": 8,
        "image_size": 32,
    }
    Dinov2Model(Dinov2Config(**shape, position_offset=0.1)).save_pretrained(tmp_path)
    save_image_processor(tmp_path, (48, 48), [0.5] * 3, [0.5] * 3, 1.0)
    assert AutoConfig.from_pretrained(tmp_path).position_offset == 0.1
    encoder, without = load_encoder(tmp_path), load_encoder(tmp_path, position_offset=0.0)
    pixels = torch.randn(1, 3, 48, 48)
    assert encoder.position_offset == 0.1 and not torch.allclose(
        encoder(pixels).patch_map, without(pixels).patch_map, atol=1e-4
    )


def test_where_there_is_no_such_choice(file):
    for family in ("siglip", "dinov3_vit"):
        config = load_encoder(f"tiny:{family}").config()
        with pytest.raises(UserError, match="position_offset is for dinov2 and dinov2_with_registers, not "):
            build_encoder(replace(config, position_offset=0.1))
    with pytest.raises(
        UserError, match="position_offset is for DINOv2 in transformers, not for tiny:timm_vit"
    ):
        load_encoder("tiny:timm_vit", position_offset=0.1)
    with pytest.raises(UserError, match=r"position_offset=1.5 is not possible; the published one is 0.1"):
        load_encoder(file[1], position_offset=1.5)
