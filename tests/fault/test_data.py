"""Bad images, bad numbers, dead workers and other numbers of processes, in whole runs."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from pretrain.batches.order import BatchLayout, StepSampler
from vision_core.runs.checkpoints import verify_checkpoint


def write_images(folder, count, damaged=()):
    """PNG files; of the damaged ones a third each is empty, cut in half, and something else."""
    folder.mkdir()
    for index in range(count):
        path = folder / f"{index:03d}.png"
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
        if index in damaged:
            data = path.read_bytes()
            path.write_bytes([b"", data[: len(data) // 2], b"<html>no image</html>"][index % 3])
    return folder


def bad_samples(folder):
    return [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]


def test_every_bad_image_is_named_the_same_on_every_run_and_across_a_kill(start, same, last_step, tmp_path):
    damaged = random.Random(0).sample(range(200), 24)
    images = write_images(tmp_path / "images", 200, damaged)
    options = ("--dataset", images, "--max_bad_fraction", 0.2)
    first, second, killed = (tmp_path / name for name in ("first", "second", "killed"))
    assert start(first, *options).wait() == 0
    assert start(second, *options, "--dataloader_num_workers", 0).wait() == 0
    run = start(killed, *options)
    run.wait_for_step(18)
    run.kill()
    assert start(killed, *options, "--resume_from_checkpoint", "true").wait() == 0
    assert {line["id"] for line in bad_samples(first)} == {f"{index:03d}.png" for index in damaged}
    assert {line["reason"] for line in bad_samples(first)} == {"not_an_image", "truncated"}
    assert bad_samples(first) == bad_samples(second) == bad_samples(killed)
    same(second, first)
    same(killed, first)


def test_two_ranks_name_the_bad_images_of_both_and_stop_together_above_the_share(start_two, tmp_path):
    images = write_images(tmp_path / "images", 200, range(24))
    options = ("--dataset", images, "--per_device_train_batch_size", 4, "--max_steps", 30)
    for rank in start_two(tmp_path / "run", *options, "--max_bad_fraction", 0.2):
        assert rank.wait() == 0, rank.printed
    assert {line["id"] for line in bad_samples(tmp_path / "run")} == {
        f"{index:03d}.png" for index in range(24)
    }
    for rank in start_two(tmp_path / "strict", *options):
        assert rank.wait() == 2
        assert (
            rank.printed.splitlines()[-1].startswith("error: ")
            and "more than max_bad_fraction=0.01" in rank.printed
        )


def test_a_number_that_overflows_on_one_rank_reaches_no_weight(start_two, metrics, tmp_path):
    """One of 40 arrays holds 1e38: its steps are left out on both ranks, its loss is logged as it
    was, its name is told."""
    orders = [
        [[draw.index for draw in draws] for draws in StepSampler(40, BatchLayout(4, 1, 2, rank), 0, 0, 12)]
        for rank in (0, 1)
    ]
    sick = orders[1][2][1]  # drawn by rank 1 in step 3
    images = tmp_path / "images"
    images.mkdir()
    for index in range(40):
        values = np.random.default_rng(index).normal(size=(4, 40, 40)).astype(np.float32)
        np.save(images / f"{index:03d}.npy", np.full_like(values, 1e38) if index == sick else values)
    bands = ("--num_channels", 4, "--image_mean", *[0] * 4, "--image_std", *[1] * 4, "--dataset", images)
    for rank in start_two(
        tmp_path / "run",
        *bands,
        "--per_device_train_batch_size",
        4,
        "--max_steps",
        12,
        "--save_steps",
        1,
        "--save_total_limit",
        12,
    ):
        assert rank.wait() == 0, rank.printed
    skipped = [line for line in metrics(tmp_path / "run") if line.get("skipped")]
    expected = [(step + 1, [rank]) for step in range(12) for rank in (0, 1) if sick in orders[rank][step]]
    assert [(line["step"], line["ranks"]) for line in skipped] == expected and expected[0] == (3, [1]), (
        skipped
    )
    assert all(
        line["loss"] in ("nan", "inf") and f"{sick:03d}.npy" in line["ids"] and len(line["ids"]) == 4
        for line in skipped
    )
    for name in ("model", "heads", "student", "optimizer"):
        before, after = (tmp_path / "run" / f"checkpoint-{step}" / f"{name}.safetensors" for step in (2, 3))
        assert before.read_bytes() == after.read_bytes(), f"the skipped step has changed {name}"
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        for name in ("model", "heads", "student", "optimizer"):
            assert all(
                tensor.isfinite().all() for tensor in load_file(checkpoint / f"{name}.safetensors").values()
            )


def test_a_run_whose_every_number_overflows_stops_at_the_third_step(start, metrics, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(40):
        np.save(images / f"{index:03d}.npy", np.full((4, 40, 40), 1e38, dtype=np.float32))
    bands = ("--num_channels", 4, "--image_mean", *[0] * 4, "--image_std", *[1] * 4, "--dataset", images)
    run = start(tmp_path / "run", *bands)
    assert run.wait() == 2
    assert "not finite for 3 steps in a row, the last is step 3" in run.printed.splitlines()[-1]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    assert verify_checkpoint(tmp_path / "run" / "checkpoint-3") is None
    assert all(
        tensor.isfinite().all()
        for tensor in load_file(tmp_path / "run" / "checkpoint-3" / "student.safetensors").values()
    )


def test_one_two_and_one_processes_are_one_course(runs, start_two, start, metrics, tmp_path):
    """Changes after 20 and 40 of 60 steps; drop path 0, gathered KoLeo, centers over all tokens:
    every loss within a relative 1e-5 of one process's."""
    options = ("--drop_path_rate", 0, "--koleo_gather", "--center_reduction", "tokens")
    one, mixed = tmp_path / "one", tmp_path / "mixed"
    assert start(one, *options).wait() == 0
    # a run of max_steps 60 is stopped after its saves at 20 and 40
    run = start(mixed, *options)
    run.wait_until(lambda: (mixed / "checkpoint-20").is_dir())
    run.kill()
    resume = (
        *options,
        "--resume_from_checkpoint",
        mixed / "checkpoint-20",
        "--per_device_train_batch_size",
        4,
    )
    ranks = start_two(mixed, *resume)
    ranks[0].wait_until(lambda: (mixed / "checkpoint-40").is_dir())
    runs.kill(*ranks)
    run = start(mixed, *options, "--resume_from_checkpoint", mixed / "checkpoint-40")
    assert run.wait() == 0, run.printed
    ours, theirs = metrics(mixed), metrics(one)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    worst = 0.0
    for left, right in zip(ours, theirs, strict=True):
        for name in (name for name in right if name.endswith("loss")):
            worst = max(worst, abs(left[name] - right[name]) / abs(right[name]))
    print(f"largest relative difference of a loss over 60 steps, 1 -> 2 -> 1 processes: {worst:.1e}")
    assert 0 < worst < 1e-5, worst


@pytest.mark.parametrize("shards", [1, 3])
def test_uneven_shards_do_not_hang(start_two, metrics, tmp_path, shards):
    """101 images in 1 or 3 shards for 2 ranks, streamed."""
    import datasets

    images = write_images(tmp_path / "images", 101)
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(images.glob("*.png"))]
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (tmp_path / "data").mkdir()
    for shard in range(shards):
        dataset.shard(shards, shard).to_parquet(tmp_path / "data" / f"train-{shard}.parquet")
    options = (
        "--dataset",
        f"hf:{tmp_path / 'data'}?streaming=true",
        "--per_device_train_batch_size",
        4,
        "--max_steps",
        30,
    )
    for rank in start_two(tmp_path / "run", *options):
        assert rank.wait(120) == 0, rank.printed
    assert metrics(tmp_path / "run")[-1]["step"] == 30


def test_a_killed_data_worker_is_one_line_and_the_run_resumes(start, whole, same, last_step, tmp_path):
    run = start(tmp_path / "run")
    run.wait_for_step(8)
    os.kill(run.children()[0], signal.SIGKILL)
    assert run.wait(10) == 2, run.printed
    line = run.printed.splitlines()[-1]
    # torch has three ways to notice it
    assert any(
        words in line for words in ("is killed by signal", "exited unexpectedly", "died while it handed over")
    ), line
    assert line.startswith("error: step ") and "scene" in line and "--resume_from_checkpoint" in line
    assert not run.processes()
    assert start(tmp_path / "run", "--resume_from_checkpoint", "true").wait() == 0
    same(tmp_path / "run", whole)


def test_a_hung_data_worker_is_found(start, tmp_path):
    run = start(tmp_path / "run", "--dataloader_timeout", 3)
    run.wait_for_step(8)
    stopped = run.children()
    for worker in stopped:
        os.kill(worker, signal.SIGSTOP)
    halted = time.monotonic()
    assert run.wait(15) == 2, run.printed
    assert time.monotonic() - halted > 2 and "timed out after 3" in run.printed.splitlines()[-1]
    assert not run.processes()


@pytest.mark.parametrize("count, status", [(0, 2), (1, 2), (3, 2), (8, 0)])
def test_tiny_data(start, tmp_path, count, status):
    """Fewer images than a batch are refused at once; a data set of one batch of equal images trains
    with finite numbers."""
    images = write_images(tmp_path / "images", 0)
    for index in range(count):
        Image.new("RGB", (40, 40), (9, 9, 9)).save(images / f"{index}.png")
    run = start(tmp_path / "run", "--dataset", images, "--max_steps", 5)
    assert run.wait(20) == status, run.printed
    if status:
        assert run.printed.splitlines()[-1].startswith("error: ") and f"{count} images" in run.printed
    else:
        assert "skipped" not in run.printed
