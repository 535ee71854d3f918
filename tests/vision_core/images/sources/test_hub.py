import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.open_source import open_source
from vision_core.images.source import ImageRecord, ImageStream, UnreadableSample

datasets = pytest.importorskip("datasets")


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0
    )  # it waits after each shuffled pass
    datasets.disable_progress_bars()


def write(folder: Path, files: int = 4, rows: int = 3, bad: int | None = None, image: str = "image") -> Path:
    """A local dataset folder: `files` parquet shards of `rows` rows, the pixel value counts the
    rows."""
    folder.mkdir()
    features = datasets.Features(
        {
            image: datasets.Image(),
            "label": datasets.ClassLabel(names=["a", "b"]),
            "fine": datasets.Value("int64"),
        }
    )
    for part in range(files):
        numbers = range(part * rows, part * rows + rows)
        images = [{"bytes": b"broken" if number == bad else png(number), "path": None} for number in numbers]
        table = {image: images, "label": [number % 2 for number in numbers], "fine": list(numbers)}
        datasets.Dataset.from_dict(table, features=features).to_parquet(
            folder / f"train-{part:05}-of-{files:05}.parquet"
        )
    return folder


def value(record: ImageRecord) -> int:
    return int(record.image[0, 0, 0])


def test_a_local_dataset_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", bad=5)
    source = open_source(f"hf:{folder}?split=train")
    assert len(source) == 12 and source.class_names == ["a", "b"]
    assert source.labels == [number % 2 for number in range(12)]
    assert [value(source[row]) for row in range(12) if row != 5] == [row for row in range(12) if row != 5]
    with pytest.raises(UnreadableImage, match="not_an_image"):
        source[5]
    assert source[3].id == source.id_of(3) and source[3].label == 1
    fine = open_source(f"hf:{folder}?label=fine&image=image")
    assert fine.labels == list(range(12)) and fine.class_names is None
    loader = DataLoader(
        source, sampler=[3, 11, 0, 7], batch_size=1, collate_fn=lambda records: records[0], num_workers=2
    )
    assert [value(record) for record in loader] == [3, 11, 0, 7]


def test_an_image_folder_is_read_from_inside_the_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for number in range(3):
        (folder / "train/cat").mkdir(parents=True, exist_ok=True)
        (folder / f"train/cat/{number}.png").write_bytes(png(number))
    source = open_source(f"hf:{folder}")
    assert [value(source[row]) for row in range(3)] == [0, 1, 2]
    stream = open_source(f"hf:{folder}?streaming=true&shuffle_buffer=0")
    assert [value(record) for record in stream.records(0, 1, 0)] == [0, 1, 2]
    (folder / "train/cat/1.png").unlink()
    (tmp_path / "secret.png").write_bytes(png(9))
    (folder / "train/cat/1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UnreadableImage, match="outside_the_data_folder"):
        source[1]


def test_a_path_in_a_data_file_is_not_followed_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    (tmp_path / "data").mkdir()
    rows = [
        {"bytes": None, "path": path} for path in (f"{tmp_path}/secret.png", "http://localhost:9/x.png", None)
    ]
    table = pa.table({"image": pa.array(rows, type=datasets.Image().pa_type)})
    features = datasets.Features({"image": datasets.Image()})
    pq.write_table(
        table.replace_schema_metadata(features.arrow_schema.metadata), tmp_path / "data/train.parquet"
    )
    source = open_source(f"hf:{tmp_path}/data")
    reasons = []
    for row in range(3):
        with pytest.raises(UnreadableImage) as caught:
            source[row]
        reasons.append(caught.value.reason)
    assert reasons == ["outside_the_data_folder", "outside_the_data_folder", "no_bytes"]


def test_a_stream_goes_on_after_a_bad_image(tmp_path: Path) -> None:
    stream = open_source(f"hf:{write(tmp_path / 'data', bad=5)}?streaming=true&shuffle_buffer=0")
    assert isinstance(stream, ImageStream)
    records = list(stream.records(rank=0, world_size=1, epoch=0))
    assert [isinstance(record, UnreadableSample) for record in records] == [row == 5 for row in range(12)]
    assert records[5].reason == "not_an_image"
    assert [value(record) for record in records if isinstance(record, ImageRecord)] == [
        row for row in range(12) if row != 5
    ]
    assert [record.label for record in records[:4]] == [0, 1, 0, 1]
    assert len({record.id for record in records}) == 12


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_a_stream(tmp_path: Path, world_size: int) -> None:
    stream = open_source(f"hf:{write(tmp_path / 'data')}?streaming=true")
    shares = [
        [value(record) for record in stream.records(rank, world_size, epoch=0)] for rank in range(world_size)
    ]
    assert sorted(sum(shares, [])) == list(range(12))
    assert all(shares)


def test_a_stream_is_shuffled_by_epoch_and_repeatable(tmp_path: Path) -> None:
    stream = open_source(f"hf:{write(tmp_path / 'data')}?streaming=true")
    orders = [[value(record) for record in stream.records(0, 1, epoch)] for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))


class Values(IterableDataset):
    def __init__(self, stream: ImageStream) -> None:
        self.stream = stream

    def __iter__(self):
        for record in self.stream.records(0, 1, 0):
            yield value(record), record.id


def test_data_workers_share_a_stream(tmp_path: Path) -> None:
    stream = open_source(f"hf:{write(tmp_path / 'data')}?streaming=true")
    seen = list(DataLoader(Values(stream), batch_size=None, num_workers=2))
    assert sorted(number for number, _ in seen) == list(range(12))
    assert len({name for _, name in seen}) == 12


@pytest.mark.parametrize(
    "options, message",
    [
        ("?split=tets", "cannot be loaded: .*tets"),
        ("?image=img", "no column 'img'; name one of image, label, fine"),
        ("?label=fien", "no column 'fien'; name one of"),
        ("?label=image", "'image' holds no whole numbers"),
        ("?streaming=yes", "streaming='yes' is not possible; use true or false"),
        ("?streaming=true&shuffle_buffer=many", "shuffle_buffer='many' is not a whole number"),
    ],
)
def test_bad_options(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"hf:{write(tmp_path / 'data', files=1)}{options}")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_dataset_and_a_missing_package(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        open_source(f"hf:{tmp_path}/data")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the package datasets; pip install"):
        open_source("hf:any")
