"""What DeepSpeed itself goes by, asked of its engine in runs of the real program, and ZeRO-3 with
learnt positions in several chunks."""

import ast
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SFT = Path(__file__).with_name("sft_in_chunks.py")


def engine(printed):
    """What the engine said of itself."""
    (line,) = [line for line in printed.splitlines() if line.startswith("engine: ")]
    return ast.literal_eval(line.removeprefix("engine: "))


@pytest.mark.timeout(300)
def test_processes_with_different_numbers_of_chunks_are_one(
    runs, logged, weights, zero_left, text_run_options, tmp_path
):
    """Two processes under ZeRO-3, 40 and 6 learnt tokens at a chunk of 8, and two batches to a
    step."""
    runs.finish(runs.start(SFT, *text_run_options(tmp_path / "one", per_device_train_batch_size=4)))
    config = ROOT / "recipes" / "zero" / "zero3.json"
    sharded = text_run_options(
        tmp_path / "two",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        deepspeed=config,
        save_steps=2,
    )
    printed = runs.finish(*runs.start_two(SFT, *sharded), seconds=280)
    said = engine(printed)
    assert said["stage"] == 3 and said["processes"] == 2 and said["own share"] == pytest.approx(0.5, abs=0.01)
    assert said["held between steps"] < 0.1, "only small parameters are kept whole"
    zero_left(tmp_path / "two", stage=3, processes=2)
    torch.testing.assert_close(logged(tmp_path / "two"), logged(tmp_path / "one"), rtol=1e-4, atol=0)
    expected, got = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert expected.keys() == got.keys()
    assert all((got[name] - tensor).norm() <= 1e-3 * tensor.norm() for name, tensor in expected.items())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", [2, 3])
def test_a_file_that_says_nothing_but_the_stage_follows_the_options(
    stage, runs, weights, zero_left, text_given, text_run_options, tmp_path
):
    """DeepSpeed by itself would clip at 1.0, in float32, after every batch, and save no weights of
    ZeRO-3."""
    config = tmp_path / "zero.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    chosen = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.05,
        "bf16": "true",
        "max_steps": 2,
    }
    said = engine(
        runs.finish(
            runs.start(SFT, *text_run_options(tmp_path / "run", deepspeed=config, **chosen)), seconds=280
        )
    )
    sharding = {name: said.pop(name) for name in ("processes", "own share", "held between steps")}
    assert said == {
        "stage": stage,
        "clipping": 0.05,
        "bf16": True,
        "accumulation": 2,
        "micro batch": 2,
        "optimizer": "AdamW",
    }
    assert sharding["processes"] == 1 and sharding["own share"] == 1
    zero_left(tmp_path / "run", stage, processes=1)
    before, after = (
        sum(tensor.numel() for tensor in weights(folder).values())
        for folder in (text_given / "model", tmp_path / "run")
    )
    assert (
        before == after
    )  # by their number: transformers renames some of them when it saves what it has loaded


def test_where_accelerate_would_leave_deepspeed_out(runs, text_run_options, tmp_path):
    """As in a shell that a test of two processes on CPUs has left: under ZeRO-3 it ended in a
    convolution whose weight nobody gathered."""
    arguments = text_run_options(tmp_path / "run", deepspeed=ROOT / "recipes" / "zero" / "zero3.json")
    run = runs.start("recipes/sva_sft.py", *arguments, environment={"ACCELERATE_USE_CPU": "true"})
    printed = runs.finish(run, expect=2, seconds=60)
    assert "error: ACCELERATE_USE_CPU is set" in printed and not (tmp_path / "run").exists()


def test_the_program_says_it_before_it_loads_anything(runs, text_run_options, tmp_path):
    """A key that DeepSpeed would not read is named."""
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2, "reduce_buckt_size": "auto"}}))
    line = runs.error("recipes/sva_sft.py", *text_run_options(tmp_path / "run", deepspeed=file))
    assert "did you mean reduce_bucket_size?" in line and not (tmp_path / "run").exists()
