"""What SigLIP and MAE share, of each as users run it: kills, stops, two processes, a start from a
folder, and one line for every mistake."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import SiglipConfig, ViTMAEConfig

KILLED_AT = 8  # epochs have 5 steps: the kill comes in the middle of the second
RESUME = ("--resume_from_checkpoint", "true")


@pytest.fixture(params=["mae", "siglip"])
def training(request, trainings):
    return trainings[request.param]


def kill(runs, folder, *started):
    """In the middle of a run, all of its processes."""
    started[0].wait_until((folder / f"checkpoint-{KILLED_AT}" / "MANIFEST.json").exists)
    runs.kill(*started)
    assert started[0].wait() == -signal.SIGKILL


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(training, runs, same, tmp_path):
    folder = tmp_path / "run"
    kill(runs, folder, training.start(folder))
    training.finish(folder, *RESUME)
    same(folder, training.whole)


def test_told_to_stop_it_saves_and_goes_on_later(training, runs, same, tmp_path):
    """The signal goes to the data worker too, as Ctrl-C does."""
    folder = tmp_path / "run"
    stopped = training.start(folder, "--save_steps", 1000, "--dataloader_num_workers", 1)
    stopped.wait_until((folder / "metrics.jsonl").exists)
    time.sleep(0.05)
    os.killpg(stopped.pid, signal.SIGTERM)
    runs.finish(stopped, expect=143)
    assert len(list(folder.glob("checkpoint-*"))) == 1 and not (folder / "model.safetensors").exists()
    training.finish(folder, "--save_steps", 1000, *RESUME)
    same(folder, training.whole)


def test_two_processes_are_one_with_twice_the_batch_and_resume_in_the_second_epoch(
    training, runs, logged, same, tmp_path
):
    straight, folder = tmp_path / "straight", tmp_path / "run"
    half = ("--per_device_train_batch_size", 4)
    runs.finish(*training.start_two(straight, *half))
    for name in ("loss", "eval_loss", "grad_norm"):
        torch.testing.assert_close(logged(straight, name), logged(training.whole, name), rtol=1e-4, atol=0)
    kill(runs, folder, *training.start_two(folder, *half))
    runs.finish(*training.start_two(folder, *half, *RESUME))
    same(folder, straight)


def test_it_goes_on_from_a_folder(training, tmp_path):
    """With the weights, and the sizes, of what it goes on from."""
    whole, folder = training.whole, tmp_path / "run"
    training.finish(
        folder, "--init_from", whole, "--max_steps", 2, "--hidden_size", 64, "--learning_rate", 1e-9
    )
    before, after = (load_file(each / "model.safetensors") for each in (whole, folder))
    assert before.keys() == after.keys() and all(
        torch.allclose(before[name], after[name], atol=1e-6) for name in before
    )
    if training.name == "siglip":
        assert (folder / "tokenizer.json").read_text() == (whole / "tokenizer.json").read_text()


def test_a_dry_run_says_what_the_run_would_be_and_writes_nothing(training, tmp_path):
    shown = training.finish(tmp_path / "run", "--dry_run")
    assert (
        "training rows    40\n" in shown
        and "steps            14\n" in shown
        and "pixel_values      [8, 3, 32, 32]" in shown
    )
    assert not (tmp_path / "run").exists() and "is not empty" in training.error(training.whole, "--dry_run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image_size", 36), "--image_size 36 is not a multiple of --patch_size 8"),
        (("--patch_size", 0), "must be above 0"),
        (
            ("--per_device_train_batch_size", 48),
            "--dataset has 40 images, fewer than a step's 48; lower --per_device_train_batch_size",
        ),
        (("--gradient_accumulation_steps", 8), "--dataset has 40 images, fewer than a step's 64"),
        (("--eval_dataset", "scenes?size=32&count=4"), "--eval_dataset has 4 images, fewer than a step's 8"),
        (("--init_from", "nowhere"), "cannot be loaded"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(training, tmp_path, options, message):
    assert message in training.error(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("mae", SiglipConfig, "is a siglip; give a vit_mae"),
        ("siglip", ViTMAEConfig, "is a vit_mae; give a siglip"),
    ],
)
def test_another_kind_of_model_is_no_start(trainings, tmp_path, name, other, message):
    other().save_pretrained(tmp_path / "other")
    assert message in trainings[name].error(tmp_path / "run", "--init_from", tmp_path / "other")
