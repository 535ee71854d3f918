"""The script as users run it: a whole run, its folder, resuming bit for bit, and one line for every
mistake."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pretrain import dinov2
from vision_core.errors import Stopped, UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = """
dataset: scenes?size=32&count=64
eval_dataset: scenes?size=32&count=40&split=held_out
global_crop_size: [32]
local_crop_size: [16]
num_local_crops: 2
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 2
num_prototypes: 32
head_hidden_dim: 32
head_bottleneck_dim: 16
centering: softmax
per_device_train_batch_size: 8
dataloader_num_workers: 1
max_steps: 12
warmup_steps: 2
logging_steps: 3
save_steps: 5
save_total_limit: 2
eval_steps: 6
knn_bank_size: 40
knn_num_queries: 20
knn_k: 5
num_cpu_threads: 1
"""


@pytest.fixture(scope="module", autouse=True)
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def run(config):
    def run_script(*arguments):
        dinov2.sys.argv = ["dinov2.py", "--config", str(config), *map(str, arguments)]
        dinov2.main()

    return run_script


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("images_per_second", "data_wait")}
        for line in lines
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run("--output_dir", folder)
    return folder


def test_the_folder_is_what_was_promised(whole):
    for name in (
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "heads.safetensors",
        "README.md",
        "config.yaml",
    ):
        assert (whole / name).is_file(), name
    for name in ("loss", "health", "knn", "attention", "pca"):
        with Image.open(whole / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 100
    assert sorted(path.name for path in whole.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]
    assert [line["step"] for line in metrics(whole) if "loss" in line] == [3, 6, 9, 12]
    assert [line["step"] for line in metrics(whole) if "knn_cls" in line] == [6, 12]
    heads = load_file(whole / "heads.safetensors")
    assert heads["dino_centering.center"].abs().sum() > 0
    assert "k-NN top-1" in (whole / "README.md").read_text()


def test_it_loads_in_a_process_that_knows_only_transformers(runs, whole):
    code = (
        "import sys, torch\nfrom transformers import AutoImageProcessor, AutoModel\n"
        "model, processor = AutoModel.from_pretrained(sys.argv[1]), AutoImageProcessor.from_pretrained(sys.argv[1])\n"
        "pixels = processor(torch.zeros(3, 50, 70, dtype=torch.uint8), return_tensors='pt')['pixel_values']\n"
        "assert not any(name.split('.')[0] in ('pretrain', 'encoders', 'vision_core') for name in sys.modules)\n"
        "print(tuple(pixels.shape), tuple(model(pixels).last_hidden_state.shape))"
    )
    printed = runs.finish(runs.start_plain(code, whole))
    assert "(1, 3, 32, 32) (1, 17, 32)" in printed


@pytest.mark.parametrize("step", [5, 10])
def test_resumed_is_uninterrupted_bit_for_bit(run, whole, tmp_path, step):
    """Step 5 lies inside an epoch of 8 steps and inside a window of averages; the data worker
    runs."""
    folder = tmp_path / "run"
    run("--output_dir", folder, "--save_total_limit", 10)
    for later in folder.glob("checkpoint-*"):
        if int(later.name.split("-")[1]) > step:
            later.rename(tmp_path / later.name)
    run("--output_dir", folder, "--resume_from_checkpoint", "true", "--save_total_limit", 10)
    assert metrics(folder) == metrics(whole)
    for name in ("model", "heads"):
        assert (folder / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes()
    for name in ("student", "optimizer"):
        ours, theirs = (load_file(path / "checkpoint-12" / f"{name}.safetensors") for path in (folder, whole))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("save_steps", [5, 3])
@pytest.mark.parametrize("centering", ["softmax", "sinkhorn_knopp"])
def test_a_step_that_would_leave_no_time_for_a_save_is_broken_off_and_the_resume_is_exact(
    run, tmp_path, monkeypatch, capsys, save_steps, centering
):
    """SIGTERM with the second of three micro-batches of step 4; step 3 has been saved or has
    not."""
    options = (
        "--gradient_accumulation_steps",
        3,
        "--max_steps",
        6,
        "--logging_steps",
        1,
        "--save_steps",
        save_steps,
        "--centering",
        centering,
    )
    options = (*options, "--eval_dataset", "none", "--per_device_train_batch_size", 4)
    run("--output_dir", tmp_path / "whole", *options)
    plain, seen = dinov2.DistillationTrainer.on_device, []

    def told(self, batch):
        seen.append(self.step)
        if seen.count(3) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, batch)

    with monkeypatch.context() as patched, pytest.raises(Stopped, match="143"):
        patched.setattr(dinov2.DistillationTrainer, "on_device", told)
        run("--output_dir", tmp_path / "run", *options, "--grace_seconds", 0.0001)
    assert seen.count(3) == 2 and "told to stop: step 3 of 6 is saved" in capsys.readouterr().out
    run("--output_dir", tmp_path / "run", *options, "--resume_from_checkpoint", "true")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    for name in ("student", "optimizer", "heads", "model"):
        ours, theirs = (tmp_path / each / "checkpoint-6" / f"{name}.safetensors" for each in ("run", "whole"))
        assert ours.read_bytes() == theirs.read_bytes(), name
    ours, theirs = (
        json.loads((tmp_path / each / "checkpoint-6" / "training_state.json").read_text())
        for each in ("run", "whole")
    )
    assert ours["bad_images"] == theirs["bad_images"]


def test_init_from_takes_weights_and_heads(run, whole, tmp_path, capsys):
    run(
        "--output_dir", tmp_path / "run", "--init_from", whole, "--max_steps", 3, "--report_to", "tensorboard"
    )
    assert "heads loaded too" in capsys.readouterr().out
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_it_runs_uninstalled_from_another_folder_through_two_processes(runs, config, tmp_path):
    torchrun = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    environment = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": ""}
    extra = ("--output_dir", "run", "--max_steps", 4, "--koleo_gather", "--gradient_accumulation_steps", 2)
    runs.finish(
        runs.launch(torchrun, "pretrain/dinov2.py", config, *extra, environment=environment, folder=tmp_path)
    )
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert metrics(tmp_path / "run")[-1]["step"] == 4


def test_dry_run_shows_and_writes_nothing(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("--dry_run")
    shown = capsys.readouterr().out
    assert (
        "global_crops  [16, 3, 32, 32]" in shown
        and "nothing is written" in shown
        and not list(tmp_path.iterdir())
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--init_from", "absent"), "absent"),
        (("--eval_dataset", "folder:absent"), "absent"),
        (("--knn_k", 1000), "k=1000 is not possible"),
        (("--resume_from_checkpoint", "true"), "no folder"),
        (("--report_to", "tensorbord"), "--report_to tensorbord is not a tracker"),
        (("--report_to", "clearml"), "--report_to clearml is not installed"),
    ],
)
def test_a_mistake_is_seen_by_a_dry_run_and_leaves_no_folder(runs, config, tmp_path, wrong, said):
    arguments = ("pretrain/dinov2.py", config, "--output_dir", tmp_path / "run", *wrong)
    assert said in runs.error(*arguments, "--dry_run")
    assert said in runs.error(*arguments) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("extra", [(), ("--dry_run",)])
def test_wrong_weights_are_named_before_the_images_that_judge_are_read(run, tmp_path, extra):
    """None of these images can be read, which would be said first."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"architecture": "vit_small_patch14_dinov2"}))
    for number in range(40):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    judged = ("--eval_dataset", f"folder:{tmp_path / 'images'}", "--knn_k", 2)
    with pytest.raises(UserError, match="could be read|unreadable"):
        run("--output_dir", tmp_path / "run", *judged, *extra)
    with pytest.raises(UserError, match="a checkpoint of timm"):
        run("--output_dir", tmp_path / "run2", "--init_from", tmp_path / "other", *judged, *extra)


def test_a_dry_run_sees_a_used_folder(runs, config, whole):
    assert "is not empty" in runs.error("pretrain/dinov2.py", config, "--output_dir", whole, "--dry_run")


def test_non_finite_losses_never_reach_the_weights(run, tmp_path, monkeypatch):
    """Images of infinite pixels from step 7 on: three skipped steps, then the run stops with the
    weights, moments and centers of step 6."""
    folder = tmp_path / "run"
    plain = dinov2.DistillationTrainer.on_device

    def poisoned(self, batch):
        if self.step >= 6:
            batch["global_crops"] = batch["global_crops"] * float("inf")
        return plain(self, batch)

    monkeypatch.setattr(dinov2.DistillationTrainer, "on_device", poisoned)
    with pytest.raises(UserError, match="not finite for 3 steps in a row, the last is step 9"):
        run("--output_dir", folder, "--save_steps", 6)
    skipped = [line for line in metrics(folder) if line.get("skipped")]
    assert (
        [line["step"] for line in skipped] == [7, 8, 9]
        and skipped[0]["loss"] == "nan"
        and len(skipped[0]["ids"]) == 8
    )
    for name in ("student", "optimizer", "heads", "model"):
        before, after = (folder / f"checkpoint-{step}" / f"{name}.safetensors" for step in (6, 9))
        assert before.read_bytes() == after.read_bytes(), f"the skipped steps have changed {name}"
        assert all(torch.isfinite(tensor).all() for tensor in load_file(after).values())


def test_multi_band_images_train(run, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(20):
        np.save(images / f"{number}.npy", np.random.default_rng(number).random((5, 24, 30), dtype=np.float32))
    run(
        "--dataset", images, "--eval_dataset", "none", "--output_dir", tmp_path / "run", "--max_steps", 3,
        "--num_channels", 5,
        "--image_mean", *[0.5] * 5, "--image_std", *[0.3] * 5, "--global_crop_size", 16, 32,
    )  # fmt: skip
    assert load_file(tmp_path / "run" / "model.safetensors")[
        "embeddings.patch_embeddings.projection.weight"
    ].shape == (32, 5, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "learning_rate"),
        (
            ["--global_crop_size", "33"],
            "global_crop_size=33 is not a multiple of patch_size=8; the next ones are 32 and 40",
        ),
        (["--global_crop_scale", "0.9", "0.3"], "global_crop_scale"),
        (["--max_steps", "2"], "warmup_steps=2 is not below max_steps=2"),
        (["--num_prototypes", "0"], "num_prototypes=0: it must be above 0"),
        (["--dino_loss_weight", "0", "--ibot_loss_weight", "0"], "nothing is learned"),
        (["--num_channels", "4"], "image_mean has 3 values, num_channels is 4"),
        (
            ["--per_device_train_batch_size", "100"],
            "has 64 images, fewer than the global batch of 100|64 images.*global batch of 100",
        ),
        (["--dataset", "parquett:x"], "parquet"),
        (["--dataset", "folder:/nowhere"], "/nowhere"),
        (["--output_dir", "/dev/null/x"], "/dev/null"),
        (["--centering", "softmx"], "softmax"),
    ],
)
def test_mistakes_are_one_line_before_any_training(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)


def test_the_folder_of_another_run_is_refused_with_the_two_commands(run, whole):
    with pytest.raises(UserError, match="--resume_from_checkpoint true.*--output_dir"):
        run("--output_dir", whole)
