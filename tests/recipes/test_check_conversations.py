"""The command that finds bad rows before a run does."""

import json
import sys

import pytest

from recipes.small_default import write_small_default

TEXTS = ["what colour is the largest object?", "tell me yes or no"]

SCRIPT = "recipes/check_conversations.py"


@pytest.mark.timeout(200)
def test_every_bad_row_is_reported_with_its_line(runs, tmp_path):
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "that"}]
    rows = [
        {"conversations": turns},
        {"conversations": turns, "image": "absent.png"},
        {"conversations": turns[:1]},
        {"conversations": [turns[0], {"from": "gpt", "value": "long " * 500}]},
        {"conversations": turns, "image": "../x.png"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    write_small_default(tmp_path / "model", TEXTS, seed=0)
    arguments = ("--conversations", f"llava:{file}", "--model", tmp_path / "model", "--max_length", 512, "--output_dir", tmp_path / "out")
    printed = runs.finish(runs.launch([sys.executable], SCRIPT, *arguments), expect=1)
    assert "6 rows, 5 bad" in printed and "Traceback" not in printed
    found = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert [each["row"] for each in found] == [2, 3, 4, 5, 6]
    for line, said in ((2, "absent.png"), (3, "last"), (4, "max_length=512"), (5, "leads out"), (6, "no JSON")):
        assert f"{file}, line {line}:" in found[line - 2]["reason"] and said in found[line - 2]["reason"]


@pytest.mark.timeout(200)
def test_good_rows_are_described(runs, tmp_path):
    printed = runs.finish(runs.start(SCRIPT, "--conversations", "scenes?count=30", "--output_dir", tmp_path / "out"))
    assert "30 rows, 0 bad" in printed and "| images | 1 | 1 | 1 | 1 | 30 |" in printed
    assert runs.error(SCRIPT, "--conversations", "scenes?count=3", "--model", tmp_path)
