"""Programs as users start them, with files, options and names that were made to hurt: one line,
status 2, within seconds, and no folder is left."""

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

from fusion.training.small_default import write_small_default

ESCAPE = "\x1b[31mred\x1b]0;title\x07"
TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "yes"}]
SECONDS = 5


@pytest.fixture(scope="module")
def place(runs, tmp_path_factory) -> Path:
    """A pipe of every ending, a model's folder with a pipe, a good fused model, rows with hostile
    paths, a few pictures."""
    folder = tmp_path_factory.mktemp("hostile")
    write_small_default(folder / "fused", ["question word answer yes 0 1 2 3 4 5 6 7 8 9"] * 9, seed=0)
    runs.finish(
        runs.start("recipes/check_conversations.py", "--help")
    )  # the first start waits for all imports
    for ending in ("yaml", "txt", "json", "jsonl", "jinja", "png", "safetensors"):
        os.mkfifo(folder / f"pipe.{ending}")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama", "vocab_size": 8}')
    os.mkfifo(folder / "model" / "model.safetensors")
    (folder / "deep.yaml").write_text("dataset: " + "[" * 5000)
    (folder / "images" / ESCAPE).mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "images" / ESCAPE / "0.png")
    rows = {"pipe": "pipe.png", "escape": f"{ESCAPE}.png"}
    for name, image in rows.items():
        (folder / f"{name}_rows.jsonl").write_text(
            json.dumps({"image": image, "conversations": TURNS}) + "\n"
        )
    return folder


STARTS = {
    "a pipe as a config": ("pretrain/dinov2.py", "--config {place}/pipe.yaml", "pipe.yaml cannot be read"),
    "a config that is nested": ("pretrain/mae.py", "--config {place}/deep.yaml", "nested too deeply"),
    "a pipe as a list": ("pretrain/dinov2.py", "--dataset list:{place}/pipe.txt", "pipe.txt cannot be read"),
    "a dataset with escape codes": ("pretrain/mae.py", f"--dataset {ESCAPE}", r"\x1b[31mred"),
    "a dataset whose name is too long": ("pretrain/siglip.py", f"--dataset folder:{'n' * 5000}", "nnn"),
    "weights that are a pipe": (
        "pretrain/dinov2.py",
        "--init_from {place}/model",
        "model.safetensors is a pipe",
    ),
    "statistics of a pipe": (
        "pretrain/data_stats.py",
        "--dataset list:{place}/pipe.txt",
        "pipe.txt cannot be read",
    ),
    "a pipe as ground truth": (
        "recipes/evaluate_encoder.py",
        "--ground_truth {place}/pipe.json --tasks retrieval",
        "pipe.json cannot be read",
    ),
    "an encoder that is a pipe": (
        "recipes/compare_encoders.py",
        "--encoders {place}/model raw_pixels",
        "model.safetensors is a pipe",
    ),
    "a pipe as conversations": (
        "recipes/sva_align.py",
        "--init_from {place}/fused --conversations llava:{place}/pipe.json",
        "pipe.json cannot be read",
    ),
    "a row whose image is a pipe": (
        "recipes/sva_sft.py",
        "--init_from {place}/fused --conversations llava:{place}/pipe_rows.jsonl",
        "pipe_rows.jsonl, line 1",
    ),
    "a row with escape codes": (
        "recipes/sva_align.py",
        "--init_from {place}/fused --conversations llava:{place}/escape_rows.jsonl",
        r"\x1b[31mred",
    ),
    "a pipe as a ZeRO config": (
        "recipes/sva_sft.py",
        "--init_from {place}/fused --deepspeed {place}/pipe.json",
        "pipe.json cannot be read",
    ),
    "a pipe as a benchmark": (
        "recipes/evaluate_vlm.py",
        "--model {place}/fused --tasks pope:{place}/pipe.jsonl",
        "pipe.jsonl cannot be read",
    ),
    "a pipe as a chat template": (
        "fusion/fuse.py",
        "--encoders tiny:dinov2 --language_model tiny:llama --chat_template {place}/pipe.jinja",
        "pipe.jinja",
    ),
    "a language model that is a pipe": (
        "fusion/fuse.py",
        "--encoders tiny:dinov2 --language_model {place}/model",
        "model.safetensors is a pipe",
    ),
    "an option with escape codes": ("recipes/check_conversations.py", f"--{ESCAPE} 1", r"\x1b[31mred"),
    "a NUL": ("recipes/check_conversations.py", "--conversations llava:a\0b.json", r"a\x00b.json"),
}


@pytest.mark.parametrize("name", STARTS)
def test_one_line(name, runs, place, tmp_path):
    script, words, said = STARTS[name]
    arguments = [word.format(place=place) for word in words.split(" ")]
    if script not in ("pretrain/data_stats.py",):
        arguments += ["--output_dir", str(tmp_path / "run")]
    began = time.monotonic()
    printed = runs.finish(runs.start(script, *arguments), expect=2, seconds=6 * SECONDS)
    *before, line = [line for line in printed.splitlines() if line.strip()]
    assert (
        "Traceback" not in printed
        and line.startswith("error: ")
        and not [each for each in before if each.startswith("error: ")]
    ), printed
    assert said in line and line.isprintable() and len(line) <= 300, line
    assert time.monotonic() - began < 6 * SECONDS and not (tmp_path / "run").exists()


def test_names_in_what_a_program_says_are_printable(runs, place, tmp_path):
    """The same names as classes, in the lines of a run that goes well."""
    printed = runs.finish(runs.start("pretrain/data_stats.py", "--dataset", f"folder:{place}/images"))
    assert "\x1b" not in printed and "\x07" not in printed
