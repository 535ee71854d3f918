import errno
import fcntl
import json
import math
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vision_core import run_folder
from vision_core.checkpoints import write_checkpoint
from vision_core.errors import UserError, run_script
from vision_core.folder_checks import end_if_all_is_done
from vision_core.run_folder import RunFolder

CONFIG = "learning_rate: 0.001\nmax_steps: 10\nresume_from_checkpoint: null\n"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def open_run(
    output_dir: str | None = "run", resume: bool | str | None = None, config: str = CONFIG, warnings: list | None = None
) -> RunFolder:
    """A run that has begun."""
    warn = (warnings if warnings is not None else []).append
    run = RunFolder.open(output_dir, "dinov2", config, resume, warn=warn)
    run.begin()
    return run


def save(folder: Path, step: int) -> Path:
    return write_checkpoint(folder, step, lambda aside: (aside / "state.bin").write_bytes(bytes(100)), keep=None)


def old_run(steps: tuple[int, ...] = (10, 20)) -> Path:
    run = open_run()
    for step in range(1, 26):
        run.append_metrics({"step": step, "loss": 1 / step})
        if step in steps:
            save(run.path, step)
    run.close()
    return run.path


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        open_run(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def metric_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_default_folder_is_the_next_free_number():
    Path("outputs/dinov2-7").mkdir(parents=True)
    Path("outputs/dinov2-x").mkdir()
    first, second = open_run(None), open_run(None)
    assert (first.path, second.path) == (Path("outputs/dinov2-8"), Path("outputs/dinov2-9"))
    assert (first.step, first.checkpoint, first.changes) == (0, None, {})
    assert (first.path / "config.yaml").read_text() == CONFIG
    assert RunFolder.open(None, "other.run", CONFIG).path == Path("outputs/other.run-1")


def test_a_used_folder_is_refused_with_both_commands_and_left_as_it_was():
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    old_run()
    message = refusal("run")
    assert "`--output_dir run --resume_from_checkpoint true`" in message and "`--output_dir OTHER`" in message
    message = refusal("mine")  # there is nothing to continue in it
    assert "--resume_from_checkpoint" not in message and "`--output_dir OTHER`" in message
    assert os.listdir("mine") == ["letter.txt"]


def test_an_empty_folder_or_one_with_only_a_lock_is_taken():
    Path("empty").mkdir()
    Path("empty/.lock").touch()
    assert open_run("empty").path == Path("empty")


@pytest.mark.parametrize("path", ["/dev/null/x", "a_file", "a_file/below"])
@pytest.mark.parametrize("resume", [None, "true"])
def test_an_unusable_folder_is_named(path, resume):
    Path("a_file").write_text("x")
    message = refusal(path, resume)
    assert path in message and "--output_dir" in message or "no folder" in message


def test_a_full_disk_at_the_start_is_one_line(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "run/config.yaml")

    with monkeypatch.context() as patched:
        patched.setattr(run_folder.checkpoints, "write_text_atomically", full)
        assert "No space left on device" in refusal()
    assert open_run("run").step == 0, "the lock was given back"


def test_resume_takes_the_newest_and_brings_the_folder_back_to_its_step():
    path = old_run()
    warnings = []
    run = open_run(resume=True, warnings=warnings)
    assert (run.checkpoint, run.step, run.changes) == (path / "checkpoint-20", 20, {})
    assert metric_steps(path) == list(range(1, 21))
    assert warnings == [] and not (path / "config-1.yaml").exists()
    run.append_metrics({"step": 21})
    assert metric_steps(path) == list(range(1, 22))


@pytest.mark.parametrize("output_dir", [None, "run"])
def test_resume_from_a_named_checkpoint_sets_later_ones_aside(output_dir):
    path = old_run()
    warnings = []
    run = open_run(output_dir, "run/checkpoint-10", warnings=warnings)
    assert (run.path, run.step) == (path, 10)
    assert metric_steps(path) == list(range(1, 11))
    assert "set-aside-1-checkpoint-20" in warnings[0] and len(warnings) == 1
    run.close()
    save(path, 20)
    again = open_run(output_dir, "run/checkpoint-10")
    assert (path / "set-aside-1-checkpoint-20").is_dir() and (path / "set-aside-2-checkpoint-20").is_dir()
    again.close()
    assert open_run(resume="true").step == 10, "the course that was left does not come back"


def test_resume_falls_back_and_says_why():
    path = old_run()
    os.truncate(path / "checkpoint-20/state.bin", 3)
    warnings = []
    run = open_run(resume="true", warnings=warnings)
    assert run.step == 10
    assert "state.bin has 3 bytes instead of 100" in warnings[0]
    save(path, 20)
    run.close()
    assert open_run(resume="true").step == 20


def test_a_named_checkpoint_that_is_damaged_is_refused():
    path = old_run()
    os.truncate(path / "checkpoint-20/state.bin", 3)
    message = refusal(resume="run/checkpoint-20")
    assert "run/checkpoint-20" in message and "state.bin" in message and "true" in message
    assert metric_steps(path) == list(range(1, 26)), "a refusal changes nothing"
    assert "MANIFEST.json is missing" in refusal(None, "run")


def test_resume_that_cannot_be():
    assert "add --output_dir FOLDER" in refusal(None, "true")
    open_run(None).close()
    assert "add --output_dir outputs/dinov2-1" in refusal(None, True)
    assert "no whole checkpoint-<step> in outputs/dinov2-1" in refusal("outputs/dinov2-1", "true")
    assert "there is no folder nowhere" in refusal("nowhere", "true")
    assert "nowhere/checkpoint-3" in refusal(None, "nowhere/checkpoint-3")
    assert not Path("nowhere").exists()
    old_run()
    assert "--init_from" in refusal("elsewhere", "run/checkpoint-10")


@pytest.mark.parametrize("resume", [None, False, "false", "none"])
def test_words_for_a_new_run(resume):
    assert open_run(resume=resume).checkpoint is None


def test_a_changed_config_is_listed_and_the_old_one_kept():
    path = old_run()
    changed = CONFIG.replace("0.001", "0.002") + "seed: 1\n"
    warnings = []
    run = open_run(resume=True, config=changed, warnings=warnings)
    assert run.changes == {"learning_rate": (0.001, 0.002), "seed": ("(absent)", 1)}
    assert "learning_rate 0.001 -> 0.002" in warnings[0] and "config-1.yaml" in warnings[0]
    assert (path / "config-1.yaml").read_text() == CONFIG and (path / "config.yaml").read_text() == changed
    run.close()
    open_run(resume=True).close()
    assert (path / "config-2.yaml").read_text() == changed and (path / "config.yaml").read_text() == CONFIG


def fork(body) -> int:
    child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os._exit(1)
    return child


def wait_until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_two_runs_in_one_folder_are_kept_apart_until_the_first_is_killed():
    """The killed run leaves a forked data worker behind, which must not hold the lock."""
    old_run()

    def run_with_a_worker():
        open_run(resume=True)
        worker = fork(lambda: (Path("worker").touch(), time.sleep(20)))
        wait_until(Path("worker").exists)
        Path("pid").write_text(str(worker))
        Path("ready").touch()
        time.sleep(20)

    child = fork(run_with_a_worker)
    wait_until(Path("ready").exists)
    try:
        message = refusal(resume=True)
        assert f"pid {child} on " in message and "run is in use" in message
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.kill(int(Path("pid").read_text()), 0)  # the worker is alive
        assert open_run(resume=True).step == 20
    finally:
        os.kill(int(Path("pid").read_text()), signal.SIGKILL)


def test_a_closed_run_can_be_opened_again_by_the_same_process():
    path = old_run()
    first = open_run(resume=True)
    assert f"pid {os.getpid()} on " in refusal(resume=True)
    first.close()
    first.close()
    assert open_run(resume=True).path == path


def test_a_file_system_without_locks_is_a_warning(monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    warnings = []
    open_run(warnings=warnings)
    assert "cannot be locked" in warnings[0]


def test_metrics_are_valid_json_and_exact():
    run = open_run()
    loss = 0.1 + 0.2
    run.append_metrics({"step": 1, "loss": loss, "bad": [math.nan, math.inf, -math.inf], "name": "é\nx", "none": None, "flag": True})
    run.append_metrics({"step": np.int64(2), "loss": torch.tensor(0.1), "parts": {"a": np.float32(math.nan)}})
    lines = (run.path / "metrics.jsonl").read_text().split("\n")
    assert len(lines) == 3 and lines[2] == ""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    first, second = (json.loads(line, parse_constant=refuse) for line in lines[:2])
    words = ["nan", "inf", "-inf"]
    assert first == {"step": 1, "loss": loss, "bad": words, "name": "é\nx", "none": None, "flag": True}
    assert second == {"step": 2, "loss": float(np.float32(0.1)), "parts": {"a": "nan"}}


def test_metrics_cut_by_a_power_loss_are_reported_and_dropped():
    path = old_run()
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 26, "lo')
    warnings = []
    run = open_run(resume=True, warnings=warnings)
    assert "metrics.jsonl: 1 broken line" in warnings[0]
    assert metric_steps(path) == list(range(1, 21))
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2')
    run.append_metrics({"step": 21})
    assert (path / "metrics.jsonl").read_text().endswith('{"step": 2\n{"step": 21}\n')


def test_truncate_metrics_keeps_lines_without_a_step():
    run = open_run()
    for record in ({"note": "start"}, {"step": 1, "loss": 0.1 + 0.2}, {"step": 5}):
        run.append_metrics(record)
    first_two = (run.path / "metrics.jsonl").read_text().splitlines()[:2]
    run.truncate_metrics(4)
    assert (run.path / "metrics.jsonl").read_text().splitlines() == first_two


def test_a_full_disk_delays_metrics_and_never_splits_a_line(monkeypatch):
    warnings = []
    run = open_run(warnings=warnings)
    run.append_metrics({"step": 1})
    write = os.write

    def half_then_full(descriptor, data):
        if len(data) < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half_then_full)
    run.append_metrics({"step": 2})
    run.append_metrics({"step": 3})
    assert metric_steps(run.path) == [1]
    assert len(warnings) == 1 and "No space left on device" in warnings[0]
    monkeypatch.setattr(os, "write", write)
    run.append_metrics({"step": 4})
    assert metric_steps(run.path) == [1, 2, 3, 4]


def test_bad_samples_are_named_once_also_across_a_resume():
    odd_name = os.fsdecode(b"bad\xff\n.jpg")
    path = old_run()
    run = open_run(resume=True)
    assert [run.append_bad_sample(each, "truncated") for each in ("a.jpg", odd_name, "a.jpg")] == [True, True, False]
    run.close()
    again = open_run(resume=True)
    assert again.bad_sample_ids == {"a.jpg", odd_name}
    assert [again.append_bad_sample(each, "truncated") for each in (odd_name, "b.jpg")] == [False, True]
    records = [json.loads(line) for line in (path / "bad_samples.jsonl").read_text().splitlines()]
    assert records == [{"id": each, "reason": "truncated"} for each in ("a.jpg", odd_name, "b.jpg")]


def test_warnings_go_to_stderr_by_default(capsys):
    path = old_run()
    os.truncate(path / "checkpoint-20/state.bin", 3)
    RunFolder.open("run", "dinov2", CONFIG, True)
    assert "warning: run/checkpoint-20 is damaged" in capsys.readouterr().err


def fails_in(output_dir, before=lambda path: None):
    """A program that is refused after its folder was opened."""

    def main():
        run = open_run(output_dir)
        before(run.path)
        raise UserError("there is no such model; name another")

    with pytest.raises(SystemExit):
        run_script(main)


@pytest.mark.parametrize("output_dir", ["run", "deep/er/run", None])
def test_a_refused_run_leaves_no_folder(output_dir):
    fails_in(output_dir)
    assert list(Path().iterdir()) == []
    open_run(output_dir)


def test_what_was_there_before_stays():
    Path("mine/empty").mkdir(parents=True)
    Path("locked").mkdir()
    Path("locked/.lock").write_text("old")
    fails_in("mine/empty")
    fails_in("mine/new")
    fails_in("locked")
    assert sorted(map(str, Path().rglob("*"))) == ["locked", "locked/.lock", "mine", "mine/empty"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint-1", "thesis.tex"])
def test_a_refused_run_keeps_what_it_has_made(name):
    fails_in("run", lambda path: (path / name).touch())
    assert {entry.name for entry in Path("run").iterdir()} == {name, "config.yaml", ".lock"}


def test_a_run_that_ends_well_or_is_told_to_stop_keeps_its_folder():
    def stopped():
        open_run("stopped").close()
        raise SystemExit(143)

    run_script(lambda: open_run("well").close())
    with pytest.raises(SystemExit):
        run_script(stopped)
    assert Path("well/config.yaml").is_file() and Path("stopped/config.yaml").is_file()


PROGRAM = "pretrain/dinov2.py"


def open_auto(config: str = CONFIG) -> RunFolder:
    return RunFolder.open("run", "dinov2", config, "auto", program=PROGRAM)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which names the process that holds the folder."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def test_opening_an_old_run_changes_nothing_until_it_begins():
    path = old_run()
    before = tree(path)
    run = RunFolder.open("run", "dinov2", CONFIG.replace("0.001", "0.002"), "run/checkpoint-10")
    run.append_metrics({"step": 11})
    run.append_bad_sample("a.jpg", "corrupt")
    run.close()
    assert tree(path) == before
    run.begin()
    assert metric_steps(path) == list(range(1, 12))
    moved = [json.loads(line)["step"] for line in (path / "metrics-set-aside.jsonl").read_text().splitlines()]
    assert moved == list(range(11, 26)), "what is cut from metrics.jsonl is kept"
    assert json.loads((path / "bad_samples.jsonl").read_text())["id"] == "a.jpg"


@pytest.mark.parametrize("refused_by", ["the look at the checkpoint", "what comes behind it"])
def test_a_checkpoint_that_a_kill_left_sealed_is_shown_to_a_run_that_begins_and_to_no_other(refused_by):
    """The kill came between a save's last write and its rename."""
    path = old_run()
    (path / "checkpoint-20").rename(path / ".tmp-20-99999")

    def look(checkpoint: Path) -> None:
        assert checkpoint.name == "checkpoint-20"
        if refused_by == "the look at the checkpoint":
            raise UserError("no")

    def main() -> None:
        RunFolder.open("run", "dinov2", CONFIG, "true", check=look)
        raise UserError("no")

    before, times = tree(path), {each: each.stat().st_mtime_ns for each in path.rglob("*")}
    with pytest.raises(SystemExit):
        run_script(main)
    assert tree(path) == before and {each: each.stat().st_mtime_ns for each in path.rglob("*")} == times
    run = open_run(resume="true")
    assert run.step == 20 and not list(path.glob(".tmp-*")) and (path / "checkpoint-20").is_dir()


def test_auto_starts_goes_on_and_says_that_all_is_done(capsys):
    first = open_auto()  # there is no folder
    assert (first.step, first.is_old) == (0, False)
    first.append_metrics({"step": 1})
    first.close()
    second = open_auto()  # killed before its first checkpoint
    second.begin()
    assert (second.step, second.checkpoint, second.is_old) == (0, None, True) and metric_steps(second.path) == []
    save(second.path, 10)
    second.close()
    third = open_auto()
    third.begin()
    assert (third.step, third.is_old) == (10, True)
    end_if_all_is_done("run", CONFIG, "auto", PROGRAM)
    third.finish()
    third.close()
    longer = CONFIG.replace("max_steps: 10", "max_steps: 20")
    for config, resume in ((longer, "auto"), (CONFIG, "true"), (CONFIG, None)):
        end_if_all_is_done("run", config, resume, PROGRAM)
    with pytest.raises(SystemExit) as end:
        run_script(lambda: end_if_all_is_done("run", CONFIG, "auto", PROGRAM))
    assert end.value.code == 0 and capsys.readouterr().out.startswith("all is done: run holds")
    fourth = open_auto(longer)
    fourth.begin()
    assert fourth.step == 10 and not (fourth.path / "finished.json").exists()


def test_auto_begins_again_where_no_checkpoint_is_whole_and_keeps_the_damaged_one():
    run = open_auto()
    os.truncate(save(run.path, 10) / "state.bin", 3)
    run.close()
    again = open_auto()
    again.begin()
    assert again.step == 0 and (again.path / "set-aside-1-checkpoint-10").is_dir()


def test_auto_refuses_what_it_could_not_find_again_or_is_not_the_programs():
    message = "needs a folder with a name.*--output_dir outputs/dinov2-1"
    with pytest.raises(UserError, match=message):
        RunFolder.open(None, "dinov2", CONFIG, "auto", program=PROGRAM)
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    with pytest.raises(UserError, match="mine is not empty"):
        RunFolder.open("mine", "dinov2", CONFIG, "auto", program=PROGRAM)
    open_auto().close()
    with pytest.raises(UserError, match="is a run of pretrain/dinov2.py, not of pretrain/mae.py"):
        RunFolder.open("run", "mae", CONFIG, "auto", program="pretrain/mae.py")


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path):
    """Somebody else's folder could name any file of ours."""
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="cannot be used"):
        RunFolder.open(str(tmp_path / "run"), "run", "a: 1\n")
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_run_whose_last_process_is_dying_is_waited_for(tmp_path):
    """A killed process of many threads is a zombie before the kernel has freed what it held; here another one frees it late."""
    (tmp_path / "run").mkdir()
    dead = subprocess.Popen(["true"])
    while Path(f"/proc/{dead.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)  # nobody waits for it, so it stays a zombie
    lock = tmp_path / "run" / ".lock"
    lock.write_text(f"pid {dead.pid} on {socket.gethostname()}\n")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.5, lambda: fcntl.flock(held, fcntl.LOCK_UN)).start()
        began = time.monotonic()
        RunFolder.open(str(tmp_path / "run"), "run", "a: 1\n").close()
    assert time.monotonic() - began >= 0.4
    dead.wait()
