"""What the trainer promises beside what the programs' own tests show: kills, stops and resumes are in tests/pretrain and tests/recipes."""

import dataclasses
import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainingArguments

from vision_core.checkpoints import seal_folder
from vision_core.errors import Stopped, UserError
from vision_core.run_preview import introduction, number_of_batches, number_of_steps, part_of, preview
from vision_core.run_trainer import PASSED_ON, RunTrainer, TrainerOptions, open_run, training_arguments
from vision_core.stopping import StopRequest

ABOUT_FOLDERS = {"output_dir", "resume_from_checkpoint", "save_total_limit", "dry_run", "changed_data", "grace_seconds"}


class Line(nn.Module):
    """y = w x; the loss is infinite for x = inf."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (x @ self.weight).square().mean()}


@pytest.fixture
def trainer(tmp_path):
    def trainer(values, model=None, held_out=None, **options):
        chosen = TrainerOptions(**{"per_device_train_batch_size": 1, "max_steps": 4, "logging_steps": 1, "save_steps": 2, **options})
        chosen.output_dir = chosen.output_dir or str(tmp_path / "run")
        settings = training_arguments(chosen, has_eval=held_out is not None)
        run, folder, checkpoint = open_run(chosen, "line")
        settings.output_dir = folder
        data, held_out = ([{"x": torch.tensor([value])} for value in each] if each else None for each in (values, held_out))
        made = RunTrainer(
            model or Line(),
            settings,
            train_dataset=data,
            eval_dataset=held_out,
            sampler=range(len(data)),
            run=run,
            keep=chosen.save_total_limit,
        )
        return made, checkpoint

    return trainer


def run(made, checkpoint=""):
    with StopRequest([]) as stop:
        made.train_until_told(stop, checkpoint)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


PLATEAU = {"lr_scheduler_type": "reduce_lr_on_plateau", "learning_rate": 1e-7, "eval_steps": 1, "save_steps": 14}


def rates(folder: Path) -> list[float]:
    return [line["learning_rate"] for line in metrics(folder) if "learning_rate" in line]


def test_a_schedule_that_goes_by_the_loss_goes_on_from_the_checkpoints_rate(trainer, tmp_path):
    """Its rate stands in the optimizer alone: transformers' ReduceLROnPlateau has no formula of the step."""
    values, held_out = [1.0] * 18, [2.0]
    for folder in ("whole", "run"):
        made, checkpoint = trainer(values, held_out=held_out, max_steps=18, output_dir=str(tmp_path / folder), **PLATEAU)
        run(made, checkpoint)
        made.run.close()
    assert rates(tmp_path / "whole")[-1] < 2e-8, "the loss does not fall, so the rate does"
    again = {"output_dir": str(tmp_path / "run"), "resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-14")}
    made, checkpoint = trainer(values, held_out=held_out, max_steps=18, **PLATEAU, **again)
    run(made, checkpoint)
    made.run.close()
    assert rates(tmp_path / "run") == rates(tmp_path / "whole")
    made, checkpoint = trainer(values, held_out=held_out, max_steps=18, **{**PLATEAU, "learning_rate": 1e-3}, **again)
    made.run.changes["learning_rate"] = (1e-7, 1e-3)
    with pytest.raises(UserError, match="--learning_rate was 1e-07 and is 0.001: --lr_scheduler_type reduce_lr_on_plateau"):
        run(made, checkpoint)


def test_a_stop_within_an_evaluation_saves_under_a_schedule_that_goes_by_the_loss(trainer, tmp_path):
    class TellsWhileItIsJudged(Line):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            if not torch.is_grad_enabled() and not self.training:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(x)

    made, checkpoint = trainer([1.0] * 18, TellsWhileItIsJudged(), [2.0] * 3, max_steps=18, **PLATEAU)
    with pytest.raises(Stopped):
        run(made, checkpoint)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]


def test_every_option_reaches_the_trainer():
    assert {field.name for field in dataclasses.fields(TrainerOptions)} == {*PASSED_ON, *ABOUT_FOLDERS}
    options = TrainerOptions(learning_rate=0.25, weight_decay=0.125, warmup_steps=7, max_grad_norm=0.5, seed=11, max_steps=3)
    settings = training_arguments(options, has_eval=False, adam_beta2=0.95)
    assert isinstance(settings, TrainingArguments) and settings.adam_beta2 == 0.95
    for name in PASSED_ON:
        assert getattr(settings, name) == getattr(options, name), name


@pytest.mark.parametrize(("epochs", "accumulation"), [(1.0, 1), (1.5, 2), (0.4, 1), (2.0, 3)])
def test_a_preview_counts_steps_as_the_trainer_does(trainer, epochs, accumulation):
    values = {"num_train_epochs": epochs, "gradient_accumulation_steps": accumulation, "max_steps": -1, "learning_rate": 0.0}
    made, _ = trainer([1.0, 2.0, 3.0, 4.0, 5.0], **values)
    steps = number_of_steps(made, len(made.get_train_dataloader()))
    assert f"steps            {steps}" in preview(made)
    run(made)
    assert made.state.global_step == steps


@pytest.mark.parametrize("drop_last", [True, False])
def test_what_is_said_before_the_first_step_is_what_a_preview_finds(trainer, drop_last):
    """Without a loader, a batch or an optimizer."""
    made, _ = trainer([1.0, 2.0, 3.0, 4.0, 5.0], held_out=[1.0, 2.0], per_device_train_batch_size=2, max_steps=-1, num_train_epochs=4.0)
    made.args.dataloader_drop_last = drop_last
    assert number_of_batches(made) == len(made.get_train_dataloader()) == (2 if drop_last else 3)
    said = introduction(made)
    assert made.optimizer is None and said == [line for line in preview(made) if line in said]
    assert said[:3] == ["training rows    5", "a step           2 x 1 batches x 1 processes", f"steps            {8 if drop_last else 12}"]
    assert "held-out rows    2" in said and said[-2] == "what trains:" and "at 0.001" in said[-1]


def test_parts_of_a_model_by_name():
    assert part_of("base_model.model.vision_model.connector.layers.0.weight") == "vision_model.connector"
    assert part_of("vision_sampler_layers.0.norm.weight") == "vision_sampler_layers" and part_of("weight") == "weight"


def test_samples_come_in_the_samplers_order_and_checkpoints_are_sealed(trainer, tmp_path, capsys):
    made, _ = trainer([1.0, 2.0, 3.0, 4.0], held_out=[1.0, 3.0], learning_rate=0.0, eval_steps=2, save_total_limit=1)
    run(made)
    lines = metrics(tmp_path / "run")
    assert [line["loss"] for line in lines if "loss" in line] == [1.0, 4.0, 9.0, 16.0]
    assert [line["eval_loss"] for line in lines if "eval_loss" in line] == [5.0, 5.0]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]
    assert (tmp_path / "run" / "checkpoint-4" / "MANIFEST.json").is_file()
    shown = "".join(capsys.readouterr())
    assert "step 3: loss 9" in shown and "step 4: eval loss 5" in shown


def test_a_loss_that_is_no_number_stops_the_run(trainer, tmp_path):
    made, _ = trainer([1.0, 2.0, float("inf"), 4.0])
    with pytest.raises(
        UserError, match="the loss is inf at step 3; resume from the last checkpoint with a smaller learning rate"
    ) as caught:
        run(made)
    assert "\n" not in str(caught.value)
    assert metrics(tmp_path / "run")[-1]["loss"] == "inf"
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_checkpoint_of_another_model_is_refused(trainer, tmp_path):
    made, _ = trainer([1.0, 2.0, 3.0, 4.0])
    run(made)
    made.run.close()
    weights = tmp_path / "run" / "checkpoint-4" / "model.safetensors"
    tensors = load_file(weights)
    save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, weights, {"format": "pt"})
    made, _ = trainer([1.0, 2.0, 3.0, 4.0], output_dir=str(tmp_path / "other"), max_steps=6)
    with pytest.raises(UserError, match=r"of another model: 2 tensors are missing or too many, first \['other.weight', 'weight'\]"):
        run(made, str(weights.parent))


def test_a_run_that_has_had_its_steps_has_none_more(trainer, tmp_path):
    """As one that was killed while its model was saved; it ends in the middle of an epoch."""
    made, _ = trainer([1.0] * 6, learning_rate=0.1, lr_scheduler_type="constant")
    run(made)
    made.run.close()
    again, checkpoint = trainer([1.0] * 6, learning_rate=0.1, lr_scheduler_type="constant", resume_from_checkpoint="true")
    run(again, checkpoint)
    assert again.state.global_step == 4 and torch.equal(again.model.weight, made.model.weight)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_disk_without_room_is_seen_before_anything_is_written_and_the_next_save_step_tries_again(trainer, tmp_path, monkeypatch, capsys):
    made, _ = trainer([1.0] * 6, max_steps=6)
    usage, free = shutil.disk_usage, [10**12, 3]  # of the first save and the second
    written: list[str] = []

    def disk_usage(path):
        left = free.pop(0) if free and ".tmp-" in str(path) else usage(path).free
        return usage(path)._replace(free=left)

    write_model = made.write_model
    monkeypatch.setattr(made, "write_model", lambda folder, state: (written.append(Path(folder).name), write_model(folder, state))[1])
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    run(made)
    assert written == ["checkpoint-2", "checkpoint-6"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "was not written" in line]
    assert len(lines) == 1 and lines[0].startswith(
        f"warning: {tmp_path / 'run' / 'checkpoint-4'} was not written: No space left on device; it needs"
    )
    assert "tries again 2 steps later" in lines[0]
    assert [name for name in names(tmp_path / "run") if "tmp" in name or "checkpoint" in name] == ["checkpoint-2", "checkpoint-6"]


def test_a_needed_save_that_fails_ends_the_run(trainer, tmp_path, monkeypatch):
    made, _ = trainer([1.0] * 4, save_steps=4)
    monkeypatch.setattr(made, "write_model", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="checkpoint-4 was not written: No space left on device"):
        run(made)
    assert not [name for name in names(tmp_path / "run") if "tmp" in name or "checkpoint" in name]


def test_an_old_layout_is_resumed_and_its_unfinished_checkpoint_goes_once_a_newer_one_stands(trainer, tmp_path, capsys):
    """Before, transformers wrote into `checkpoint-<step>` itself, and the manifest came last."""
    made, _ = trainer([1.0] * 8, learning_rate=0.1)
    root = tmp_path / "run"

    def as_before(model, trial):
        super(type(made).__mro__[1], made)._save_checkpoint(model, trial)
        if made.state.global_step == 2:
            seal_folder(root / "checkpoint-2", 2)
        return ""

    made._write_checkpoint = as_before
    run(made)
    made.run.close()
    assert not (root / "checkpoint-4" / "MANIFEST.json").exists() and (root / "checkpoint-4" / "trainer_state.json").exists()
    again, checkpoint = trainer([1.0] * 8, learning_rate=0.1, resume_from_checkpoint="true")
    assert Path(checkpoint).name == "checkpoint-2"
    run(again, checkpoint)
    assert torch.equal(again.model.weight, made.model.weight)
    assert [name for name in names(root) if "checkpoint" in name] == ["checkpoint-2", "checkpoint-4"]
    said = capsys.readouterr().err
    assert "set-aside-1-checkpoint-4, to be removed once a newer one stands" in said and "was damaged and is removed" in said


def test_a_stop_breaks_an_evaluation_off_and_a_save_beyond_the_grace_time_is_told_once(trainer, tmp_path, capsys):
    """The signal comes with the second held-out batch: the last step is saved, and nothing of the evaluation is recorded."""

    class ToldWhileJudged(Line):
        def forward(self, x):
            if not torch.is_grad_enabled() and x.item() == 7.0:
                os.kill(os.getpid(), signal.SIGUSR1)
            assert torch.is_grad_enabled() or x.item() != 9.0, "no batch may follow"
            return super().forward(x)

    values, held_out = [1.0, 2.0, 3.0, 4.0], [5.0, 7.0, 9.0]
    made, _ = trainer(values, ToldWhileJudged(), held_out=held_out, eval_steps=3, save_steps=1)
    with StopRequest([], grace_seconds=0.0) as stop, pytest.raises(Stopped) as end:
        made.train_until_told(stop, "")
    assert end.value.code == 138 and "step 3 of 4 is saved" in end.value.line and end.value.line.endswith(" s after SIGUSR1)")
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3] and not any("eval_loss" in line for line in lines)
    assert (tmp_path / "run" / "checkpoint-3" / "MANIFEST.json").is_file()
    assert "".join(capsys.readouterr()).count("--grace_seconds is 0") == 1


class NoisyLine(Line):
    """Random in every forward, so that a resume is exact only with the right random states. `at`: the training batch, from 0, with which SIGTERM comes."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.batches = at, 0

    def forward(self, x):
        if torch.is_grad_enabled():
            if self.batches == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
            self.batches += 1
        return super().forward(x + torch.randn_like(x) + random.random() + float(np.random.rand()))


def measured(folder: Path) -> list[dict]:
    """Losses and norms of every step, without speeds."""
    shown = ("step", "loss", "eval_loss", "grad_norm", "learning_rate")
    lines = [line for line in metrics(folder) if "loss" in line or "eval_loss" in line]
    return [{name: line[name] for name in shown if name in line} for line in lines]


@pytest.mark.parametrize(("save_steps", "at"), [(100, 7), (2, 7), (100, 15)])
def test_a_step_that_would_leave_no_time_for_a_save_is_broken_off_and_the_resume_is_exact(trainer, tmp_path, save_steps, at):
    """Three micro-batches a step and 4 steps an epoch: the signal comes in the middle of step 3, or of the first step of the second epoch, after
    an evaluation that draws random numbers too. The step before has been saved or has not.
    """
    options = {"gradient_accumulation_steps": 3, "max_steps": 6, "learning_rate": 0.1, "save_steps": save_steps, "eval_steps": 2}
    values = [float(number) for number in range(12)]
    whole, _ = trainer(values, NoisyLine(), held_out=[1.0, 2.0], output_dir=str(tmp_path / "whole"), **options)
    run(whole)
    hurt, _ = trainer(values, NoisyLine(at), held_out=[1.0, 2.0], **options)
    with StopRequest([], grace_seconds=0.0) as stop, pytest.raises(Stopped) as end:
        hurt.train_until_told(stop, "")
    step = at // 3
    assert end.value.code == 143 and f"step {step} of 6 is saved" in end.value.line and hurt.model.batches == at + 1
    hurt.run.close()
    again, checkpoint = trainer(values, NoisyLine(), held_out=[1.0, 2.0], resume_from_checkpoint="true", **options)
    assert Path(checkpoint).name == f"checkpoint-{step}"
    run(again, checkpoint)
    assert torch.equal(again.model.weight, whole.model.weight)
    ours, theirs = (measured(tmp_path / name) for name in ("run", "whole"))
    assert ours == theirs


def test_a_step_that_leaves_time_for_a_save_is_finished(trainer):
    made, _ = trainer([1.0] * 12, NoisyLine(7), gradient_accumulation_steps=3)
    with pytest.raises(Stopped, match="143"):
        run(made)
    assert made.model.batches == 9 and made.state.global_step == 3


def test_two_processes_break_a_step_off_together(runs, tmp_path):
    """The second of them alone is told, in the middle of step 3; both save step 2."""
    worker = Path(__file__).with_name("broken_off_worker.py")
    for name, told in (("whole", -1), ("hurt", 7)):
        for rank in runs.start_two(worker, tmp_path / name, told):
            assert rank.wait() == (143 if told > 0 else 0), rank.printed
    assert [name for name in names(tmp_path / "hurt") if "checkpoint" in name] == ["checkpoint-2"]
    for rank in runs.start_two(worker, tmp_path / "hurt", -1):
        assert rank.wait() == 0, rank.printed
    assert measured(tmp_path / "hurt") == measured(tmp_path / "whole")
    weights = [load_file(tmp_path / name / "checkpoint-4" / "model.safetensors")["weight"] for name in ("whole", "hurt")]
    assert torch.equal(*weights)
