"""The converter on a file of the same layout, and on the real one where it is at hand."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fusion.conversations.sources import open_conversations

SCRIPT = "recipes/convert_flickr8k_vl.py"
REAL = Path(__file__).parents[3] / "shared" / "data" / "flickr8k_vl"


def row(name, seed):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(
        stream, "JPEG"
    )
    return {
        "image": {"bytes": stream.getvalue(), "path": None},
        "image_id": name,
        "captions": ["A dog .", "A brown dog ."],
        "itm": [{"text": "a cat", "match": False}],
        "entailment": [{"pair_id": "1", "hypothesis": "an animal", "label": 0, "explanation": ""}],
        "vqa": [{"question_id": 1, "question": "What is it?", "answer": "a dog"}] if seed else [],
    }


def test_all_kinds_become_rows(runs, tmp_path):
    for split in ("train", "test"):
        table = pyarrow.Table.from_pylist([row("1.jpg", 1), row("../2.jpg", 0)])
        pyarrow.parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    arguments = ("--source", tmp_path, "--output_dir", tmp_path / "out")
    assert "4 caption, 2 match, 2 entailment, 1 vqa" in runs.finish(
        runs.launch([sys.executable], SCRIPT, *arguments)
    )
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {"1.jpg", "2.jpg"} and not (
        tmp_path / "out" / "2.jpg"
    ).exists()
    source = open_conversations(f"llava:{tmp_path}/out/train.jsonl?images={tmp_path}/out/images")
    answers = [source[number].messages[1].text for number in range(len(source))]
    assert answers == [
        "A dog .",
        "A brown dog .",
        "no",
        "true",
        "a dog",
        "A dog .",
        "A brown dog .",
        "no",
        "true",
    ]
    assert "not empty" in runs.error(SCRIPT, *arguments)
    assert runs.error(SCRIPT, "--source", tmp_path / "out", "--output_dir", tmp_path / "x")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/flickr8k_vl")
def test_the_real_files(runs, tmp_path):
    runs.finish(runs.start(SCRIPT, "--source", REAL, "--output_dir", tmp_path / "out"))
    rows = [json.loads(line) for line in (tmp_path / "out" / "test.jsonl").read_text().splitlines()]
    assert len(rows) == 1440 + 1206 + 1139 + 61
    source = open_conversations(f"llava:{tmp_path}/out/test.jsonl?images={tmp_path}/out/images")
    assert source[0].images[0].shape == (3, 224, 224) and len(source) == len(rows)
