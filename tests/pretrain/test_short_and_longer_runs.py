"""Runs of two steps with the defaults that a newcomer leaves alone, and finished runs that go on
with more steps."""

import json

import pytest
import yaml

from vision_core.errors import UserError
from vision_core.trainer.run_trainer import check_warmup

SCENES = ("--dataset", "scenes?size=64&count=24", "--per_device_train_batch_size", 4, "--logging_steps", 1)
SCRIPTS = {
    "dinov2": ("pretrain/dinov2.py", (*SCENES, "--eval_dataset", "none", "--dataloader_num_workers", 0)),
    "mae": ("pretrain/mae.py", (*SCENES, "--eval_dataset", "none")),
    "siglip": ("pretrain/siglip.py", (*SCENES, "--eval_dataset", "none")),
}


def test_the_trainers_warm_up():
    with pytest.raises(UserError, match="--warmup_steps 2 is not below the run's 2 steps"):
        check_warmup(2, 2)
    check_warmup(0.5, 1)
    check_warmup(1, 2)


def metrics(folder) -> dict[int, dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "learning_rate" in line}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ["mae", "siglip"])
def test_a_run_of_one_step_learns(runs, name, tmp_path):
    """transformers rounds the share of the warm-up up, to the whole of a run of one step, and the
    rate would be 0."""
    script, options = SCRIPTS[name]
    runs.finish(runs.start(script, *options, "--max_steps", 1, "--output_dir", tmp_path / "run"))
    assert metrics(tmp_path / "run")[1]["learning_rate"] > 0
    refused = runs.error(
        script, *options, "--max_steps", 2, "--warmup_steps", 7, "--output_dir", tmp_path / "other"
    )
    assert "--warmup_steps 7 is not below the run's 2 steps" in refused and not (tmp_path / "other").exists()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ["dinov2", "mae"])
def test_a_finished_run_goes_on_with_the_schedule_of_more_steps(runs, name, tmp_path):
    script, options = SCRIPTS[name]
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    given = (*options, "--warmup_steps", 1)
    runs.finish(runs.start(script, *given, "--max_steps", 8, "--output_dir", whole))
    runs.finish(runs.start(script, *given, "--max_steps", 4, "--output_dir", longer))
    short = metrics(longer)
    on = (
        "--config",
        longer / "config.yaml",
        "--max_steps",
        8,
        "--output_dir",
        longer,
        "--resume_from_checkpoint",
        "true",
    )
    runs.finish(runs.start(script, *on))
    planned, found = metrics(whole), metrics(longer)
    assert sorted(found) == list(range(1, 9))
    for step in range(1, 9):
        expected = short[step] if step <= 4 else planned[step]
        assert found[step]["learning_rate"] == pytest.approx(expected["learning_rate"], rel=1e-6), step
    assert (
        found[5]["learning_rate"] > 2 * found[4]["learning_rate"]
    )  # it jumps up, as docs/pretraining.md says
    assert yaml.safe_load((longer / "config.yaml").read_text())["max_steps"] == 8
    assert (longer / "checkpoint-8").is_dir()


@pytest.mark.timeout(200)
def test_a_resumed_run_has_the_learning_rate_that_it_is_given(runs, tmp_path):
    """transformers takes it from the checkpoint, while the line of a loss that is no number advises
    a smaller one."""
    script, options = SCRIPTS["mae"]
    given = (
        *options,
        "--lr_scheduler_type",
        "constant",
        "--warmup_steps",
        0,
        "--save_steps",
        2,
        "--output_dir",
        tmp_path / "run",
    )
    runs.finish(runs.start(script, *given, "--max_steps", 2, "--learning_rate", 1e-3))
    runs.finish(
        runs.start(
            script, *given, "--max_steps", 4, "--learning_rate", 1e-5, "--resume_from_checkpoint", "true"
        )
    )
    assert [line["learning_rate"] for line in metrics(tmp_path / "run").values()] == pytest.approx(
        [1e-3, 1e-3, 1e-5, 1e-5]
    )


@pytest.mark.timeout(200)
def test_a_resumed_run_logs_and_saves_as_often_as_it_now_says(runs, tmp_path):
    """transformers takes these numbers from the checkpoint and says nothing."""
    script, options = SCRIPTS["mae"]
    folder = tmp_path / "run"
    runs.finish(
        runs.start(
            script,
            *options[:-4],
            "--eval_dataset",
            "none",
            "--logging_steps",
            2,
            "--max_steps",
            2,
            "--output_dir",
            folder,
        )
    )
    more = (
        "--logging_steps",
        1,
        "--save_steps",
        1,
        "--max_steps",
        5,
        "--save_total_limit",
        "none",
        "--resume_from_checkpoint",
        "true",
    )
    runs.finish(runs.start(script, *options[:-4], "--eval_dataset", "none", *more, "--output_dir", folder))
    assert sorted(metrics(folder)) == [2, 3, 4, 5]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (2, 3, 4, 5)
    ]
