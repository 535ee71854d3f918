"""The good rows of a source as a file of their own."""

import json

import datasets
import pyarrow.parquet
import pytest

from fusion.conversations.clean_rows import check_target, write_rows
from fusion.conversations.sources import open_conversations
from vision_core.errors import UserError

TURNS = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}]


def test_the_good_rows_of_a_list_and_of_a_table(tmp_path):
    good = [{"messages": TURNS, "id": 1, "text": "ü\ud83d"}, {"messages": TURNS, "id": 2, "text": None}]
    rows = [good[0], {"messages": TURNS, "video": "a.mp4"}, good[1]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    write_rows(tmp_path / "clean.jsonl", open_conversations(f"llava:{tmp_path}/rows.json"), [0, 2])
    assert [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()] == good
    image = {"bytes": b"no image", "path": None}
    table = [{"messages": TURNS, "images": [image] * number, "number": number} for number in range(40)]
    features = datasets.Features({"images": datasets.List(datasets.Image())})
    features |= datasets.Dataset.from_list([{"messages": TURNS, "number": 0}]).features
    datasets.Dataset.from_list(table, features=datasets.Features(features)).to_parquet(
        tmp_path / "rows.parquet"
    )
    source = open_conversations(f"parquet:{tmp_path}/rows.parquet")
    write_rows(tmp_path / "clean.parquet", source, [3, 7, 39])
    assert pyarrow.parquet.read_table(tmp_path / "clean.parquet").to_pylist() == [
        table[row] for row in (3, 7, 39)
    ]
    assert open_conversations(f"parquet:{tmp_path}/clean.parquet").table.features == source.table.features


def test_a_clean_file_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": TURNS}))
    source = open_conversations(f"messages:{tmp_path}/rows.jsonl")
    (tmp_path / "there.jsonl").write_text("precious")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nowhere")
    for name, said in (
        ("there.jsonl", "not overwritten"),
        ("link.jsonl", "not overwritten"),
        ("x.parquet", "a .jsonl file"),
        ("no/x.jsonl", "no folder"),
    ):
        with pytest.raises(UserError, match=said):
            check_target(tmp_path / name, source)
    with pytest.raises(UserError, match="not overwritten"):
        write_rows(tmp_path / "there.jsonl", source, [0])  # somebody wrote it while rows were read
    assert (tmp_path / "there.jsonl").read_text() == "precious"
    with pytest.raises(UserError, match="has no rows in a file"):
        check_target(tmp_path / "x.jsonl", open_conversations("scenes?count=1"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="was not written .No space left on device.; make room"):
        write_rows(tmp_path / "new.jsonl", source, [0])
    assert not list(tmp_path.glob(".tmp*")) and not (tmp_path / "new.jsonl").exists()
