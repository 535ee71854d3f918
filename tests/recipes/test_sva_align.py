"""Alignment as users start it, with the features of frozen encoders read from a cache."""

import pytest
import torch

ALIGN = "recipes/sva_align.py"


@pytest.mark.timeout(200)
def test_cached_features_train_as_the_encoders_do(runs, logged, mixed, stage_options, tmp_path):
    short = {"max_steps": 6}  # two epochs
    runs.finish(runs.start(ALIGN, *stage_options(mixed, tmp_path / "plain", **short)))
    cached = {"feature_cache": tmp_path / "cache", "feature_cache_dtype": "fp32"}
    runs.finish(runs.start(ALIGN, *stage_options(mixed, tmp_path / "cached", **short, **cached)))
    torch.testing.assert_close(logged(tmp_path / "cached"), logged(tmp_path / "plain"), rtol=1e-5, atol=0)
    assert (
        len(list((tmp_path / "cache").rglob("*.safetensors"))) == 45
    )  # 20 rows with one image, 8 with three, and the blank one
    # what is read is the cache's: kept in bf16 it is not quite what the encoders say
    rounded = {"feature_cache": tmp_path / "rounded_cache", "feature_cache_dtype": "bf16"}
    runs.finish(runs.start(ALIGN, *stage_options(mixed, tmp_path / "rounded", **short, **rounded)))
    assert not torch.equal(logged(tmp_path / "rounded"), logged(tmp_path / "plain"))
    torch.testing.assert_close(logged(tmp_path / "rounded"), logged(tmp_path / "plain"), rtol=1e-2, atol=0)


@pytest.mark.timeout(300)
def test_damaged_features_are_made_again_and_never_trained_on(runs, logged, mixed, stage_options, tmp_path):
    """All 45 files, each damaged in one of four ways, between two runs with one cache: the losses
    are those of the undamaged one."""
    cached = {"feature_cache": tmp_path / "cache", "feature_cache_dtype": "fp32", "max_steps": 6}
    runs.finish(runs.start(ALIGN, *stage_options(mixed, tmp_path / "first", **cached)))
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    for number, path in enumerate(files):
        content = bytearray(path.read_bytes())
        flipped = len(content) // 8 * 4 + 3  # sign and exponent of a float32 in the middle
        content[flipped] ^= [0x80, 0x40, 0, 0][number % 4]
        path.write_bytes(content[: [None, None, len(content) // 2, 0][number % 4]])
    printed = runs.finish(runs.start(ALIGN, *stage_options(mixed, tmp_path / "second", **cached)))
    assert "45 files were not what was written; they are made again" in printed
    torch.testing.assert_close(logged(tmp_path / "second"), logged(tmp_path / "first"), rtol=1e-6, atol=0)
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == files and not list(
        (tmp_path / "cache").rglob(".tmp-*")
    )
