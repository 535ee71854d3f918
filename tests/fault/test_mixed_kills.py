"""Every program that trains or judges, hurt in turn: kill -9 of it, early, at a step and inside a
save, of its launcher or a data worker, SIGTERM, SIGUSR1.

One command goes on after each of the 40 kills.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from vision_core.runs.checkpoints import list_checkpoints, verify_checkpoint

ROOT = Path(__file__).parents[2]
EARLY, KILL, SAVE, WORKER, LAUNCHER = (
    "before the first checkpoint",
    "kill",
    "inside a save",
    "a data worker",
    "the launcher",
)
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
COMMON = ("--max_steps", 60, "--save_steps", 4, "--logging_steps", 1, "--per_device_train_batch_size", 4)
SCENES = ("--dataset", "scenes?size=64&count=40", "--eval_dataset", "none")
KINDS = {
    "mae": (EARLY, KILL, SAVE, "SIGTERM", "SIGUSR1", LAUNCHER, WORKER),
    "siglip": (EARLY, KILL, SAVE, "SIGTERM", "SIGUSR1", KILL, SAVE),
    "dinov2": (EARLY, KILL, SAVE, "SIGTERM", WORKER, KILL),
    "align": (EARLY, KILL, SAVE, "SIGTERM"),
    "sft": (KILL, SAVE, "SIGUSR1", WORKER),
    "sft under ZeRO-0": (KILL, SAVE, "SIGTERM"),
    "sft under ZeRO-2": (EARLY, KILL, SAVE, "SIGTERM", "SIGUSR1"),
}
ANSWERS_BEFORE_A_KILL = (0, 2, 9, 15)
AUTO = ("--resume_from_checkpoint", "auto")


@pytest.fixture
def command(config, talk, tmp_path):
    """command(program, folder) -> the words of its run."""

    def command(name: str, folder: Path) -> tuple:
        if name in ("mae", "siglip"):
            return (f"pretrain/{name}.py", *SCENES, *COMMON, *workers(name), "--output_dir", folder)
        if name == "dinov2":
            return ("pretrain/dinov2.py", "--config", config, "--save_steps", 4, "--output_dir", folder)
        more = ["--max_steps", 40, "--save_steps", 4, *workers(name)]
        if "ZeRO" in name:
            (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": int(name[-1])}}))
            more += ["--deepspeed", tmp_path / "zero.json"]
        script, *options = talk.arguments(folder, *more)
        return ("recipes/sva_align.py" if name == "align" else script, *options)

    return command


def workers(name: str) -> tuple:
    return ("--dataloader_num_workers", 2) if WORKER in KINDS[name] else ()


def losses(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line.get("grad_norm")) for line in lines if "loss" in line]


def partial_ones(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if verify_checkpoint(path) is not None] + list(
        folder.glob(".tmp-*")
    )


def hurt(run, kind, last_step, generator) -> None:
    """Do it, and see that it happened."""
    if kind == EARLY:
        run.wait_for_step(2)
        assert not list_checkpoints(run.folder)
    else:
        run.wait_for_step(last_step(run.folder) + generator.randint(2, 5))
    if kind == SAVE:
        whole = set(list_checkpoints(run.folder))
        run.wait_until(
            lambda: set(run.folder.glob("checkpoint-*")) - whole or list(run.folder.glob(f".tmp-*-{run.pid}"))
        )
    assert run.poll() is None
    if kind.startswith("SIG"):
        os.kill(run.pid, getattr(signal, kind))
        assert run.wait(30) == 128 + getattr(signal, kind), run.printed
    elif kind == WORKER:
        run.wait_until(run.kill_a_child)  # between two epochs there is none
        run.wait(60)  # 0 where the batches that it was to read had been read
    elif kind == LAUNCHER:
        os.kill(run.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while run.poll() is None or run.processes():
            assert time.monotonic() < deadline, "something is alive 20 s after kill -9 of its launcher"
            time.sleep(0.02)
    else:
        run.kill()


@pytest.mark.parametrize("name", KINDS)
def test_mixed_kills_leave_the_run_bit_for_bit_as_it_was(runs, command, last_step, tmp_path, name):
    generator, whole, folder = random.Random(0), tmp_path / "whole", tmp_path / "run"
    runs.finish(runs.start(*command(name, whole)))
    again, torn = (*command(name, folder), *AUTO), 0
    for kind in KINDS[name]:
        if kind == LAUNCHER:
            run = runs.launch(
                ACCELERATE, *again, environment={"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
            )
        else:
            run = runs.start(*again)
        hurt(run, kind, last_step, generator)
        torn += kind == SAVE and bool(partial_ones(folder))
    runs.finish(runs.start(*again))
    assert torn, "a kill must have fallen inside the writing of a checkpoint"
    ours, theirs = losses(folder), losses(whole)
    assert ours == theirs and ours
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert partial_ones(folder) == []
    print(
        f"{name}: {len(KINDS[name])} kills, {torn} left a partial checkpoint; of {len(ours)} losses 0 "
        "differ; 0 partial checkpoints are left"
    )


def test_mixed_kills_of_an_evaluation_change_no_answer(runs, talk, tmp_path):
    assert sum(map(len, KINDS.values())) + len(ANSWERS_BEFORE_A_KILL) == 40
    whole, folder = tmp_path / "whole", tmp_path / "run"
    arguments = (
        "recipes/evaluate_vlm.py",
        "--model",
        talk.arguments(folder)[2],
        "--tasks",
        "scenes?count=9&split=held_out",
        "--batch_size",
        2,
    )
    runs.finish(runs.start(*arguments, "--output_dir", whole))
    for count in ANSWERS_BEFORE_A_KILL:
        run = runs.start(*arguments, "--output_dir", folder, *AUTO)
        run.wait_until(
            lambda count=count: (folder / "unfinished.json").exists() and kept_answers(folder) >= count
        )
        run.kill()
        assert not (folder / "results.json").exists()
    runs.finish(runs.start(*arguments, "--output_dir", folder, *AUTO))
    assert results(folder) == results(whole)
    assert (folder / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    assert not (folder / "partial").exists() and not (folder / "unfinished.json").exists()
    print(f"evaluate_vlm: {len(ANSWERS_BEFORE_A_KILL)} kills, 0 answers differ, nothing partial is left")


def kept_answers(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob("partial/answers-*.jsonl"))


def results(folder: Path) -> dict:
    """results.json without what the two commands say differently."""
    report = json.loads((folder / "results.json").read_text())
    return report | {
        "arguments": {
            name: value
            for name, value in report["arguments"].items()
            if name not in ("output_dir", "resume_from_checkpoint")
        }
    }
