"""The converter on a file of the same layout, and on the real one where it is at hand."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from recipes.conversations import open_conversations

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "flickr8k_vl"


def run(*arguments):
    command = [sys.executable, str(ROOT / "recipes" / "convert_flickr8k_vl.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def row(name, seed):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(stream, "JPEG")
    return {
        "image": {"bytes": stream.getvalue(), "path": None},
        "image_id": name,
        "captions": ["A dog .", "A brown dog ."],
        "itm": [{"text": "a cat", "match": False}],
        "entailment": [{"pair_id": "1", "hypothesis": "an animal", "label": 0, "explanation": ""}],
        "vqa": [{"question_id": 1, "question": "What is it?", "answer": "a dog"}] if seed else [],
    }


def test_all_kinds_become_rows(tmp_path):
    for split in ("train", "test"):
        table = pyarrow.Table.from_pylist([row("1.jpg", 1), row("../2.jpg", 0)])
        pyarrow.parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    done = run("--source", tmp_path, "--output_dir", tmp_path / "out")
    assert done.returncode == 0 and "4 caption, 2 match, 2 entailment, 1 vqa" in done.stdout
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {"1.jpg", "2.jpg"} and not (
        tmp_path / "out" / "2.jpg"
    ).exists()
    source = open_conversations(f"llava:{tmp_path}/out/train.jsonl?images={tmp_path}/out/images")
    answers = [source[number].messages[1].text for number in range(len(source))]
    assert answers == ["A dog .", "A brown dog .", "no", "true", "a dog", "A dog .", "A brown dog .", "no", "true"]
    again = run("--source", tmp_path, "--output_dir", tmp_path / "out")
    assert again.returncode == 2 and "not empty" in again.stderr
    assert run("--source", tmp_path / "out", "--output_dir", tmp_path / "x").returncode == 2


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/flickr8k_vl")
def test_the_real_files(tmp_path):
    done = run("--source", REAL, "--output_dir", tmp_path / "out")
    assert done.returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "test.jsonl").read_text().splitlines()]
    assert len(rows) == 1440 + 1206 + 1139 + 61
    source = open_conversations(f"llava:{tmp_path}/out/test.jsonl?images={tmp_path}/out/images")
    assert source[0].images[0].shape == (3, 224, 224) and len(source) == len(rows)
