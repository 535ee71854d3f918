import io
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.splits import open_splits

DATA = Path(__file__).resolve().parents[3] / "../shared/data"


def picture(value=0):
    stream = io.BytesIO()
    Image.fromarray(np.full((10, 12, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"image": [{"bytes": picture(), "path": None}] * len(labels), "label": labels}
    pyarrow.parquet.write_table(pyarrow.table(rows), path)


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("database", "queries"), ("train", "val"), ("train", "held_out")]
)
def test_a_folder_of_parquet_files(tmp_path, train, test):
    write(tmp_path / f"{train}-00000-of-00001.parquet", [0, 1, 1])
    write(tmp_path / f"{test}-00000-of-00001.parquet", [1])
    for text in (str(tmp_path), f"folder:{tmp_path}", f"parquet:{tmp_path}/{{split}}-*.parquet"):
        splits = open_splits(text)
        assert (len(splits.train), len(splits.test)) == (3, 1)


def test_a_folder_of_folders(tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        for index in range(count):
            place = tmp_path / part / f"class{index % 2}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index}.png").write_bytes(picture(index))
    splits = open_splits(str(tmp_path))
    assert (len(splits.train), len(splits.test)) == (4, 2) and splits.test.labels == [0, 1]


def test_both_by_name(tmp_path):
    write(tmp_path / "a.parquet", [0, 1, 1])
    write(tmp_path / "b.parquet", [1])
    splits = open_splits(f"parquet:{tmp_path}/a.parquet", f"parquet:{tmp_path}/b.parquet")
    assert (len(splits.train), len(splits.test)) == (3, 1)


def test_validation_images_stand_in_for_test_images(tmp_path):
    write(tmp_path / "train.parquet", [0, 1])
    write(tmp_path / "validation.parquet", [0, 1, 1])
    assert len(open_splits(str(tmp_path)).test) == 3
    write(tmp_path / "test.parquet", [0])
    assert len(open_splits(str(tmp_path)).test) == 1


def test_files_that_only_begin_like_a_split(tmp_path):
    folder = tmp_path / "odd [name]"
    write(folder / "train-0.parquet", [0, 1])
    write(folder / "train-1.parquet", [1])
    write(folder / "test.parquet", [0])
    write(folder / "training_notes.parquet", [0] * 9)
    write(folder / "test_unlabelled.parquet", [0] * 9)
    splits = open_splits(str(folder))
    assert (len(splits.train), len(splits.test)) == (3, 1)


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "data").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for part, labels in (("train", [0, 1, 1]), ("validation", [1])):
        rows = {"image": [{"bytes": picture(), "path": None}] * len(labels), "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / f"data/{part}-00000-of-00001.parquet"
        )
    splits = open_splits(f"hf:{tmp_path}/data?split={{split}}")
    assert (len(splits.train), len(splits.test)) == (3, 1)
    (tmp_path / "data/validation-00000-of-00001.parquet").unlink()
    with pytest.raises(
        UserError, match=r"no test images: none of .*split=val exists \(.*split=val cannot be loaded: .*split"
    ):
        open_splits(f"hf:{tmp_path}/data?split={{split}}")
    with pytest.raises(UserError, match="no column 'x'"):
        open_splits(f"hf:{tmp_path}/data?split={{split}}&label=x")


def test_no_connection_is_no_missing_split(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*args, split, **options):
        raise ConnectionError(f"cannot reach the hub for {split}")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="hf:some/name cannot be loaded"):
        open_splits("hf:some/name?split={split}")


def test_options_are_kept(tmp_path):
    write(tmp_path / "train.parquet", [0, 1])
    write(tmp_path / "test.parquet", [0])
    assert open_splits(f"{tmp_path}?label=label").train.labels == [0, 1]


def test_scenes():
    splits = open_splits("scenes?size=32")
    assert (
        (len(splits.train), len(splits.test)) == (20000, 2000)
        and splits.test.split == "held_out"
        and splits.train.size == 32
    )
    assert open_splits("scenes?size=32&count=50&split={split}").test.split == "held_out"
    assert (len(open_splits("scenes?count=50").train), len(open_splits("scenes?count=50").test)) == (50, 50)


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(
        UserError, match="is one set of images; write {split} where the name of a split stands"
    ):
        open_splits(f"parquet:{tmp_path}/x.parquet")
    with pytest.raises(UserError, match="no train images: none of .*train.* exists"):
        open_splits(str(tmp_path))
    write(tmp_path / "train.parquet", [0, 1])
    with pytest.raises(UserError, match="no test images: none of .*test.*queries"):
        open_splits(str(tmp_path))
    write(tmp_path / "test.parquet", [0, 5])
    with pytest.raises(UserError, match="1 labels of the test images, such as 5, have no training image"):
        open_splits(str(tmp_path))


def test_other_classes(tmp_path):
    for part, names in (("train", "ab"), ("test", "ac")):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "1.png").write_bytes(picture())
    with pytest.raises(UserError, match=r"other classes \(b, c\)"):
        open_splits(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("cifar10", (40036, 8007)), ("camvid?ignore=11", (184, 62)), ("copydetect_bsds", (400, 560))],
)
def test_real_data(name, sizes):
    if not DATA.is_dir():
        pytest.skip("../shared/data is not there")
    splits = open_splits(f"{DATA}/{name}")
    assert (len(splits.train), len(splits.test)) == sizes
