"""What the values of a label column mean, in every source that has columns."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.label_values import Labels, read_labels
from vision_core.images.open_source import open_source
from vision_core.images.splits import open_splits


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, **columns) -> str:
    rows = len(next(iter(columns.values())))
    images = [{"bytes": png(number), "path": None} for number in range(rows)]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": images, **columns}), path)
    return f"parquet:{path}"


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([0, 5, 1], [0, 5, 1], None),
        ([True, False], [1, 0], None),
        ([0.0, 2.0, 1.0], [0, 2, 1], None),
        (["b", "a", "b", "a"], [1, 0, 1, 0], ["a", "b"]),
        (["10", "9", "10", "9"], [0, 1, 0, 1], ["10", "9"]),
    ],
)
def test_one_class_an_image(values: list, labels: list[int], names: list[str] | None) -> None:
    found = read_labels(values, "x", asked_for=True)
    assert (found.labels, found.multi_labels, found.class_names) == (labels, None, names)


@pytest.mark.parametrize(
    ("values", "labels", "names"),
    [
        ([[0, 2], [], None, [1]], [[0, 2], [], [], [1]], None),
        ([["b", "a"], ["c"], []], [[0, 1], [2], []], ["a", "b", "c"]),
        ([[0, 0, 1], [1, 1, 0], [0, 0, 0]], [[2], [0, 1], []], None),
        ([[0, 1], [1, 0]], [[0, 1], [0, 1]], None),
        ([[2.0], [0.0, 1.0]], [[2], [0, 1]], None),
    ],
)
def test_several_classes_an_image(values: list, labels: list[list[int]], names: list[str] | None) -> None:
    found = read_labels(values, "x", asked_for=True)
    assert (found.labels, found.multi_labels, found.class_names) == (None, labels, names)
    assert found.described().endswith("several classes an image: for the task multi_label")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            [0.5, 1.0],
            "column 'x' holds no whole numbers but measurements such as 0.5; "
            "round them into classes, or name another column",
        ),
        (
            ["a", "b", "c", "a"],
            "column 'x' holds no whole numbers, and 3 different texts in 4 rows are no classes",
        ),
        ([0, None], "column 'x': 1 of 2 labels are missing or negative"),
        ([0.0, float("nan")], "column 'x': 1 of 2 labels are missing or negative"),
        (["a", "a", ""], "column 'x': 1 of 3 labels are missing or negative"),
        ([[0], [-1]], "column 'x': 1 of 2 labels are missing or negative"),
        ([{"a": 1}], "column 'x' holds no whole numbers, texts or lists of them but dict"),
        ([[0.5], [1.0]], "measurements such as 0.5"),
    ],
)
def test_what_is_no_label_is_a_line_or_none(values: list, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_labels(values, "x", asked_for=True)
    found = read_labels(values, "x", asked_for=False)
    assert found == Labels(why_none=found.why_none) and said in found.why_none
    assert found.described().startswith(", no labels: column 'x'")


COLUMNS = {
    "text": ["dog", "cat", "dog", "cat"],
    "whole": [1.0, 0.0, 1.0, 0.0],
    "tags": [["a"], ["a", "b"], [], ["b"]],
    "weight": [0.5, 1.5, 1.0, 2.0],
    "story": ["one", "two", "three", "four"],
}


def test_columns_of_parquet(tmp_path: Path) -> None:
    text = write(tmp_path / "x.parquet", **COLUMNS)
    source = open_source(f"{text}?label=text")
    assert source.labels == [1, 0, 1, 0] and source.class_names == ["cat", "dog"] and source[0].label == 1
    assert open_source(f"{text}?label=whole").labels == [1, 0, 1, 0]
    tags = open_source(f"{text}?label=tags")
    assert (
        tags.labels is None and tags.multi_labels == [[0], [0, 1], [], [1]] and tags.knows == {"multi_label"}
    )
    for column, said in (
        ("weight", "measurements such as 0.5"),
        ("story", "4 different texts in 4 rows are no classes"),
    ):
        with pytest.raises(UserError, match=said):
            open_source(f"{text}?label={column}")
        by_itself = open_source(write(tmp_path / f"{column}.parquet", label=COLUMNS[column]))
        assert by_itself.labels is None and said in by_itself.description
    assert (
        open_source(write(tmp_path / "l.parquet", labels=COLUMNS["tags"])).multi_labels == tags.multi_labels
    )
    both = open_source(write(tmp_path / "both.parquet", labels=COLUMNS["tags"], label=[0, 1, 1, 0]))
    assert both.labels == [0, 1, 1, 0] and both.multi_labels is None
    categories = pa.array(COLUMNS["text"]).dictionary_encode()
    assert open_source(write(tmp_path / "pandas.parquet", label=categories)).class_names == ["cat", "dog"]


def test_columns_of_datasets(tmp_path: Path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    named = datasets.ClassLabel(names=["x", "y"])
    features = {
        "image": datasets.Image(),
        "label": datasets.Value("string"),
        "whole": datasets.Value("float32"),
    }
    features |= {
        "tags": datasets.List(datasets.Value("string")),
        "named": datasets.List(named),
        "weight": datasets.Value("float32"),
    }
    images = [{"bytes": png(number), "path": None} for number in range(4)]
    table = {
        "image": images,
        "label": COLUMNS["text"],
        "whole": COLUMNS["whole"],
        "tags": COLUMNS["tags"],
        "weight": COLUMNS["weight"],
    }
    table["named"] = [[1], [0, 1], [], [0]]
    (tmp_path / "data").mkdir()
    data = datasets.Dataset.from_dict(table, features=datasets.Features(features))
    data.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    for kind in (f"hf:{tmp_path / 'data'}", f"parquet:{tmp_path / 'data'}/*.parquet"):
        assert open_source(kind).labels == [1, 0, 1, 0] and open_source(kind).class_names == ["cat", "dog"]
        assert open_source(f"{kind}?label=whole").labels == [1, 0, 1, 0]
        assert open_source(f"{kind}?label=tags").multi_labels == [[0], [0, 1], [], [1]]
        marked = open_source(f"{kind}?label=named")
        assert marked.multi_labels == [[1], [0, 1], [], [0]] and marked.class_names == ["x", "y"]
        with pytest.raises(UserError, match="measurements such as 0.5"):
            open_source(f"{kind}?label=weight")
    stream = f"hf:{tmp_path / 'data'}?streaming=true"
    assert next(open_source(stream).records(0, 1, 0)).label is None
    with pytest.raises(UserError, match="'whole' holds no whole numbers, which a stream needs for labels"):
        open_source(f"{stream}&label=whole")


def test_both_parts_of_a_data_set_have_the_same_class_numbers(tmp_path: Path) -> None:
    train = ["emu", "ant", "cat", "emu", "ant", "cat"]
    write(tmp_path / "a" / "train.parquet", label=train)
    write(tmp_path / "a" / "test.parquet", label=["emu", "cat", "emu", "cat"])
    splits = open_splits(str(tmp_path / "a"))
    assert splits.train.labels == [2, 0, 1, 2, 0, 1] and splits.test.labels == [2, 1, 2, 1]
    assert splits.test.class_names == splits.train.class_names == ["ant", "cat", "emu"]
    assert splits.test[0].label == 2
    write(tmp_path / "b" / "train.parquet", labels=[["b", "c"], ["a"]])
    write(tmp_path / "b" / "test.parquet", labels=[["c"], []])
    assert open_splits(str(tmp_path / "b")).test.multi_labels == [[2], []]
    write(tmp_path / "b" / "test.parquet", labels=[["d"], []])
    with pytest.raises(UserError, match="1 classes of the test images, such as 'd', have no training image"):
        open_splits(str(tmp_path / "b"))
