import os
import shutil

import pytest
import torch
from PIL import Image

from encoders import load_encoder
from encoders.evaluation import feature_cache
from encoders.evaluation.feature_cache import cached_features, encoder_fingerprint
from encoders.evaluation.features import vector_features
from encoders.evaluation.used_images import content_hash
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError
from vision_core.images.sources import open_source
from vision_core.images.unreadable import UnreadableImage


@pytest.fixture
def source(memory_source):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 70 + index, 64), dtype=torch.uint8, generator=generator) for index in range(11)]
    images[4] = None
    return memory_source(images, [0, 1] * 5 + [0])


class Counted:
    """`vector_features`, counting the images that went through."""

    def __init__(self):
        self.images = 0

    def __call__(self, encoder, pixels):
        self.images += len(pixels)
        return vector_features(encoder, pixels)


def test_stored_is_computed_and_the_second_time_read(source, tmp_path):
    encoder, compute = load_encoder("tiny:dinov2"), Counted()
    stored = cached_features(encoder, source, compute, "vectors", tmp_path, batch_size=3)
    assert stored.kept.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10] and stored.unreadable == 1 and compute.images == 10
    again = cached_features(encoder, source, compute, "vectors", tmp_path, batch_size=5)
    assert compute.images == 10
    by_hand = vector_features(encoder, encoder.transform([source[int(index)].image for index in stored.kept]))
    assert set(stored.names) == set(by_hand)
    for name, expected in by_hand.items():
        torch.testing.assert_close(again.load(name), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(torch.stack([again.rows(name)[row] for row in range(10)]), stored.load(name))


def test_the_cache_remembers_what_could_not_be_read_and_what_was_seen(source, tmp_path):
    encoder = load_encoder("tiny:dinov2")
    for _ in range(2):  # computed, then read
        stored = cached_features(encoder, source, vector_features, "vectors", tmp_path, batch_size=3)
        assert stored.reasons == {4: "broken"} and "contents" not in stored.names
        views = [encoder.transform.view(source[int(index)].image) for index in stored.kept]
        assert torch.equal(stored.contents, torch.stack([content_hash(view) for view in views]))
        some = stored.rows("pooled").only([3, 0])
        assert len(some) == 2 and some.shape == (2, stored.load("pooled").shape[1])
        assert torch.equal(some[1], stored.load("pooled")[0])


def test_what_can_be_read_now_is_computed_anew(source, tmp_path):
    """A link that is followed now, a package that was installed: "unreadable" is true of a moment."""
    encoder, compute = load_encoder("tiny:dinov2"), Counted()
    cached_features(encoder, source, compute, "vectors", tmp_path)
    source.images[4] = source.images[3]
    stored = cached_features(encoder, source, compute, "vectors", tmp_path)
    assert stored.unreadable == 0 and stored.reasons == {} and compute.images == 10 + 11


def test_an_image_that_is_unreadable_for_another_reason_now_has_that_reason(source, tmp_path, monkeypatch):
    """A link out of the folder is followed now, and what it leads to is cut short."""
    encoder = load_encoder("tiny:dinov2")
    cached_features(encoder, source, vector_features, "vectors", tmp_path)
    plain = type(source).__getitem__

    def cut_short(self, index):
        if self.images[index] is None:
            raise UnreadableImage("truncated")
        return plain(self, index)

    monkeypatch.setattr(type(source), "__getitem__", cut_short)
    assert cached_features(encoder, source, vector_features, "vectors", tmp_path).reasons == {4: "truncated"}


def test_links_that_are_followed_now_are_read_with_the_same_cache(tmp_path):
    """The same command with ?follow_links=true found "unreadable" in the cache."""
    for place in ("data", "elsewhere"):
        (tmp_path / place).mkdir()
    for number in range(6):
        path = tmp_path / ("data", "elsewhere")[number % 2] / f"{number}.png"
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(path)
        if number % 2:
            (tmp_path / "data" / path.name).symlink_to(path)
    encoder = load_encoder("tiny:dinov2")
    for options, unreadable in (("", 3), ("?follow_links=true", 0)):
        source = open_source(f"folder:{tmp_path}/data{options}")
        assert cached_features(encoder, source, vector_features, "vectors", tmp_path / "cache").unreadable == unreadable


def test_small_shards_are_the_whole(source, tmp_path, monkeypatch):
    encoder = load_encoder("tiny:dinov2")
    whole = cached_features(encoder, source, vector_features, "vectors", tmp_path / "a", batch_size=2)
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1)
    cut = cached_features(encoder, source, vector_features, "vectors", tmp_path / "b", batch_size=2)
    assert len(cut.shards) == 6 and torch.equal(cut.load("pooled"), whole.load("pooled")) and torch.equal(cut.kept, whole.kept)


def test_other_model_data_transform_or_features_are_other_entries(source, memory_source, tmp_path):
    encoder, compute = load_encoder("tiny:dinov2"), Counted()
    other_data = memory_source(source.images, source.labels)
    other_data.name = "other"
    other_weights = load_encoder("tiny:dinov2", seed=1)
    bigger = ImageTransform((72, 72))
    for arguments, options in [
        ((encoder, source, compute, "vectors"), {}),
        ((encoder, source, compute, "other"), {}),
        ((encoder, other_data, compute, "vectors"), {}),
        ((other_weights, source, compute, "vectors"), {}),
        ((load_encoder("tiny:dinov2", norm=False), source, compute, "vectors"), {}),
        ((encoder, source, compute, "vectors"), {"transform": bigger}),
        ((encoder, source, compute, "vectors"), {"indices": [1, 2, 3]}),
    ]:
        before = compute.images
        cached_features(*arguments, tmp_path, **options)
        assert compute.images > before
    assert len(list(tmp_path.iterdir())) == 7


def test_the_fingerprint_is_of_the_weights_not_of_the_name(tmp_path):
    from encoders import save_encoder

    encoder = load_encoder("tiny:dinov2")
    save_encoder(encoder, tmp_path / "copy")
    assert encoder_fingerprint(encoder) == encoder_fingerprint(load_encoder(tmp_path / "copy"))
    assert encoder_fingerprint(encoder) != encoder_fingerprint(load_encoder("tiny:dinov2", seed=1))
    assert encoder_fingerprint(encoder) != encoder_fingerprint(load_encoder("tiny:dinov2", dtype=torch.bfloat16))


@pytest.mark.parametrize("damage", ["cut", "flip", "emptied", "of another entry", "missing"])
def test_a_damaged_entry_is_not_read(source, tmp_path, damage):
    encoder, compute = load_encoder("tiny:dinov2"), Counted()
    expected = cached_features(encoder, source, compute, "vectors", tmp_path).load("pooled")
    (folder,) = tmp_path.iterdir()
    shard = next(folder.glob("*.safetensors"))
    if damage == "cut":
        os.truncate(shard, shard.stat().st_size - 10)
    elif damage == "flip":
        data = bytearray(shard.read_bytes())
        data[-5] ^= 1
        shard.write_bytes(data)
    elif damage == "missing":
        shard.unlink()
    elif damage == "emptied":
        os.truncate(shard, 0)
    else:
        cached_features(encoder, source, compute, "other", tmp_path)
        (other,) = set(tmp_path.iterdir()) - {folder}
        shutil.copy(next(other.glob("*.safetensors")), shard)
    before = compute.images
    assert torch.equal(cached_features(encoder, source, compute, "vectors", tmp_path).load("pooled"), expected)
    assert compute.images == before + 10


def test_nothing_is_left_of_features_that_are_not_finite(source, tmp_path):
    encoder = load_encoder("tiny:dinov2")

    def broken(encoder, pixels):
        vectors = vector_features(encoder, pixels)
        vectors["pooled"][-1] = float("nan")
        return vectors

    with pytest.raises(UserError, match="tiny:dinov2: the features of 3 are not finite"):
        cached_features(encoder, source, broken, "vectors", tmp_path, batch_size=5)
    assert list(tmp_path.iterdir()) == []


def test_no_readable_image(memory_source, tmp_path):
    with pytest.raises(UserError, match="none of 2 images of images in memory could be read"):
        cached_features(load_encoder("tiny:dinov2"), memory_source([None, None], [0, 1]), vector_features, "vectors", tmp_path)


def test_a_full_disk_is_one_line(source, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "save_file", full)
    with pytest.raises(UserError, match="free space or name another folder by --cache_dir"):
        cached_features(load_encoder("tiny:dinov2"), source, vector_features, "vectors", tmp_path)
    assert list(tmp_path.iterdir()) == []


WORKER = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from encoders import load_encoder
from encoders.evaluation.feature_cache import cached_features
from encoders.evaluation.features import vector_features
from vision_core.images.sources import open_source
if "RANK" in os.environ:
    dist.init_process_group("gloo")
source = open_source("scenes?size=64&count=13")
stored = cached_features(load_encoder("tiny:dinov2"), source, vector_features, "vectors", Path(sys.argv[1]), batch_size=4)
print("rows", len(stored.kept), stored.load("pooled").double().sum().item(), len(stored.shards))
"""


def test_two_processes_give_what_one_gives(runs, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    jobs = [*runs.start_two(script, tmp_path / "two"), runs.start(script, tmp_path / "one")]
    runs.finish(*jobs)
    said = [line.split() for job in jobs for line in job.printed.splitlines() if line.startswith("rows")]
    assert [line[1] for line in said] == ["13"] * 3 and [line[3] for line in said] == ["2", "2", "1"]
    assert float(said[0][2]) == float(said[1][2]) == pytest.approx(float(said[2][2]), rel=1e-5)
