"""The same command line, given again, of programs that save no checkpoints: it starts, finishes
what was killed, and says that all is done."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vision_core.runs.folder_kinds import folder_kind

ROOT = Path(__file__).resolve().parents[2]
AUTO = ("--resume_from_checkpoint", "auto")
SMALL = (
    "--grid",
    4,
    "--connector_width",
    16,
    "--connector_heads",
    4,
    "--connector_depth",
    1,
    "--hidden_size",
    32,
)
# program -> its options, the kind of folder that it makes, and its status
PROGRAMS = {
    "fusion/fuse.py": (("--encoders", "tiny:dinov2", *SMALL, "--seed", 1), "fused_vision", 0),
    "recipes/small_language_model.py": (
        ("--conversations", "scenes?count=8", "--seed", 1),
        "language_model",
        0,
    ),
    "recipes/check_conversations.py": (
        ("--conversations", "llava:rows.jsonl", "--dataloader_num_workers", 0, "--max_length", 1),
        "work",
        1,
    ),
    "recipes/convert_flickr8k_vl.py": (("--source", "."), "work", 0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of conversations, one of them bad, and two parquet files in the layout of
    flickr8k_vl."""
    path = tmp_path_factory.mktemp("data")
    turns = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]
    (path / "rows.jsonl").write_text(
        json.dumps({"conversations": turns}) + "\n" + json.dumps({"conversations": []}) + "\n"
    )
    stream = io.BytesIO()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(stream, "JPEG")
    questions = {
        "captions": ["A dog ."],
        "itm": [],
        "entailment": [],
        "vqa": [{"question": "What is it?", "answer": "a dog"}],
    }
    rows = [
        {"image": {"bytes": stream.getvalue()}, "image_id": f"{number}.jpg", **questions}
        for number in range(40)
    ]
    for split in ("train", "test"):
        columns = {name: [row[name] for row in rows] for name in ("image", "image_id", "captions", "vqa")}
        text = pyarrow.struct([("text", pyarrow.string()), ("match", pyarrow.bool_())])
        verdict = pyarrow.struct([("hypothesis", pyarrow.string()), ("label", pyarrow.int64())])
        table = pyarrow.table(
            columns
            | {
                "itm": pyarrow.array([[]] * 40, pyarrow.list_(text)),
                "entailment": pyarrow.array([[]] * 40, pyarrow.list_(verdict)),
            }
        )
        pyarrow.parquet.write_table(table, path / f"{split}-0.parquet")
    return path


def contents(folder):
    """Every file that the program makes, without those that name the folder."""
    left_out = {"README.md", "config.yaml", ".lock"}
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in left_out
    }


def killed_at_work(runs, script, options, folder, name):
    """Start the program until a kill has met it with its folder open; the folder's name."""
    for number in range(20):
        place = folder / f"{name}-{number}"
        run = runs.start(script, *options, "--output_dir", place.name, *AUTO, folder=folder)
        run.wait_until(
            lambda place=place, run=run: (place / "unfinished.json").exists() or run.poll() is not None
        )
        run.kill()
        if (place / "unfinished.json").exists():
            return place
    raise AssertionError("no kill met the program at its work")


@pytest.mark.timeout(200)
@pytest.mark.parametrize("script", PROGRAMS)
def test_killed_it_is_unfinished_and_the_same_command_finishes_it(runs, folder, script):
    options, kind, status = PROGRAMS[script]
    name = script.rpartition("/")[2].removesuffix(".py")
    runs.finish(
        runs.start(script, *options, "--output_dir", f"{name}-whole", *AUTO, folder=folder), expect=status
    )
    place = killed_at_work(runs, script, options, folder, name)
    assert folder_kind(place).name == "unfinished_work" and not (place / "finished.json").exists()
    command = (script, *options, "--output_dir", place.name, *AUTO)
    runs.finish(runs.start(*command, folder=folder), expect=status)
    assert folder_kind(place).name == kind and contents(place) == contents(folder / f"{name}-whole")
    as_module = script.startswith("fusion/")
    start = (
        ([sys.executable, "-X", "importtime", "-m"], "fusion.fuse")
        if as_module
        else ([sys.executable, "-X", "importtime"], script)
    )
    again = runs.launch(*start, *command[1:], folder=folder, environment={"PYTHONPATH": str(ROOT)})
    printed = runs.finish(again, expect=status)
    imported = {
        line.split("|")[-1].strip() for line in printed.splitlines() if line.startswith("import time:")
    }
    assert (
        "all is done" in printed
        and "vision_core.errors" in imported
        and not imported & {"torch", "transformers", "pyarrow", "numpy"}
    )
    other = ("--encoders", "tiny:clip") if "fuse" in script else options[:1] + ("other",)
    assert f"{options[0][2:]} " in runs.error(
        script, *other, *options[len(other) :], *command[-4:], folder=folder
    )


def test_a_clean_file_of_a_killed_start_is_written_again(runs, folder):
    """It was written before the kill, and no other file of that name is ever replaced."""
    options = (
        "--conversations",
        "llava:rows.jsonl",
        "--dataloader_num_workers",
        0,
        "--write_clean",
        "clean.jsonl",
    )
    command = ("recipes/check_conversations.py", *options, "--output_dir", "cleaned", *AUTO)
    (folder / "clean.jsonl").write_text("precious")
    assert "is there already, and is not overwritten" in runs.error(*command, folder=folder)
    assert not (folder / "cleaned").exists() and (folder / "clean.jsonl").read_text() == "precious"
    (folder / "clean.jsonl").unlink()
    runs.finish(runs.start(*command, folder=folder))
    clean = (folder / "clean.jsonl").read_bytes()
    for name in ("finished.json", "bad_rows.jsonl"):  # as a kill behind the clean file leaves it
        (folder / "cleaned" / name).unlink()
    (folder / "cleaned" / "unfinished.json").write_text("{}")
    (folder / "cleaned" / "partial").mkdir()
    (folder / "cleaned" / "partial" / "write_clean.txt").write_text("clean.jsonl\n")
    runs.finish(runs.start(*command, folder=folder))
    assert (folder / "clean.jsonl").read_bytes() == clean and (folder / "cleaned" / "bad_rows.jsonl").exists()
