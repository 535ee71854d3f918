"""The command that finds bad rows before a run does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.small_default import write_small_default

TEXTS = ["what colour is the largest object?", "tell me yes or no"]

SCRIPT = Path(__file__).parents[2] / "recipes" / "check_conversations.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=150)


@pytest.mark.timeout(200)
def test_every_bad_row_is_reported_with_its_line(tmp_path):
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
    done = run("--conversations", f"llava:{file}", "--model", tmp_path / "model", "--max_length", 512, "--output_dir", tmp_path / "out")
    assert done.returncode == 1 and "6 rows, 5 bad" in done.stdout and "Traceback" not in done.stderr
    found = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert [each["row"] for each in found] == [2, 3, 4, 5, 6]
    for line, said in ((2, "absent.png"), (3, "last"), (4, "max_length=512"), (5, "leads out"), (6, "no JSON")):
        assert f"{file}, line {line}:" in found[line - 2]["reason"] and said in found[line - 2]["reason"]


@pytest.mark.timeout(200)
def test_good_rows_are_described(tmp_path):
    done = run("--conversations", "scenes?count=30", "--output_dir", tmp_path / "out")
    assert done.returncode == 0 and "30 rows, 0 bad" in done.stdout and "| images | 1 | 1 | 1 | 1 | 30 |" in done.stdout
    assert run("--conversations", "scenes?count=3", "--model", tmp_path).returncode == 2
