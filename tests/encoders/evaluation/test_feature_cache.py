import os
import re
import resource
import shutil
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from encoders import load_encoder
from encoders.evaluation import feature_cache
from encoders.evaluation.feature_cache import cached_features, encoder_fingerprint
from encoders.evaluation.features import map_bytes, map_features, vector_bytes, vector_features
from encoders.evaluation.used_images import content_hash
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError
from vision_core.files.files_aside import THIS_MACHINE
from vision_core.images.open_source import open_source
from vision_core.unreadable import UnreadableImage


@pytest.fixture
def source(memory_source):
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, 70 + index, 64), dtype=torch.uint8, generator=generator)
        for index in range(11)
    ]
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
    assert (
        stored.kept.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
        and stored.unreadable == 1
        and compute.images == 10
    )
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
    """A link that is followed now, a package that was installed: "unreadable" is true of a
    moment."""
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
        assert (
            cached_features(encoder, source, vector_features, "vectors", tmp_path / "cache").unreadable
            == unreadable
        )


def test_small_shards_are_the_whole(source, tmp_path, monkeypatch):
    encoder = load_encoder("tiny:dinov2")
    whole = cached_features(encoder, source, vector_features, "vectors", tmp_path / "a", batch_size=2)
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1)
    cut = cached_features(encoder, source, vector_features, "vectors", tmp_path / "b", batch_size=2)
    assert (
        len(cut.shards) == 6
        and torch.equal(cut.load("pooled"), whole.load("pooled"))
        and torch.equal(cut.kept, whole.kept)
    )


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
    assert encoder_fingerprint(encoder) != encoder_fingerprint(
        load_encoder("tiny:dinov2", dtype=torch.bfloat16)
    )


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
    assert torch.equal(
        cached_features(encoder, source, compute, "vectors", tmp_path).load("pooled"), expected
    )
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
        cached_features(
            load_encoder("tiny:dinov2"),
            memory_source([None, None], [0, 1]),
            vector_features,
            "vectors",
            tmp_path,
        )


def test_a_full_disk_is_one_line(source, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            UserError,
            match=r"was not written: File too large; it needs 0.0 MB, and .* are free.* by --cache_dir",
        ):
            cached_features(load_encoder("tiny:dinov2"), source, vector_features, "vectors", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_features_that_have_no_room_are_told_before_the_first_forward(source, tmp_path):
    compute = Counted()
    with pytest.raises(
        UserError,
        match=r"has no room for features of tiny:dinov2 for 11 images: they need 11,000,000.0 GB, and .* make room",
    ):
        cached_features(load_encoder("tiny:dinov2"), source, compute, "vectors", tmp_path, image_bytes=10**15)
    assert compute.images == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["dinov2", "siglip", "convnext", "ijepa"])
def test_what_features_take_is_known_before_they_are_computed(family):
    encoder = load_encoder(f"tiny:{family}")
    size, layers = encoder.transform.size, (1, encoder.num_layers)
    pixels = torch.zeros(1, 3, *size)
    vectors, maps = vector_features(encoder, pixels), map_features(encoder, pixels, layers)
    assert vector_bytes(encoder) == sum(value.nbytes for value in vectors.values())
    assert map_bytes(encoder, size, layers) == sum(value.nbytes for value in maps.values())


def shards_of(folder):
    return sorted(folder.glob("*/*.safetensors"))


def test_only_the_damaged_shards_are_computed_again(source, tmp_path, monkeypatch, capsys):
    """Of six shards one is flipped, one emptied, one cut; one has another's place; and there is one
    too many."""
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 1)
    encoder, compute = load_encoder("tiny:dinov2"), Counted()
    expected = cached_features(encoder, source, compute, "vectors", tmp_path, batch_size=2).load_all()
    shards = shards_of(tmp_path)
    content = bytearray(shards[0].read_bytes())
    content[len(content) // 2] ^= 0x80
    shards[0].write_bytes(content)
    os.truncate(shards[1], 0)
    os.truncate(shards[3], 500)
    shutil.copy(shards[5], shards[4])
    shutil.copy(shards[5], shards[5].with_name("000000011-000000012.safetensors"))
    compute.images = 0
    again = cached_features(encoder, source, compute, "vectors", tmp_path, batch_size=2)
    assert (
        compute.images == 8
        and "5 files were not what was written; their features are computed again" in capsys.readouterr().err
    )
    for name, value in expected.items():
        torch.testing.assert_close(again.load(name), value, rtol=1e-4, atol=1e-5)
    assert again.kept.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10] and shards_of(tmp_path) == shards
    cached_features(
        encoder, source, compute, "vectors", tmp_path, batch_size=3
    )  # in shards that other batches have cut
    assert compute.images == 8 and capsys.readouterr().err == ""


def test_an_entry_of_an_earlier_version_is_made_again(source, tmp_path):
    encoder, compute = load_encoder("tiny:dinov2"), Counted()
    cached_features(encoder, source, compute, "vectors", tmp_path)
    (shard,) = shards_of(tmp_path)
    save_file(load_file(shard), shard.with_name("0000-00000.safetensors"))
    shard.unlink()
    for name in ("MANIFEST.json", "key.json", "unreadable-0000.json"):
        (shard.parent / name).write_text("{}")
    cached_features(encoder, source, compute, "vectors", tmp_path)
    assert compute.images == 20 and os.listdir(shard.parent) == [shard.name]


def test_litter_is_removed_at_the_next_start(source, tmp_path):
    encoder = load_encoder("tiny:dinov2")
    cached_features(encoder, source, vector_features, "vectors", tmp_path)
    (shard,) = shards_of(tmp_path)
    litter = shard.with_name(f".tmp-{THIS_MACHINE}-{os.getpid()}-0badf00d")
    litter.write_bytes(b"half")
    old, fresh = tmp_path / f".tmp-{'0a' * 16}-77", tmp_path / f".tmp-{'0a' * 16}-78"
    for folder in (old, fresh):  # of an earlier version
        folder.mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    cached_features(encoder, source, vector_features, "vectors", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([fresh.name, shard.parent.name])
    assert os.listdir(shard.parent) == [shard.name]


def test_a_file_written_anew_is_noticed_by_name_size_or_time(tmp_path):
    """Not one that keeps all three: see docs/encoders.md."""
    path = tmp_path / "data" / "0.bmp"
    path.parent.mkdir()
    encoder, compute = load_encoder("tiny:dinov2"), Counted()
    for colour, seconds in (("red", 1), ("blue", 2)):
        Image.new("RGB", (32, 32), colour).save(path)
        os.utime(path, (seconds, seconds))
        cached_features(
            encoder, open_source(f"folder:{tmp_path}/data"), compute, "vectors", tmp_path / "cache"
        )
    assert compute.images == 2 and len(list((tmp_path / "cache").iterdir())) == 2


WORKER = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from encoders import load_encoder
from encoders.evaluation.feature_cache import cached_features
from encoders.evaluation.features import vector_features
from vision_core.images.open_source import open_source
if "RANK" in os.environ:
    dist.init_process_group("gloo")
source = open_source("scenes?size=64&count=13")
encoder, folder = load_encoder("tiny:dinov2"), Path(sys.argv[1])
stored = cached_features(encoder, source, vector_features, "vectors", folder, batch_size=4)
print("rows", len(stored.kept), stored.load("pooled").double().sum().item(), len(stored.shards))
"""


def test_a_killed_fill_goes_on_and_two_runs_fill_one_entry_together(runs, tmp_path):
    script = tmp_path / "worker.py"
    small = "import time\nfrom encoders.evaluation import feature_cache\nfeature_cache.SHARD_BYTES = 1\n"
    script.write_text(small + WORKER)
    slow = tmp_path / "slow.py"
    slow.write_text(
        small
        + WORKER.replace("vector_features, ", "lambda *given: time.sleep(0.5) or vector_features(*given), ")
    )
    killed = runs.start(slow, tmp_path / "cache")
    killed.wait_until(lambda: len(shards_of(tmp_path / "cache")) == 2)
    runs.kill(killed)
    there = {path: path.stat().st_mtime_ns for path in shards_of(tmp_path / "cache")}
    jobs = [runs.start(script, tmp_path / "cache") for _ in range(2)]
    jobs.append(runs.start(script, tmp_path / "one"))
    runs.finish(*jobs)
    said = [re.search(r"rows (\d+) (\S+) (\d+)", job.printed).groups() for job in jobs]
    assert {each[0] for each in said} == {"13"} and {each[2] for each in said} == {"4"}
    assert float(said[0][1]) == pytest.approx(float(said[2][1]), rel=1e-5) == float(said[1][1])
    assert all(
        path.stat().st_mtime_ns == written for path, written in there.items()
    )  # nothing is computed twice
    (entry,) = (tmp_path / "cache").iterdir()
    assert len(os.listdir(entry)) == 4


def test_two_processes_give_what_one_gives(runs, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    jobs = [*runs.start_two(script, tmp_path / "two"), runs.start(script, tmp_path / "one")]
    runs.finish(*jobs)
    said = [line.split() for job in jobs for line in job.printed.splitlines() if line.startswith("rows")]
    assert [line[1] for line in said] == ["13"] * 3 and [line[3] for line in said] == ["2", "2", "1"]
    assert float(said[0][2]) == float(said[1][2]) == pytest.approx(float(said[2][2]), rel=1e-5)
