"""kill -9 at any moment, and a save that fails: the run goes on as if nothing had happened."""

import random
import resource
import time

from vision_core.runs.checkpoints import list_checkpoints, newest_checkpoint, verify_checkpoint

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def test_kills_at_random_steps_leave_the_run_bit_for_bit_as_it_was(start, whole, same, last_step, tmp_path):
    """8 kills with two data workers: every loss, gradient norm and health figure, and all states at
    the end, are equal."""
    folder, generator, replayed = tmp_path / "run", random.Random(0), 0
    for kill in range(8):
        run = start(folder, "--resume_from_checkpoint", "true" if kill else "none")
        at = last_step(folder) - last_step(folder) % 5 + generator.randint(2, 9)
        # the lines that the last kill cost are there until the run has cut them off, which it does
        # before its workers start
        run.wait_until(lambda run=run, at=at: len(run.children()) == 2 and last_step(folder) >= at)
        run.kill()
        lost = last_step(folder) - newest_step(folder)
        assert lost <= 5, "no more than one interval between saves may be lost"
        replayed += lost
    assert start(folder, "--resume_from_checkpoint", "true").wait() == 0
    assert replayed >= 8, "the kills must have cost steps that were done again"
    same(folder, whole)
    print(f"8 kills: {replayed} steps done again, no number and no byte differs")


def test_kills_inside_saves_never_leave_a_torn_or_no_checkpoint(start, tmp_path):
    """30 kills while a save is being written, one checkpoint kept: the newest one is always whole,
    and goes on."""
    folder, generator, inside, killed = tmp_path / "run", random.Random(0), 0, []
    options = (
        "--save_steps",
        1,
        "--save_total_limit",
        1,
        "--max_steps",
        2000,
        "--health_steps",
        2000,
        "--dataloader_num_workers",
        0,
    )
    run = start(folder, *options)
    run.wait_until(lambda: list_checkpoints(folder))
    for _ in range(30):
        before = newest_step(folder)
        # a folder's name ends with the process that writes it: not one that the last kill left
        run.wait_until(lambda run=run: any(folder.glob(f".tmp-*-{run.pid}")))
        time.sleep(generator.uniform(0, 0.01))
        run.kill()
        killed.append(run.pid)
        inside += any(folder.glob(f".tmp-*-{run.pid}"))
        assert newest_step(folder) >= before >= 1
        run = start(folder, *options, "--resume_from_checkpoint", "true")
    run.wait_until(lambda: any(folder.glob(f".tmp-*-{run.pid}")))
    assert not any(path.name.endswith(str(other)) for path in folder.glob(".tmp-*") for other in killed), (
        "left behind by a killed save"
    )
    print(f"30 kills, {inside} of them inside the writing of a checkpoint")
    assert inside >= 15, f"only {inside} of 30 kills hit the writing of a checkpoint"
    assert all(verify_checkpoint(path) is None for path in list_checkpoints(folder))


def test_a_full_disk_costs_one_save_and_two_in_a_row_end_the_run(start, whole, same, last_step, tmp_path):
    """A file size limit from outside makes the errors of a full disk. Once: warned, and equal at
    the end. Always: stopped."""
    folder = tmp_path / "run"
    run = start(folder)
    run.wait_for_step(6)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    run.wait_until(lambda: "was not written" in run.printed)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, UNLIMITED)
    assert run.wait() == 0, run.printed
    assert run.printed.count("was not written") == 1 and "MB are free" in run.printed
    same(folder, whole)

    folder = tmp_path / "full"
    run = start(folder)
    run.wait_for_step(6)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    assert run.wait() == 2
    assert run.printed.splitlines()[-1].startswith("error:") and "make room" in run.printed.splitlines()[-1]
    assert newest_step(folder) == 5 and not list(folder.glob(".tmp-*"))
    assert start(folder, "--resume_from_checkpoint", "true").wait() == 0
    same(folder, whole)


def newest_step(folder) -> int:
    """The step of the newest whole checkpoint, 0 without one."""
    checkpoint = newest_checkpoint(folder, warn=lambda text: None)
    return int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
