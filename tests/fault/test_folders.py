"""Damaged checkpoints, every step resumed, folders that cannot be used, two runs in one folder."""

import shutil
import time

import pytest

FILES = (
    "MANIFEST.json",
    "config.json",
    "heads.safetensors",
    "model.safetensors",
    "optimizer.safetensors",
    "preprocessor_config.json",
    "student.safetensors",
    "training_state.json",
)
DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "a flipped bit": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "empty": lambda data: b"",
    "missing": None,
}
# ten steps an epoch, so that resumed steps lie inside epochs and at their ends
SHORT = ("--dataset", "scenes?size=32&count=80", "--max_steps", 24)


@pytest.fixture(scope="module")
def short(start, tmp_path_factory):
    """A finished run of 24 steps with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("short") / "run"
    run = start(folder, *SHORT, "--save_steps", 1, "--save_total_limit", 24)
    assert run.wait() == 0, run.printed
    return folder


def damage(path, how):
    if DAMAGES[how] is None:
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(DAMAGES[how](data))
        assert path.read_bytes() != data


def test_the_list_of_files_is_complete(short):
    assert sorted(path.name for path in (short / "checkpoint-24").iterdir()) == sorted(FILES)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_goes_on(
    start, short, same, tmp_path, name, how
):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in short.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    for step in (23, 24):
        shutil.copytree(short / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    damage(folder / "checkpoint-24" / name, how)
    named = start(folder, *SHORT, "--resume_from_checkpoint", folder / "checkpoint-24")
    assert named.wait(20) == 2
    assert "error: " in named.printed and "checkpoint-24" in named.printed and name in named.printed
    run = start(folder, *SHORT, "--resume_from_checkpoint", "true")
    assert run.wait() == 0, run.printed
    assert "checkpoint-24" in run.printed and name in run.printed and "steps 23 to 24" in run.printed
    same(folder, short)


def test_every_step_resumes_bit_for_bit(start, short, same, tmp_path):
    for step in range(1, 24):
        folder = tmp_path / str(step)
        folder.mkdir()
        for name in ("config.yaml", "metrics.jsonl"):
            shutil.copy(short / name, folder)
        shutil.copytree(short / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        run = start(
            folder,
            *SHORT,
            "--save_steps",
            24,
            "--resume_from_checkpoint",
            "true",
            "--dataloader_num_workers",
            step % 3,
        )
        assert run.wait() == 0, run.printed
        assert f"steps {step} to 24" in run.printed
        same(folder, short)


@pytest.mark.parametrize("kind", ["below a file", "a file", "somebody's folder"])
def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_built(start, tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    folder = {
        "below a file": tmp_path / "file" / "run",
        "a file": tmp_path / "file",
        "somebody's folder": tmp_path / "folder",
    }[kind]
    start(tmp_path / "other", "--help").wait()  # the first start of all waits for the imports
    began = time.monotonic()
    run = start(folder)
    assert run.wait(5) == 2 and time.monotonic() - began < 5
    assert (
        run.printed.startswith("error: ")
        and str(folder) in run.printed
        and len(run.printed.splitlines()) == 1
    )
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "thesis.txt").read_text() == "mine"


def test_a_second_run_in_one_folder_is_refused_and_the_first_goes_on(start, whole, same, tmp_path):
    folder = tmp_path / "run"
    first = start(folder)
    first.wait_for_step(3)
    for resume in ("none", "true"):
        second = start(folder, "--resume_from_checkpoint", resume)
        assert second.wait(20) == 2
        assert str(folder) in second.printed and (
            resume == "none" or f"in use by another run (pid {first.pid}" in second.printed
        )
    assert first.poll() is None, "the first run must have been in the folder"
    assert first.wait() == 0
    same(folder, whole)
