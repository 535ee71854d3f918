import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.open_source import open_source, parse_source
from vision_core.images.source import ImageRecord, ImageSource

SHARED = Path(__file__).resolve().parents[3] / "../shared"
PIXELS = [np.random.default_rng(number).integers(0, 256, (16, 24, 3), dtype=np.uint8) for number in range(12)]


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


ENCODED = [png(pixels) for pixels in PIXELS]


def write_folder(root: Path) -> str:
    for number, data in enumerate(ENCODED):
        path = root / "images" / ("cats", "dogs", "eels")[number % 3] / f"deep/{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(root / "images")


def write_list(root: Path) -> str:
    write_folder(root)
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    (root / "list.txt").write_text("".join(f"{path}\t{number % 3}\n" for number, path in enumerate(paths)))
    return f"list:{root}/list.txt"


def write_parquet(root: Path) -> str:
    for part in range(2):
        rows = range(part * 6, part * 6 + 6)
        images = pa.array([{"bytes": ENCODED[row], "path": None} for row in rows])
        table = pa.table({"image": images, "label": pa.array([row % 3 for row in rows])})
        names = {
            "info": {
                "features": {
                    "image": {"_type": "Image"},
                    "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"},
                }
            }
        }
        table = table.replace_schema_metadata({"huggingface": str(names).replace("'", '"')})
        pq.write_table(table, root / f"train-{part}.parquet", row_group_size=4)
    return f"parquet:{root}/train-?.parquet"


def tar_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tar(root: Path) -> str:
    for shard in range(2):
        with tarfile.open(root / f"shard-{shard}.tar", "w") as tar:
            for row in range(shard * 6, shard * 6 + 6):
                tar_member(tar, f"{row:04}.png", ENCODED[row])
                tar_member(tar, f"{row:04}.cls", str(row % 3).encode())
    return f"wds:{root}/shard-*.tar"


WRITERS = {"folder": write_folder, "list": write_list, "parquet": write_parquet, "wds": write_tar}


@pytest.fixture(params=WRITERS)
def text(request, tmp_path: Path) -> str:
    return WRITERS[request.param](tmp_path)


def one(records: list[ImageRecord]) -> ImageRecord:
    return records[0]


def test_a_source_gives_every_image_once_with_its_id_and_label(text: str) -> None:
    source = open_source(text)
    assert isinstance(source, ImageSource) and len(source) == 12 and "12 images" in source.description
    records = [source[index] for index in range(12)]
    assert [record.id for record in records] == [source.id_of(index) for index in range(12)]
    assert len({record.id for record in records}) == 12
    assert [record.label for record in records] == source.labels
    found = {record.image.permute(1, 2, 0).numpy().tobytes(): record.label for record in records}
    assert len(found) == 12
    assert {pixels.tobytes() for pixels in PIXELS} == set(found)
    if not text.startswith("list:"):  # the list's labels count its lines
        assert [found[pixels.tobytes()] for pixels in PIXELS] == [number % 3 for number in range(12)]


def test_indices_outside_are_index_errors(text: str) -> None:
    source = open_source(text)
    for index in (-1, 12):
        with pytest.raises(IndexError):
            source[index]
    assert len(list(source)) == 12
    assert torch.equal(source[np.int64(3)].image, source[3].image)


def test_data_workers_see_what_the_process_sees(text: str) -> None:
    source = open_source(text)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    expected = [source[index] for index in order]
    for record, reference in zip(
        DataLoader(source, sampler=order, batch_size=1, collate_fn=one, num_workers=2), expected, strict=True
    ):
        assert (record.id, record.label) == (reference.id, reference.label)
        assert torch.equal(record.image, reference.image)


def test_a_source_survives_pickling(text: str) -> None:
    source = open_source(text)
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again[7].image, source[7].image) and again.labels == source.labels


def test_an_unreadable_image_of_any_source_has_its_reason(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "ENCODED", [*ENCODED[:5], ENCODED[5][:300], *ENCODED[6:]])
    for writer in WRITERS.values():
        source = open_source(writer(tmp_path))
        reasons = []
        for index in range(12):
            try:
                source[index]
            except UnreadableImage as error:
                reasons.append(error.reason)
        assert reasons == ["truncated"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a/b", ("folder", "a/b", {})),
        ("folder:a/b", ("folder", "a/b", {})),
        (
            "parquet:a/train-?.parquet?label=fine_label",
            ("parquet", "a/train-?.parquet", {"label": "fine_label"}),
        ),
        ("hf:x/y:z?split=train[:10%]&image=img", ("hf", "x/y:z", {"split": "train[:10%]", "image": "img"})),
        ("scenes", ("scenes", "", {})),
        ("scenes?size=96&count=5", ("scenes", "", {"size": "96", "count": "5"})),
        ("scenes:?size=96", ("scenes", "", {"size": "96"})),
    ],
)
def test_the_grammar(text: str, expected: tuple) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    "text, words",
    [
        ("parqet:x", ["unknown kind 'parqet'", "did you mean 'parquet'?", "folder, list"]),
        ("parquet:x?lable=y", ["unknown option 'lable'", "did you mean 'label'?", "image, label"]),
        ("folder:x?size=3", ["unknown option 'size'", "options of folder: mask, ignore, depth, depth_scale"]),
        ("hf:x?split", ["name=value"]),
        ("hf:x?split=", ["'split' has no value"]),
        ("hf:x?split=a&split=b", ["'split' is given twice"]),
        ("wds:", ["names no data", "wds:WHERE"]),
        ("nowhere/at/all", ["nowhere/at/all does not exist"]),
        ("list:nowhere.txt", ["nowhere.txt does not exist"]),
        ("parquet:nowhere-*.parquet", ["no file matches parquet:nowhere-*.parquet"]),
        ("wds:nowhere-*.tar", ["no file matches wds:nowhere-*.tar"]),
    ],
)
def test_bad_names_are_one_line_with_the_cure(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        open_source(text)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_scenes_have_three_channels() -> None:
    with pytest.raises(UserError, match="num_channels=5 is not possible"):
        open_source("scenes", num_channels=5)


@pytest.mark.parametrize("kind", WRITERS)
def test_five_channels_from_every_source(kind: str, tmp_path: Path, monkeypatch) -> None:
    arrays = [np.random.default_rng(number).random((5, 16, 24), dtype=np.float32) for number in range(12)]

    def npy(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    monkeypatch.setitem(globals(), "ENCODED", [npy(array) for array in arrays])
    source = open_source(WRITERS[kind](tmp_path), num_channels=5)
    assert {source[index].image.numpy().tobytes() for index in range(12)} == {
        array.tobytes() for array in arrays
    }


@pytest.mark.skipif(not (SHARED / "data/cifar10").is_dir(), reason="../shared/data/cifar10 is absent")
def test_cifar10() -> None:
    source = open_source(f"parquet:{SHARED}/data/cifar10/test*.parquet")
    assert len(source) == len(source.labels) == 8007
    assert source.class_names[:3] == ["airplane", "automobile", "bird"]
    table = pq.read_table(next((SHARED / "data/cifar10").glob("test*.parquet")))
    for index in (0, 4000, 8006):
        row = table.slice(index, 1).to_pylist()[0]
        reference = np.array(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"))
        assert np.array_equal(source[index].image.permute(1, 2, 0).numpy(), reference)
        assert source[index].label == row["label"]
    assert source.id_of(8006).endswith(":8006") and os.sep not in source.id_of(0)
