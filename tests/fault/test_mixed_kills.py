"""Other programs than `dinov2.py`, hurt in turn: kill -9 early, at a step and inside a save, SIGTERM, SIGUSR1; one command goes on after each."""

import json
import os
import random
import signal

import pytest

from vision_core.checkpoints import list_checkpoints, verify_checkpoint

KINDS = ("before the first checkpoint", "kill", "inside a save", "SIGTERM", "SIGUSR1", "kill", "inside a save")
COMMON = ("--max_steps", 60, "--save_steps", 4, "--logging_steps", 1, "--per_device_train_batch_size", 4, "--eval_dataset", "none")
PROGRAMS = {
    "mae": ("pretrain/mae.py", "--dataset", "scenes?size=64&count=40", *COMMON),
    "siglip": ("pretrain/siglip.py", "--dataset", "scenes?size=64&count=40", *COMMON),
}


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def hurt(run, kind, last_step, generator):
    """Do it, and see that it happened."""
    at = last_step(run.folder) + generator.randint(2, 6)
    if kind == "before the first checkpoint":
        run.wait_for_step(2)
        assert not list_checkpoints(run.folder)
    elif kind == "inside a save":
        run.wait_for_step(at)
        whole = set(list_checkpoints(run.folder))
        run.wait_until(lambda: set(run.folder.glob("checkpoint-*")) - whole or list(run.folder.glob(f".tmp-*-{run.pid}")))
    else:
        run.wait_for_step(at)
    if kind.startswith("SIG"):
        os.kill(run.pid, getattr(signal, kind))
        assert run.wait(30) == 128 + getattr(signal, kind), run.printed
    else:
        assert run.poll() is None
        run.kill()


@pytest.mark.parametrize("name", PROGRAMS)
def test_mixed_kills_leave_the_run_bit_for_bit_as_it_was(runs, last_step, tmp_path, name):
    script, *options = PROGRAMS[name]
    generator, whole, folder = random.Random(0), tmp_path / "whole", tmp_path / "run"
    runs.finish(runs.start(script, *options, "--output_dir", whole))
    command = (script, *options, "--output_dir", folder, "--resume_from_checkpoint", "auto")
    torn = 0
    for kind in KINDS:
        hurt(runs.start(*command), kind, last_step, generator)
        partial = [path for path in folder.glob("checkpoint-*") if verify_checkpoint(path) is not None]
        torn += kind == "inside a save" and bool(partial or list(folder.glob(".tmp-*")))
    runs.finish(runs.start(*command))
    assert torn, "a kill must have fallen inside the writing of a checkpoint"
    assert losses(folder) == losses(whole)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert all(verify_checkpoint(path) is None for path in folder.glob("checkpoint-*")) and not list(folder.glob(".tmp-*"))
    print(
        f"{name}: {len(KINDS)} mixed kills, {torn} of them left a partial checkpoint, {len(losses(folder))} losses, none differs; nothing partial is left"
    )
