"""An error that one of two processes meets ends both within seconds, in the words of the one that
met it.

Each process has a folder of its own, as on two machines.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion.training.small_default import write_small_default

ROOT = Path(__file__).parents[3]
SOON = 20  # seconds, on cores that others use too
SHORT = ("--per_device_train_batch_size", 2, "--dataloader_num_workers", 0)
TINY = (
    "--hidden_size",
    32,
    "--num_hidden_layers",
    1,
    "--num_attention_heads",
    2,
    "--patch_size",
    8,
    "--num_prototypes",
    32,
    "--head_hidden_dim",
    32,
    "--head_bottleneck_dim",
    16,
    "--global_crop_size",
    32,
    "--local_crop_size",
    16,
    "--warmup_steps",
    0,
    "--max_steps",
    2,
)


@pytest.fixture
def machines(tmp_path):
    """Two folders with the same data: eight images, and conversations about each."""
    for name in ("first", "second"):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        for index in range(8):
            pixels = np.random.default_rng(index).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        write_rows(folder, 8)
    return tmp_path / "first", tmp_path / "second"


def write_rows(folder, count):
    turns = [{"from": "human", "value": "<image>\nquestion"}, {"from": "gpt", "value": "yes"}]
    rows = [{"image": f"{index}.png", "conversations": turns} for index in range(count)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_small_default(folder, ["question answer yes 0 1 2 3 4 5 6 7 8 9"] * 9, seed=0)
    return folder


@pytest.fixture
def programs(model):
    """Of each program, its script and options for the data in the folder that a process is in."""
    talk = (
        "--init_from",
        model,
        "--conversations",
        "llava:rows.jsonl?images=images",
        "--eval_conversations",
        "[]",
        *SHORT,
    )
    images = ("--dataset", "folder:images", "--eval_dataset", "none", *SHORT)
    return {
        "sft": ("recipes/sva_sft.py", *talk),
        "zero2": (
            "recipes/sva_sft.py",
            *talk,
            "--deepspeed",
            ROOT / "recipes/zero/zero2.json",
            "--save_steps",
            1,
        ),
        "zero3": ("recipes/sva_sft.py", *talk, "--deepspeed", ROOT / "recipes/zero/zero3.json"),
        "mae": ("pretrain/mae.py", *images),
        "dinov2": ("pretrain/dinov2.py", *images, *TINY),
    }


def outcome(ranks):
    """The last lines of both processes, which both have ended with status 2, and the seconds since
    the first one ended."""
    began = time.monotonic()
    while None in [rank.poll() for rank in ranks]:
        assert time.monotonic() < began + 120, [rank.printed[-2000:] for rank in ranks]
        if [rank.poll() for rank in ranks] == [None, None]:
            ended = time.monotonic()
        time.sleep(0.02)
    printed = [rank.printed.replace("\r", "\n") for rank in ranks]
    assert [rank.poll() for rank in ranks] == [2, 2], printed
    assert not any("Traceback" in text or "Exception raised from" in text for text in printed), printed
    return [
        [line for line in text.splitlines() if line.startswith("error: ")] for text in printed
    ], time.monotonic() - ended


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("name", "sick"), [("zero3", 1), ("mae", 0)])
def test_an_unreadable_image_of_one_process(runs, machines, programs, tmp_path, name, sick):
    """The new folder, in which nothing was done, is gone, and the process that met nothing says
    nothing."""
    for path in (machines[sick] / "images").iterdir():
        cut_in_half(path)
    ranks = runs.start_two(*programs[name], "--output_dir", tmp_path / "run", folders=machines)
    said, seconds = outcome(ranks)
    assert len(said[sick]) == 1 and ".png cannot be " in said[sick][0] and not said[1 - sick]
    assert not (tmp_path / "run").exists() and seconds < SOON
    print(f"{name}: both gone {seconds:.1f} s after the first")


def test_weights_that_one_process_cannot_load(runs, machines, programs, tmp_path):
    """DINOv2's loop, behind the opening of the run's folder."""
    source = machines[0] / "weights"
    runs.finish(runs.start(*programs["dinov2"], "--output_dir", source, folder=machines[0]))
    shutil.copytree(source, machines[1] / "weights")
    cut_in_half(machines[1] / "weights" / "model.safetensors")
    said, seconds = outcome(
        runs.start_two(
            *programs["dinov2"], "--init_from", "weights", "--output_dir", tmp_path / "run", folders=machines
        )
    )
    assert len(said[1]) == 1 and "weights" in said[1][0] and not said[0]
    assert not (tmp_path / "run").exists() and seconds < SOON


@pytest.mark.parametrize("name", ["sft", "mae", "dinov2"])
def test_fewer_samples_on_one_machine(runs, machines, programs, tmp_path, name):
    """All processes say it alike, before a folder is made."""
    (machines[1] / "images" / "7.png").unlink()
    write_rows(machines[1], 7)
    said, _ = outcome(runs.start_two(*programs[name], "--output_dir", tmp_path / "run", folders=machines))
    assert said[0] == said[1] and len(said[0]) == 1
    assert "has 7 rows for process 1 on " in said[0][0] and "and 8 for process 0 on " in said[0][0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["sft", "mae"])
def test_a_mistake_before_the_processes_join(runs, machines, programs, tmp_path, name):
    """The process that waits for the other one has not begun to remember signals, so that its
    launcher's SIGTERM ends it."""
    shutil.rmtree(machines[1] / "images")
    model = [] if name == "mae" else ["--init_from", "model"]
    (machines[0] / "model").symlink_to(programs["sft"][2])
    words = [word for word in programs[name] if word not in programs["sft"][1:3]] + model
    first, second = runs.start_two(*words, "--output_dir", tmp_path / "run", folders=machines)
    assert (
        second.wait(60) == 2 and ("images" if name == "mae" else "model") in second.printed.splitlines()[-1]
    )
    time.sleep(0.5)
    assert first.poll() is None
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait(5) == -signal.SIGTERM and not (tmp_path / "run").exists()
