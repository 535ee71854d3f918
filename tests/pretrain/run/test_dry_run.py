"""How a run begins and ends without training: what it says first; a dry run on images that cannot
be read."""

import json
import sys
import time

import pytest
from PIL import Image


@pytest.mark.timeout(280)
def test_a_dry_run_on_unreadable_images_ends_in_one_line_and_leaves_no_process(runs, tmp_path):
    """Started as users start it, for Python's own end is part of it.

    Two images can be read, so that the run gets as far as its data workers, of which it has one by
    default.
    """
    images = tmp_path / "images"
    images.mkdir()
    for number in range(80):
        (images / f"{number}.png").write_bytes(b"no image")
    for number in range(2):
        Image.new("RGB", (64, 64)).save(images / f"{number}.png")
    run = runs.launch(
        [sys.executable],
        "pretrain/dinov2.py",
        "--dry_run",
        "--dataset",
        f"folder:{images}",
        "--eval_dataset",
        "none",
    )
    assert run.wait(240) == 2, run.printed
    ended = time.monotonic()
    while run.processes() and time.monotonic() < ended + 5:
        time.sleep(0.05)
    lines = run.printed.splitlines()
    assert not run.processes() and lines[0] == "loading torch and transformers ..."
    assert (
        lines[-1].startswith("error: 20 images in a row could not be read, the last was ") and len(lines) == 2
    ), run.printed
    assert not (tmp_path / "outputs").exists() and not (runs.folder / "outputs").exists()


SMALL = (
    "--hidden_size",
    32,
    "--num_hidden_layers",
    1,
    "--num_attention_heads",
    2,
    "--per_device_train_batch_size",
    8,
    "--max_steps",
    3,
)
MISTAKES = {
    "no labels to judge by": (
        "dinov2",
        ("--eval_dataset", "folder:{images}", "--eval_bank_dataset", "folder:{images}"),
    ),
    "another model": ("dinov2", ("--init_from", "{images}")),
    "no such evaluation data": ("dinov2", ("--eval_dataset", "folder:absent")),
    "no captions": ("siglip", ("--dataset", "folder:{images}")),
    "another model of siglip": ("siglip", ("--init_from", "{images}")),
    "no such held-out data": ("mae", ("--eval_dataset", "folder:absent")),
    "images that cannot be read": ("mae", ("--dataset", "folder:{images}", "--eval_dataset", "none")),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(16):
        (folder / f"{number}.png").write_bytes(b"no image")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder


@pytest.mark.timeout(200)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_leaves_no_folder(mistake, runs, images, tmp_path):
    program, arguments = MISTAKES[mistake]
    folder = tmp_path / "new" / "run"
    arguments = [text.format(images=images) for text in arguments]
    runs.error(f"pretrain/{program}.py", *SMALL, "--warmup_steps", 1, *arguments, "--output_dir", folder)
    assert not folder.parent.exists()


@pytest.mark.timeout(200)
def test_a_run_says_what_it_is_before_it_reads_the_images_to_judge_by(runs, tmp_path):
    data = (
        "--dataset",
        "scenes?size=32&count=64",
        "--eval_dataset",
        "scenes?size=32&count=64",
        "--knn_num_queries",
        16,
    )
    printed = runs.finish(
        runs.start("pretrain/dinov2.py", *SMALL, "--warmup_steps", 1, *data, "--output_dir", tmp_path / "run")
    )
    first = printed[: printed.index("reading images to judge by")]
    for words in (
        f"run folder      {tmp_path / 'run'}",
        "images          embedded scenes",
        "backbone        width 32, 1 layers",
        "steps 0 to 3",
    ):
        assert words in first
    assert "to beat" in printed and "to beat" not in first


@pytest.mark.timeout(200)
@pytest.mark.parametrize("program", ["siglip", "mae"])
def test_the_others_say_it_before_their_first_step(program, runs, tmp_path):
    data = ("--dataset", "scenes?size=32&count=64", "--eval_dataset", "none", "--image_size", 32)
    printed = runs.finish(
        runs.start(f"pretrain/{program}.py", *SMALL, *data, "--output_dir", tmp_path / "run")
    )
    first = printed[: printed.index("training   0%")]
    for words in (
        f"run folder       {tmp_path / 'run'}",
        "images           embedded scenes",
        "steps            3\n",
        "what trains:\n",
    ):
        assert words in first
