"""Folders that `save_encoder` writes."""

import pytest

from encoders import load_encoder, save_encoder
from vision_core.errors import UserError


def test_saved_folders_that_do_not_fit(tmp_path):
    save_encoder(load_encoder("tiny:clip"), tmp_path / "a")
    save_encoder(load_encoder("tiny:siglip"), tmp_path / "b")
    (tmp_path / "a/model.safetensors").write_bytes((tmp_path / "b/model.safetensors").read_bytes())
    with pytest.raises(UserError, match="does not fit encoder.json"):
        load_encoder(tmp_path / "a")
    (tmp_path / "a/model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load_encoder(tmp_path / "a")
    (tmp_path / "a/encoder.json").write_text("{}")
    with pytest.raises(UserError, match="is not the config of an encoder"):
        load_encoder(tmp_path / "a")


def test_what_is_saved_names_a_source_that_loads(tmp_path):
    save_encoder(load_encoder("tiny:clip?layers=2&norm=false"), tmp_path / "saved")
    saved = load_encoder(tmp_path / "saved", layers=None)
    assert saved.layers == (-1,) and saved.norm  # as before: the arguments decide, not what was saved
    assert "from tiny:clip" in (tmp_path / "saved" / "README.md").read_text()


def test_a_saved_encoder_of_another_library_refuses_positions(tmp_path):
    save_encoder(load_encoder("tiny:timm_vit"), tmp_path / "saved")
    with pytest.raises(UserError, match="position_offset is for DINOv2 in transformers"):
        load_encoder(tmp_path / "saved", position_offset=0.1)
