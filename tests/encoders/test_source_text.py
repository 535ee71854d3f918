"""The options in the text that names an encoder, through `load_encoder` and `check_source`."""

import pytest
import torch

from encoders import load_encoder, save_encoder
from encoders.image_text import has_text_tower, load_image_text
from encoders.load import check_source
from encoders.source_text import split_kind, split_source
from pretrain.initial_weights import find_weights
from vision_core.errors import UserError


def test_a_text_is_its_source_and_its_options():
    text = "hf:me/model?layers=1,-2&norm=false&image_size=336&grid=24&preprocess=whole"
    assert split_source(text) == (
        "hf:me/model",
        {"layers": (1, -2), "norm": False, "image_size": 336, "grid": 24, "preprocess": "whole"},
    )
    assert split_source("untrained:hf:me/model?position_offset=0.1&position_antialias=true") == (
        "untrained:hf:me/model",
        {"position_offset": 0.1, "position_antialias": True},
    )
    assert split_source("raw_pixels") == ("raw_pixels", {})


def test_the_kind_of_a_source(tmp_path):
    assert split_kind("open_clip:ViT-B-32/openai") == ("open_clip", "ViT-B-32/openai")
    assert split_kind(str(tmp_path)) == ("folder", str(tmp_path))
    assert split_kind("hf:") == ("", "hf:")
    assert split_kind("raw_pixels") == ("raw_pixels", "")


def test_options_in_the_text_are_those_of_the_arguments():
    written = load_encoder("tiny:dinov2?layers=2,-1&norm=false&image_size=48&preprocess=whole&grid=6")
    given = load_encoder("tiny:dinov2", layers=(2, -1), norm=False, image_size=48, preprocess="whole", grid=6)
    assert written.config() == given.config()
    assert written.transform == given.transform and written.transform.size == (48, 48)
    assert written.fusion_grid == given.fusion_grid == 6
    assert written.source == "tiny:dinov2"  # the rest is in the config, and the source stays loadable
    pixels = torch.randn(1, 3, 48, 48)
    assert torch.equal(written(pixels).patch_map, given(pixels).patch_map)
    assert load_encoder("tiny:dinov2").fusion_grid is None


def test_positions_in_the_text():
    config = load_encoder("tiny:dinov2?position_offset=0.1&position_antialias=true").config()
    assert (config.position_offset, config.position_antialias) == (0.1, True)
    with pytest.raises(
        UserError, match="position_offset is for DINOv2 in transformers, not for tiny:timm_vit"
    ):
        load_encoder("tiny:timm_vit?position_offset=0.1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tiny:dinov2?layer=2", "unknown option 'layer', did you mean 'layers'?"),
        ("tiny:dinov2?layers=last", "layers=last cannot be read; write one layer, or several as 1,2,3,4"),
        ("tiny:dinov2?norm=no", "norm=no is neither true nor false"),
        ("tiny:dinov2?grid=0", "grid=0 is too small; write at least grid=1"),
        ("tiny:dinov2?image_size=64x64", "image_size=64x64 is no whole number"),
        ("tiny:dinov2?preprocess=all", "preprocess=all does not exist; write published or whole"),
        ("tiny:dinov2?position_offset=x", "position_offset=x cannot be read"),
        ("tiny:dinov2?norm=true&norm=false", "option 'norm' is given twice"),
        ("tiny:dinov2?norm=", "option 'norm' has no value"),
    ],
)
def test_wrong_options_are_one_line(text, said):
    for look_at in (load_encoder, check_source):
        with pytest.raises(UserError) as caught:
            look_at(text)
        assert said in str(caught.value) and text in str(caught.value) and "\n" not in str(caught.value)


def test_an_option_that_is_also_an_argument_is_refused():
    with pytest.raises(
        UserError, match=r"^encoder 'tiny:dinov2\?norm=false': norm is also given as an argument"
    ):
        load_encoder("tiny:dinov2?norm=false", norm=True)


def test_a_folder_whose_name_holds_a_question_mark(tmp_path):
    for name in ("what?", "what?layers=1"):
        save_encoder(load_encoder("tiny:dinov2"), tmp_path / name)
        encoder = load_encoder(tmp_path / name)
        assert encoder.layers == (-1,) and encoder.source == str(tmp_path / name)
        assert load_encoder(encoder.source).config() == encoder.config()
        assert load_encoder(f"{tmp_path / name}?layers=2").layers == (2,)
        check_source(f"untrained:{tmp_path / name}?norm=false")


def test_options_that_do_not_apply_are_refused_where_weights_or_texts_are_wanted():
    with pytest.raises(UserError, match="init_from=hf:me/small.layers=2: layers does not change the weights"):
        find_weights("hf:me/small?layers=2")
    with pytest.raises(UserError, match="layers does not apply where both towers are loaded"):
        load_image_text("hf:me/small?layers=2")
    with pytest.raises(UserError, match="preprocess is also given"):
        load_image_text("hf:me/small?preprocess=whole", preprocess="whole")
    assert has_text_tower("open_clip:ViT-B-32/openai?layers=2")
