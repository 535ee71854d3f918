import errno
import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vision_core.runs.checkpoints import (
    MANIFEST,
    CheckpointNotWritten,
    checkpoint_step,
    clean_leftovers,
    finish_saves,
    list_checkpoints,
    newest_checkpoint,
    replace_files,
    verify_checkpoint,
    write_checkpoint,
    write_text_atomically,
)

FILES = ["model.safetensors", "state.json", "heads/dino.bin", MANIFEST]


def write_files(folder: Path, step: int = 0) -> None:
    save_file({"weight": torch.full((64,), float(step))}, folder / "model.safetensors")
    (folder / "state.json").write_text(json.dumps({"step": step}))
    (folder / "heads").mkdir()
    (folder / "heads/dino.bin").write_bytes(bytes(range(256)))


def save(root: Path, step: int, keep: int | None = None) -> Path:
    return write_checkpoint(root, step, lambda folder: write_files(folder, step), keep)


def no_warning(text: str) -> None:
    raise AssertionError(text)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_is_whole_and_found(tmp_path):
    root = tmp_path / "not/yet/there"
    folder = save(root, 7)
    assert folder == root / "checkpoint-7"
    assert verify_checkpoint(folder) is None
    assert checkpoint_step(folder) == 7
    assert newest_checkpoint(root, no_warning) == folder
    assert names(root) == ["checkpoint-7"]
    assert sorted(json.loads((folder / MANIFEST).read_text())["files"]) == [
        "heads/dino.bin",
        "model.safetensors",
        "state.json",
    ]


def test_steps_are_ordered_as_numbers_and_foreign_names_are_ignored(tmp_path):
    for step in (9, 100, 20):
        save(tmp_path, step)
    for foreign in ("checkpoint-best", "checkpoint-", "checkpoint-200x", "x-checkpoint-300"):
        (tmp_path / foreign).mkdir()
    (tmp_path / "checkpoint-500").write_text("a file")
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-20",
        "checkpoint-100",
    ]
    assert newest_checkpoint(tmp_path, no_warning).name == "checkpoint-100"


@pytest.mark.parametrize("keep, left", [(1, [50]), (2, [40, 50]), (None, [10, 20, 30, 40, 50])])
def test_old_checkpoints_go(tmp_path, keep, left):
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step, keep)
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == left
    assert not list(tmp_path.glob(".*"))


def test_the_new_checkpoint_never_counts_as_an_old_one(tmp_path):
    save(tmp_path, 20)
    save(tmp_path, 10, keep=1)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20"]


def test_a_step_done_again_replaces_its_checkpoint(tmp_path):
    save(tmp_path, 5)
    write_checkpoint(tmp_path, 5, lambda folder: (folder / "other.json").write_text("{}"), keep=1)
    assert names(tmp_path) == ["checkpoint-5"]
    assert names(tmp_path / "checkpoint-5") == [MANIFEST, "other.json"]
    assert verify_checkpoint(tmp_path / "checkpoint-5") is None


def test_nothing_in_a_folder_means_none(tmp_path):
    assert newest_checkpoint(tmp_path, no_warning) is None
    assert newest_checkpoint(tmp_path / "missing", no_warning) is None


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip_one_bit, os.remove, empty])
def test_a_damaged_checkpoint_is_skipped_and_its_file_named(tmp_path, damage, name):
    good, bad = save(tmp_path, 10), save(tmp_path, 20)
    before = (bad / name).read_bytes()
    damage(bad / name)
    assert not (bad / name).exists() or (bad / name).read_bytes() != before
    warnings = []
    assert newest_checkpoint(tmp_path, warnings.append) == good
    assert len(warnings) == 1 and name in warnings[0] and "checkpoint-20" in warnings[0]
    assert name in verify_checkpoint(bad)


def test_every_single_bit_of_the_manifest_counts(tmp_path):
    path = save(tmp_path, 10) / MANIFEST
    data = path.read_bytes()
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            assert MANIFEST in verify_checkpoint(path.parent), (position, bit)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{}", '{"step": 1, "files": 3}', "[" * 100_000])
def test_a_manifest_of_something_else_is_a_reason_not_a_crash(tmp_path, text):
    folder = save(tmp_path, 10)
    (folder / MANIFEST).write_text(text)
    assert MANIFEST in verify_checkpoint(folder)


def test_a_renamed_checkpoint_does_not_pass_for_another_step(tmp_path):
    save(tmp_path, 10).rename(tmp_path / "checkpoint-99")
    assert "step 10" in verify_checkpoint(tmp_path / "checkpoint-99")


def test_safetensors_alone_would_not_notice_a_flipped_bit(tmp_path):
    """Why the manifest has hashes."""
    folder = save(tmp_path, 1)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert not torch.equal(load_file(folder / "model.safetensors")["weight"], torch.ones(64))
    assert "model.safetensors" in verify_checkpoint(folder)


def test_leftovers_are_cleaned_and_an_interrupted_replacement_is_finished(tmp_path):
    whole = save(tmp_path, 3)
    whole.rename(
        tmp_path / ".tmp-3-123"
    )  # killed after the old checkpoint-3 went aside, before the new one took its place
    (tmp_path / ".del-checkpoint-3-123").mkdir()
    (tmp_path / ".tmp-4-123").mkdir()
    write_files(tmp_path / ".tmp-4-123")
    (tmp_path / ".tmp-config.json").write_text("half")
    finish_saves(tmp_path)
    clean_leftovers(tmp_path)
    assert names(tmp_path) == ["checkpoint-3"]
    assert verify_checkpoint(tmp_path / "checkpoint-3") is None


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")],
)
def test_a_failed_write_leaves_the_earlier_checkpoints_alone(tmp_path, error):
    save(tmp_path, 1, keep=1)

    def write(folder: Path) -> None:
        (folder / "part.bin").write_bytes(bytes(3_000_000))
        raise error

    with pytest.raises(CheckpointNotWritten) as caught:
        write_checkpoint(tmp_path, 2, write, keep=1)
    message = str(caught.value)
    assert "\n" not in message
    assert (
        str(tmp_path / "checkpoint-2") in message
        and "at least 3.0 MB" in message
        and "MB are free" in message
    )
    assert (error.strerror if isinstance(error, OSError) else str(error)) in message
    assert caught.value.__cause__ is error
    assert names(tmp_path) == ["checkpoint-1"]
    assert newest_checkpoint(tmp_path, no_warning).name == "checkpoint-1"


def test_a_programming_error_passes_through_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        write_checkpoint(tmp_path, 2, lambda folder: {}["x"], keep=1)
    assert names(tmp_path) == []


def test_a_failed_last_rename_puts_the_replaced_checkpoint_back(tmp_path, monkeypatch):
    save(tmp_path, 5)
    rename = os.rename

    def failing_rename(source, target):
        if Path(source).name.startswith(".tmp-"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing_rename)
    with pytest.raises(CheckpointNotWritten, match="Input/output error"):
        save(tmp_path, 5)
    assert names(tmp_path) == ["checkpoint-5"]
    assert verify_checkpoint(tmp_path / "checkpoint-5") is None


def python_write(folder: Path) -> None:
    (folder / "state.bin").write_bytes(bytes(2_000_000))


def safetensors_write(folder: Path) -> None:
    save_file({"weight": torch.zeros(500_000)}, folder / "model.safetensors")


def torch_write(folder: Path) -> None:
    torch.save({"weight": torch.zeros(500_000)}, folder / "optimizer.pt")


def report_failed_saves(root: Path, report: Path) -> None:
    """In a forked child: saves under a file size limit, which makes the same exceptions as a full
    disk, without root.
    """
    lines = []
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        for write in (python_write, safetensors_write, torch_write):
            try:
                write_checkpoint(root, 2, write, keep=1)
            except CheckpointNotWritten as error:
                lines.append(f"{type(error.__cause__).__name__} {error} {names(root)}")
        report.write_text("\n".join(lines))
    finally:
        os._exit(0 if len(lines) == 3 else 1)


def test_real_write_errors_of_every_library(tmp_path):
    root, report = tmp_path / "run", tmp_path / "report.txt"
    write_checkpoint(root, 1, python_write, keep=1)
    child = os.fork()
    if child == 0:
        report_failed_saves(root, report)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lines = report.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["OSError", "SafetensorError", "RuntimeError"], lines
    for line in lines:
        assert "checkpoint-2 was not written" in line and "at least 2.0 MB" in line and "MB are free" in line
        assert line.endswith("['checkpoint-1']")
    assert newest_checkpoint(root, no_warning) == root / "checkpoint-1"


def save_until_killed(root: Path, step: int, increment: int) -> None:
    """What a run does, in a forked child that never comes back to the test."""
    try:
        while True:
            write_checkpoint(
                root,
                step,
                lambda folder: [(folder / f"{i}.bin").write_bytes(os.urandom(200_000)) for i in range(3)],
                keep=1,
            )
            step += increment
    finally:
        os._exit(1)


@pytest.mark.parametrize("increment", [1, 0], ids=["rising_steps", "one_step_again_and_again"])
def test_kill_9_in_the_save_never_leaves_a_torn_or_no_checkpoint(tmp_path, increment):
    generator, interrupted, newest = random.Random(0), 0, save(tmp_path, 1)
    for _ in range(12):
        step = checkpoint_step(newest) + increment
        child = os.fork()
        if child == 0:
            save_until_killed(tmp_path, step, increment)
        time.sleep(0.03 + generator.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        interrupted += bool(list(tmp_path.glob(".tmp-*")))
        finish_saves(tmp_path)
        clean_leftovers(tmp_path)
        newest = newest_checkpoint(tmp_path, no_warning)
        assert newest is not None
        assert all(verify_checkpoint(path) is None for path in list_checkpoints(tmp_path))
        assert not list(tmp_path.glob(".*"))
    assert interrupted >= 3, "the kills must hit saves"
    assert checkpoint_step(newest) >= 1 + 12 * increment


def test_files_reach_the_disk_before_the_rename(tmp_path, monkeypatch):
    """Power loss: each file, the manifest and the folder are fsynced before the rename, the parent
    after it."""
    events = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd))[1]
    )
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b))[1])
    save(tmp_path, 1)
    aside = f".tmp-1-{os.getpid()}"
    assert sorted(events[:3]) == ["dino.bin", "model.safetensors", "state.json"]
    assert events[3:] == [MANIFEST, "heads", aside, "rename", tmp_path.name]


def test_replace_files_in_order_and_whole(tmp_path, monkeypatch):
    source, root = save(tmp_path / "run", 1), tmp_path / "run"
    (root / "state.json").write_text("old")
    order = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (order.append(Path(b).relative_to(root).as_posix()), replace(a, b))[1]
    )
    replace_files(source, root, ["state.json", "heads/dino.bin", "model.safetensors"])
    assert order == ["state.json", "heads/dino.bin", "model.safetensors"]
    for name in order:
        assert (root / name).read_bytes() == (source / name).read_bytes()
    assert names(root) == ["checkpoint-1", "heads", "model.safetensors", "state.json"]


def test_replace_files_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    source = save(tmp_path, 1)
    (tmp_path / "state.json").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(CheckpointNotWritten, match="state.json was not written: No space left"):
        replace_files(source, tmp_path, ["state.json"])
    assert (tmp_path / "state.json").read_text() == "old"
    assert names(tmp_path) == ["checkpoint-1", "state.json"]


def test_write_text_atomically(tmp_path):
    write_text_atomically(tmp_path / "a.txt", "é")
    write_text_atomically(tmp_path / "a.txt", "b")
    assert (tmp_path / "a.txt").read_text() == "b"
    with pytest.raises(OSError):
        write_text_atomically(tmp_path / "no/such/a.txt", "b")
    assert names(tmp_path) == ["a.txt"]
