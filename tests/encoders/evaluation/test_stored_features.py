import shutil

import pytest
import torch

from encoders.evaluation.stored_features import (
    CONTENTS,
    KEPT,
    StoredFeatures,
    read_shard,
    shard_path,
    write_shard,
)
from vision_core.errors import UserError
from vision_core.files.sealed_tensors import DamagedTensors


@pytest.fixture
def features():
    """Of four images, the third of which cannot be read."""
    return {
        "pooled": torch.arange(15.0).view(3, 5),
        KEPT: torch.tensor([0, 1, 3]),
        CONTENTS: torch.arange(6).view(3, 2),
    }


@pytest.fixture
def path(tmp_path, features):
    path = shard_path(tmp_path, 0, 4)
    write_shard(path, "key", features, {2: "truncated"})
    return path


def test_what_was_written_is_read(path, features):
    shard = read_shard(path, "key")
    assert (shard.start, shard.stop, shard.reasons) == (0, 4, {2: "truncated"})
    stored = StoredFeatures([shard])
    assert stored.names == ["pooled"] and stored.kept.tolist() == [0, 1, 3] and stored.unreadable == 1
    assert torch.equal(stored.load("pooled"), features["pooled"])
    assert torch.equal(stored.rows("pooled").only([2])[0], features["pooled"][2])


def test_a_shard_of_other_features_or_images_is_refused(path):
    with pytest.raises(DamagedTensors, match="features of something else"):
        read_shard(path, "another key")
    elsewhere = shard_path(path.parent, 4, 8)
    shutil.copy(path, elsewhere)
    with pytest.raises(DamagedTensors, match="features of other images"):
        read_shard(elsewhere, "key")


def test_damage_under_a_reader_is_one_line(path):
    """A file is flipped or cut once the entry is open: whole tensors and single rows are verified as
    they are read."""
    stored = StoredFeatures([read_shard(path, "key")])
    good, rows = path.read_bytes(), stored.rows("pooled")
    _, _, offset = stored.shards[0].layouts["pooled"]
    flipped = bytearray(good)
    flipped[offset + 3] ^= 0x40  # of the first row
    said = "does not hold the features that were written: .*; start the evaluation again"
    for content, others in ((flipped, True), (good[: offset + 5], False), (b"", False)):
        path.write_bytes(content)
        for read in (lambda: rows[0], lambda: stored.load("pooled")):
            with pytest.raises(UserError, match=said):
                read()
        if others:
            assert rows[1].isfinite().all()
    path.write_bytes(good)
    assert torch.equal(rows[0], stored.load("pooled")[0])
