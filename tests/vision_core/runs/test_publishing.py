"""Files that others read: old or new, never torn; what a failure or a kill leaves."""

import errno
import os
import re
import subprocess
import sys

import pytest

from vision_core.runs.checkpoints import CheckpointNotWritten
from vision_core.runs.publishing import published, published_whole

NAMES = [
    "README.md",
    "adapter/adapter_model.safetensors",
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
]


def fill(folder, text):
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_files_are_put_in_place_weights_last_and_others_stay(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("{}")
    with published(tmp_path) as aside:
        fill(aside, "old")
    order, replace = [], os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (order.append(b.relative_to(tmp_path).as_posix()), replace(a, b))[1]
    )
    with published(tmp_path) as aside:
        fill(aside, "new")
    assert order == [NAMES[0], NAMES[2], NAMES[1], NAMES[3], NAMES[4]]
    assert names(tmp_path) == sorted([*NAMES, "metrics.jsonl"])
    assert all((tmp_path / name).read_text() == "new" for name in NAMES)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), Exception("No space left on device (os error 28)")],
)
def test_a_full_disk_is_one_line_and_the_old_files_stay(tmp_path, error):
    """tokenizers raises an error of no kind."""
    with published(tmp_path) as aside:
        fill(aside, "old")
    refused = pytest.raises(
        CheckpointNotWritten, match=f"{re.escape(str(tmp_path))} was not written: No space left on device"
    )
    with refused as caught, published(tmp_path) as aside:
        (aside / "config.json").write_text("new")
        raise error
    assert "\n" not in str(caught.value) and names(tmp_path) == NAMES
    assert all((tmp_path / name).read_text() == "old" for name in NAMES)


def test_a_programming_error_passes_through_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), published(tmp_path / "run") as aside:
        (aside / "config.json").write_text("new")
        _ = {}["x"]
    assert names(tmp_path) == []


def test_a_whole_folder_appears_by_one_rename_and_what_a_kill_left_is_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, other = tmp_path / f".tmp-encoder-{ended.pid}", tmp_path / f".tmp-encoder-2-{ended.pid}"
    left.mkdir(), other.mkdir()
    with published_whole(tmp_path / "encoder") as aside:
        fill(aside, "new")
        assert not (tmp_path / "encoder").exists()
    assert names(tmp_path / "encoder") == NAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "encoder"]
