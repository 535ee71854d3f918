"""A run that goes on with another stage, precision or number of processes.

It works where DeepSpeed can, and is refused in one line before anything changes where it cannot.
"""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SFT = "recipes/sva_sft.py"
SHIPPED = {stage: ROOT / "recipes" / "zero" / f"zero{stage}.json" for stage in range(4)}
CHOSEN = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "save_steps": 2}


@pytest.fixture(scope="module")
def two(runs, zero_left, text_run_options, tmp_path_factory):
    """A run of two processes under ZeRO-2 whose newest checkpoint is the one of its second step."""
    folder = tmp_path_factory.mktemp("two") / "run"
    runs.finish(*runs.start_two(SFT, *text_run_options(folder, deepspeed=SHIPPED[2], **CHOSEN)))
    zero_left(folder, stage=2, processes=2)
    return folder


@pytest.fixture
def half_way(two, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        shutil.copy(two / name, folder)
    shutil.copytree(two / "checkpoint-2", folder / "checkpoint-2")
    return folder


def contents(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("processes", "changed", "said"),
    [
        (1, {"deepspeed": SHIPPED[2], "per_device_train_batch_size": 2}, "by 1 process with"),
        (2, {"deepspeed": SHIPPED[3]}, "is under ZeRO stage 3 by 2 processes"),
        (2, {"deepspeed": SHIPPED[0]}, "is under ZeRO stage 0"),
        (2, {"deepspeed": SHIPPED[2], "bf16": "true"}, "with --bf16 true"),
        (2, {}, "is without --deepspeed"),
    ],
)
def test_another_layout_is_refused_and_nothing_changes(
    processes, changed, said, runs, text_run_options, half_way
):
    """Without the refusal the last one trains on with moments of zero, and the others end in
    DeepSpeed's tracebacks."""
    before = contents(half_way)
    words = [SFT, *text_run_options(half_way, **CHOSEN | changed), "--resume_from_checkpoint", "true"]
    started = runs.start_two(*words) if processes == 2 else [runs.start(*words)]
    printed = runs.finish(*started, expect=2, seconds=100)
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    saved = f"{half_way / 'checkpoint-2'} was saved under ZeRO stage 1 or 2 by 2 processes with --bf16 false"
    assert len(lines) == 1 and saved in lines[0]
    assert said in lines[0] and "Traceback" not in printed
    assert {path: content for path, content in contents(half_way).items() if path.name != ".lock"} == before


def test_stages_1_and_2_go_on_from_each_other(
    runs, logged, weights, zero_left, text_run_options, two, half_way
):
    words = text_run_options(half_way, deepspeed=SHIPPED[1], **CHOSEN)
    runs.finish(*runs.start_two(SFT, *words, "--resume_from_checkpoint", "true"))
    zero_left(half_way, stage=1, processes=2)
    torch.testing.assert_close(logged(half_way), logged(two), rtol=1e-6, atol=0)
    expected, got = weights(two), weights(half_way)
    assert all((got[name] - tensor).norm() <= 1e-6 * tensor.norm() for name, tensor in expected.items())
