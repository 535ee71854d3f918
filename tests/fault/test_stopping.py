"""A run that is told to stop saves and leaves nobody behind, whichever launcher was told; what
dies, takes everything with it."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from vision_core.runs.checkpoints import verify_checkpoint

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
LAUNCHERS = {
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"],
    "torchrun": [*TORCHRUN, "1"],
    "deepspeed": [str(Path(sys.executable).with_name("deepspeed"))],
}
TWO_RANKS = ("--per_device_train_batch_size", 4)


def gone(run) -> bool:
    """Whether nothing of the run is left within 10 seconds."""
    deadline = time.monotonic() + 10
    while run.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not run.processes()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_sigterm_to_the_launcher_saves_and_leaves_nobody(
    runs, launch, start, whole, same, last_step, tmp_path, name
):
    if name == "deepspeed" and not Path(LAUNCHERS[name][0]).exists():
        pytest.skip("deepspeed is not installed; pip install -e '.[recipes]'")
    folder = tmp_path / "run"
    run = launch([*runs.deepspeed(1), "--no_local_rank"] if name == "deepspeed" else LAUNCHERS[name], folder)
    run.wait_for_step(7)
    os.kill(run.pid, signal.SIGTERM)
    told = time.monotonic()
    while run.processes() and time.monotonic() < told + 20:
        time.sleep(0.05)
        run.poll()
    assert not run.processes(), "alive 20 s after SIGTERM"
    print(f"{name}: saved and gone {time.monotonic() - told:.1f} s after SIGTERM")
    assert 7 <= last_step(folder) < 60, "it must have been stopped in the middle"
    assert f"step {last_step(folder)} of 60 is saved" in run.printed
    assert (folder / f"checkpoint-{last_step(folder)}").is_dir()
    assert start(folder, "--resume_from_checkpoint", "true").wait() == 0
    same(folder, whole)


@pytest.mark.parametrize("name", ["accelerate", "torchrun that handles it"])
def test_sigusr1_to_the_launcher_saves_and_leaves_nobody(launch, last_step, tmp_path, name):
    """accelerate, torchrun and deepspeed die of it, which the run notices; torchrun can be told to
    pass it on."""
    folder = tmp_path / "run"
    told_to = [*TORCHRUN, "1", "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    run = launch(LAUNCHERS.get(name, told_to), folder, "--max_steps", 2000)
    run.wait_for_step(3)
    os.kill(run.pid, signal.SIGUSR1)
    told = time.monotonic()
    status = run.wait(20)
    assert gone(run)
    print(f"{name}: status {status}, saved and gone {time.monotonic() - told:.1f} s after SIGUSR1")
    assert (status == -signal.SIGUSR1) == (
        name in LAUNCHERS
    ) and f"step {last_step(folder)} of 2000 is saved" in run.printed
    print(*[line for line in run.printed.splitlines() if "told to stop" in line][-1:])
    assert (folder / f"checkpoint-{last_step(folder)}").is_dir()


def test_a_signal_to_the_whole_session_finds_the_data_workers_alive(start, whole, same, last_step, tmp_path):
    """A scheduler, or Ctrl-C, signals the workers too; the step in progress still gets its batch.
    The shell's status is told."""
    folder = tmp_path / "run"
    for number, status in ((signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)):
        run = start(folder, "--resume_from_checkpoint", "true" if folder.exists() else "none")
        run.wait_for_step(last_step(folder) + 3)
        os.killpg(run.pid, number)
        assert run.wait(20) == status, run.printed
        assert (folder / f"checkpoint-{last_step(folder)}").is_dir() and gone(run)
    assert start(folder, "--resume_from_checkpoint", "true").wait() == 0
    same(folder, whole)


def test_ctrl_c_under_a_launcher_ends_in_the_runs_own_words(launch, last_step, tmp_path):
    """They stand behind the launcher's traceback, whichever of the two is through first."""
    run = launch(LAUNCHERS["accelerate"], tmp_path / "run")
    run.wait_for_step(4)
    os.killpg(run.pid, signal.SIGINT)
    assert run.wait(60) != 0 and gone(run)
    words = (
        f"told to stop: step {last_step(tmp_path / 'run')} of 60 is saved; --output_dir {tmp_path / 'run'}"
    )
    assert [line for line in run.printed.splitlines() if line.strip()][-1].startswith(words)


def test_a_second_sigterm_does_not_cut_the_save(start, last_step, tmp_path):
    run = start(tmp_path / "run")
    run.wait_for_step(4)
    os.kill(run.pid, signal.SIGTERM)
    run.wait_until(lambda: any((tmp_path / "run").glob(f".tmp-*-{run.pid}")))
    os.kill(run.pid, signal.SIGTERM)
    assert any((tmp_path / "run").glob(f".tmp-*-{run.pid}")), (
        "the second signal must come while the save is being written"
    )
    assert run.wait(20) == 143
    assert verify_checkpoint(tmp_path / "run" / f"checkpoint-{last_step(tmp_path / 'run')}") is None


def test_kill_9_takes_the_data_workers_along(start, tmp_path):
    """Also workers that hang: torch's own watch over the parent needs a worker that runs."""
    run = start(tmp_path / "run")
    run.wait_for_step(3)
    workers = run.children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    os.kill(run.pid, signal.SIGKILL)
    run.wait(5)
    assert gone(run)


def test_two_ranks_stop_at_one_step_and_go_on_bit_for_bit(runs, launch, start_two, same, last_step, tmp_path):
    """SIGTERM to torchrun, to one rank alone, and kill -9 of a rank; against a run of two ranks
    that nothing happened to."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    runs.finish(*start_two(whole, *TWO_RANKS))
    resume = (*TWO_RANKS, "--resume_from_checkpoint", "true")

    run = launch([*TORCHRUN, "2"], folder, *TWO_RANKS)
    run.wait_for_step(8)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(20) != 0 and gone(run)
    assert (folder / f"checkpoint-{last_step(folder)}").is_dir()

    run = launch([*TORCHRUN, "2"], folder, *resume)
    run.wait_for_step(20)
    ranks = [pid for pid in run.processes() if pid in run.children()]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait(15) != 0 and gone(run) and time.monotonic() - killed < 15
    print(f"everything gone {time.monotonic() - killed:.1f} s after kill -9 of a rank")

    run = launch([*TORCHRUN, "2"], folder, *resume)
    run.wait_for_step(30)
    os.kill(run.children()[1], signal.SIGTERM)
    assert run.wait(20) != 0 and gone(run)
    stopped = last_step(folder)
    assert stopped < 60 and (folder / f"checkpoint-{stopped}").is_dir()

    runs.finish(*start_two(folder, *resume))
    same(folder, whole)
