"""The command that finds bad rows before a run does."""

import json
import sys

import pytest

from fusion.conversations.sources import open_conversations
from fusion.tiny import tiny_language_model
from fusion.training.small_default import write_small_default
from recipes.check_conversations import check_rows, clean_target, number_ranges, write_clean_file
from vision_core.errors import UserError

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
    arguments = (
        "--conversations",
        f"llava:{file}",
        "--model",
        tmp_path / "model",
        "--max_length",
        512,
        "--output_dir",
        tmp_path / "out",
    )
    printed = runs.finish(runs.launch([sys.executable], SCRIPT, *arguments), expect=1)
    assert "6 rows, 5 bad" in printed and "Traceback" not in printed
    assert "| tokens |" in printed, "what the good row has is told beside what is wrong with the others"
    assert "ends in </s>, which is learnt, and at which generation stops" in printed
    found = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert [each["row"] for each in found] == [2, 3, 4, 5, 6]
    for line, said in (
        (2, "absent.png"),
        (3, "last"),
        (4, "max_length=512"),
        (5, "leads out"),
        (6, "no JSON"),
    ):
        assert f"{file}, line {line}:" in found[line - 2]["reason"] and said in found[line - 2]["reason"]


@pytest.mark.timeout(200)
def test_good_rows_are_described(runs, tmp_path):
    printed = runs.finish(
        runs.start(SCRIPT, "--conversations", "scenes?count=30", "--output_dir", tmp_path / "out")
    )
    assert "30 rows, 0 bad" in printed and "| images | 1 | 1 | 1 | 1 | 30 |" in printed
    assert "were not looked at: name the fused model by --model" in printed
    assert runs.error(SCRIPT, "--conversations", "scenes?count=3", "--model", tmp_path)


def test_a_folder_of_something_else_is_refused_before_rows_are_read(runs, tmp_path):
    tiny_language_model("llama")[0].save_pretrained(tmp_path / "llm")
    said = runs.error(
        SCRIPT,
        "--conversations",
        "scenes?count=3",
        "--model",
        tmp_path / "llm",
        "--output_dir",
        tmp_path / "out",
    )
    assert "'llama', not a fused vision-language model" in said and not (tmp_path / "out").exists()


TURNS = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}]


def rows_to_clean():
    """Rows 2, 4 and 5 of six are bad; none is as `json.dumps` would write it, and one has what
    nothing reads."""
    return [
        '{"messages":  [{"role":"user","content":"wäs?"},{"content":"thät","role":"assistant"}], "id": 1}',
        json.dumps({"messages": TURNS, "video": "a.mp4"}),
        json.dumps({"messages": TURNS, "images": None, "id": 3, "score": 0.5}),
        "{broken",
        json.dumps({"messages": TURNS[:1], "id": 5}),
        json.dumps({"system": "x", "messages": TURNS}),
    ]


@pytest.mark.timeout(200)
def test_the_good_rows_are_written_as_they_stand(runs, tmp_path):
    lines = rows_to_clean()
    (tmp_path / "rows.jsonl").write_bytes(b"\n\n" + "\r\n".join(lines).encode())
    clean = tmp_path / "clean.jsonl"
    arguments = ("--conversations", f"messages:{tmp_path}/rows.jsonl", "--write_clean", clean)
    printed = runs.finish(runs.start(SCRIPT, *arguments, "--output_dir", tmp_path / "out"))
    assert clean.read_bytes() == "".join(f"{lines[row]}\n" for row in (0, 2, 5)).encode()
    assert f"wrote 3 rows to {clean}; left out: 3 rows: 2, 4-5" in printed
    assert "keys that nothing reads: id (rows: 3), score (rows: 1)" in printed
    assert [
        json.loads(line)["row"] for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()
    ] == [2, 4, 5]
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == [
        "clean.jsonl",
        "rows.jsonl",
    ] and not list(tmp_path.glob(".tmp*"))
    assert "is there already, and is not overwritten" in runs.error(
        SCRIPT, *arguments, "--output_dir", tmp_path / "again"
    )
    printed = runs.finish(
        runs.start(SCRIPT, "--conversations", f"messages:{clean}", "--output_dir", tmp_path / "cleaned")
    )
    assert "3 rows, 0 bad" in printed


def test_nothing_is_written_where_no_row_is_good(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{broken\n")
    source = open_conversations(f"messages:{tmp_path}/rows.jsonl")
    with pytest.raises(UserError, match="no row is good"):
        write_clean_file(tmp_path / "x.jsonl", source, list(check_rows(source, None, 100, 0, "rows")))
    assert not (tmp_path / "x.jsonl").exists()


def test_numbers_of_rows_in_words():
    assert number_ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10" and number_ranges([]) == ""
    assert number_ranges(range(1, 2000, 2)).endswith("197, 199 and 900 more places")


def test_a_clean_file_is_of_one_source(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": TURNS}))
    source = open_conversations(f"messages:{tmp_path}/rows.jsonl")
    with pytest.raises(UserError, match="2 are given"):
        clean_target("x.jsonl", [("a", source), ("b", source)])
