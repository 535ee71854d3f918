"""A run of dinov2.py that is hurt between its last checkpoint and the published encoder is marked
as finished only with that encoder.

A resume has no step left then, and what it publishes is what a run that was never hurt has
published, to the byte.
"""

import signal
from pathlib import Path

import pytest

PROGRAM = "pretrain/dinov2.py"
HURT = Path(__file__).with_name("hurt_while_publishing_worker.py")
CONFIG = """
dataset: scenes?size=32&count=40
eval_dataset: scenes?size=32&count=40&split=held_out
global_crop_size: [16]
local_crop_size: [8]
num_local_crops: 1
patch_size: 8
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
num_prototypes: 16
head_hidden_dim: 16
head_bottleneck_dim: 8
bf16: false
per_device_train_batch_size: 4
dataloader_num_workers: 0
max_steps: 4
warmup_steps: 1
logging_steps: 1
knn_bank_size: 20
knn_num_queries: 10
knn_k: 3
num_cpu_threads: 1
"""
PUBLISHED = ("README.md", "config.json", "preprocessor_config.json", "heads.safetensors", "model.safetensors")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """The run's folder has the same name everywhere, for the card says it."""
    config = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.write_text(CONFIG)
    return "--config", config, "--output_dir", "run"


@pytest.fixture(scope="module")
def whole(runs, options, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    runs.finish(runs.start(PROGRAM, *options, folder=folder))
    return folder / "run"


@pytest.mark.timeout(200)
@pytest.mark.parametrize("save_steps", [4, 2], ids=["nothing was published", "an older step was published"])
@pytest.mark.parametrize(
    ("how", "status", "resume"), [("kill", -signal.SIGKILL, "auto"), ("full", 2, "true")]
)
def test_a_resume_without_a_step_left_publishes_the_encoder(
    how, status, resume, save_steps, options, runs, whole, tmp_path
):
    hurt = runs.start(HURT, how, *options, "--save_steps", save_steps, folder=tmp_path)
    printed = runs.finish(hurt, expect=status)
    folder = tmp_path / "run"
    assert (folder / "checkpoint-4").is_dir() and not (folder / "finished.json").exists(), printed
    assert (folder / "model.safetensors").exists() == (save_steps == 2), printed
    assert how == "kill" or "was not written" in printed.strip().splitlines()[-1]
    printed = runs.finish(
        runs.start(
            PROGRAM, *options, "--save_steps", save_steps, "--resume_from_checkpoint", resume, folder=tmp_path
        )
    )
    assert "the encoder is run" in printed and (folder / "finished.json").is_file()
    for name in PUBLISHED:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.timeout(200)
def test_a_disk_that_is_full_again_leaves_the_run_unfinished(options, runs, tmp_path):
    for more in ((), ("--resume_from_checkpoint", "auto")):
        printed = runs.finish(runs.start(HURT, "full", *options, *more, folder=tmp_path), expect=2)
        assert "was not written" in printed.strip().splitlines()[-1]
        assert not (tmp_path / "run" / "finished.json").exists()
