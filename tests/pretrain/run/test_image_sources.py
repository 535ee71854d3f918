"""The images that SigLIP and MAE train on, and those that are held out."""

import pytest

from pretrain.run.image_sources import open_captioned_images, open_training_and_held_out
from vision_core.errors import UserError

SCENES = "scenes?size=32&count=40"


def opened(eval_dataset: str | None, batch_size: int = 2):
    return open_training_and_held_out(SCENES, eval_dataset, seed=0, batch_size=batch_size, micro_batches=1)


def test_what_is_held_out_is_not_trained_on(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    source, held_out = opened("held_out")
    assert len(source) + len(held_out) == 40 and len(held_out) == 4


def test_a_part_that_does_not_fill_a_batch_is_not_held_out(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    source, held_out = opened("held_out", batch_size=16)
    assert len(source) == 40 and held_out is None
    assert "no held-out loss: a tenth of 40 images does not fill a batch of 16" in capsys.readouterr().out


def test_other_images_or_none():
    source, held_out = opened("scenes?size=32&count=8&split=held_out")
    assert len(source) == 40 and len(held_out) == 8
    assert opened(None)[1] is None


def test_images_without_captions_are_refused(tmp_path):
    assert len(open_captioned_images(SCENES)) == 40
    (tmp_path / "a.png").write_bytes(b"never read")
    with pytest.raises(UserError, match="has no captions"):
        open_captioned_images(f"folder:{tmp_path}")
