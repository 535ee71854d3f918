"""Masks, depth, captions and copies beside images: parquet, datasets, folders, scenes, and real
data."""

import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.decode import decode_values
from vision_core.images.formats import tiff
from vision_core.images.open_source import open_source
from vision_core.images.source import MASK_IGNORED
from vision_core.images.sources import parquet as parquet_source
from vision_core.scenes.draw import draw_scene
from vision_core.unreadable import UnreadableImage

DATA = Path(__file__).resolve().parents[3] / "../shared/data"


def png(array, mode=None):
    stream = io.BytesIO()
    picture = Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(stream, "PNG")
    return stream.getvalue()


def structs(values):
    return [{"bytes": value, "path": None} for value in values]


@pytest.fixture(scope="module")
def arrays():
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (12, 16, 3), dtype=np.uint8) for _ in range(4)]
    masks = [generator.integers(0, 6, (12, 16), dtype=np.uint8) for _ in range(4)]
    depths = [generator.integers(0, 9000, (12, 16), dtype=np.uint16) for _ in range(4)]
    return images, masks, depths


@pytest.fixture(scope="module")
def parquet_file(arrays, tmp_path_factory):
    images, masks, depths = ([png(array) for array in part] for part in arrays)
    table = {
        "image": structs(images),
        "mask": structs(masks),
        "depth": structs(depths),
        "captions": [["a", "b"], ["c"], [], ["d"]],
        "image_id": [1, 2, 3, 4],
        "target_image_id": [2, 2, 3, 1],
    }
    path = tmp_path_factory.mktemp("annotated") / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    return path


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_columns_by_their_usual_names(parquet_file, arrays, kind, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    if kind == "hf":
        datasets = pytest.importorskip("datasets")
        dataset = datasets.load_dataset(
            "parquet",
            data_files=str(parquet_file),
            split="train",
            cache_dir=str(parquet_file.parent / "cache"),
        )
        dataset = (
            dataset.cast_column("image", datasets.Image())
            .cast_column("mask", datasets.Image())
            .cast_column("depth", datasets.Image())
        )
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: dataset)
        source = open_source("hf:some/name?ignore=5&depth_scale=500")
    else:
        source = open_source(f"parquet:{parquet_file}?ignore=5&depth_scale=500")
    assert source.knows == {"mask", "depth", "captions", "copy_of"}
    known = source.annotations
    for index in range(4):
        expected = torch.from_numpy(arrays[1][index].astype(np.int64))
        assert torch.equal(known.mask(index), torch.where(expected == 5, MASK_IGNORED, expected))
        assert torch.equal(known.foreground(index), (expected != 0) & (expected != 5))
        torch.testing.assert_close(
            known.depth(index), torch.from_numpy(arrays[2][index].astype(np.float32)) / 500
        )
    assert [known.captions(index) for index in range(4)] == [["a", "b"], ["c"], [], ["d"]]
    assert known.image_ids == ["1", "2", "3", "4"] and known.copy_of == ["2", "2", "3", "1"]


def test_a_folder_beside_the_images(arrays, tmp_path):
    for index in range(3):
        for name, part, ending in (("images", 0, "jpg"), ("masks", 1, "png"), ("depths", 2, "png")):
            (tmp_path / name / "a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays[part][index]).save(tmp_path / name / "a" / f"{index}.{ending}")
    source = open_source(f"folder:{tmp_path}/images?mask={tmp_path}/masks&depth={tmp_path}/depths")
    assert torch.equal(source.annotations.mask(2), torch.from_numpy(arrays[1][2].astype(np.int64)))
    torch.testing.assert_close(
        source.annotations.depth(1), torch.from_numpy(arrays[2][1].astype(np.float32)) / 1000
    )
    (tmp_path / "masks/a/1.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images have no mask, such as .*a/1.png"):
        open_source(f"folder:{tmp_path}/images?mask={tmp_path}/masks")
    with pytest.raises(UserError, match="ignore needs a mask for each image; name them by mask=WHERE"):
        open_source(f"folder:{tmp_path}/images?ignore=3")


def test_annotations_go_to_a_data_worker(parquet_file):
    for text in (f"parquet:{parquet_file}", "scenes?size=32&count=3"):
        source = open_source(text)
        there = pickle.loads(pickle.dumps(source))
        assert torch.equal(
            there.annotations.mask(1), source.annotations.mask(1)
        ) and there.annotations.captions(0)


def test_nothing_beside_the_images_is_read_before_it_is_asked_for(parquet_file, monkeypatch):
    read = []
    monkeypatch.setattr(
        parquet_source, "_read_column", lambda paths, column: read.append(column) or [["x"]] * 4
    )
    known = open_source(f"parquet:{parquet_file}").annotations
    assert (
        known.names == {"mask", "depth", "captions", "copy_of"}
        and read == []
        and known.masks._row_groups == {}
    )
    assert known.captions(0) == known.captions(1) == ["x"] and read == ["captions"]
    known.mask(0)
    assert known.masks._row_groups != {}


def test_what_is_empty_is_kept_empty(arrays, tmp_path):
    images = structs([png(array) for array in arrays[0]])
    columns = {
        "caption": ["a", None, "c", "d"],
        "image_id": ["p", "q", "r", "s"],
        "target_image_id": ["q", None, "q", "q"],
    }
    pyarrow.parquet.write_table(pyarrow.table({"image": images, **columns}), tmp_path / "x.parquet")
    known = open_source(f"parquet:{tmp_path}/x.parquet").annotations
    assert [known.captions(index) for index in range(4)] == [["a"], [], ["c"], ["d"]] and known.copy_of == [
        "q",
        "",
        "q",
        "q",
    ]


def test_originals_have_names_without_being_copies(arrays, tmp_path):
    images = structs([png(array) for array in arrays[0]])
    pyarrow.parquet.write_table(
        pyarrow.table({"image": images, "image_id": list("pqrs")}), tmp_path / "x.parquet"
    )
    source = open_source(f"parquet:{tmp_path}/x.parquet")
    assert (
        source.annotations.image_ids == list("pqrs")
        and source.annotations.copy_of is None
        and source.knows == set()
    )


def grey_png(bits, rows, size=None):
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write (PNG specification, 11.2.2)."""
    lines = ["".join(f"{value:0{bits}b}" for value in row) for row in rows]
    raw = b"".join(b"\0" + int(line, 2).to_bytes(len(line) // 8, "big") for line in lines)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *(size or (len(rows[0]), len(rows))), bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def test_grey_that_pillow_would_spread_is_refused():
    rows = np.random.default_rng(1).integers(0, 2, (8, 8)).tolist()
    assert decode_values(grey_png(1, rows)).tolist() == rows
    for bits in (2, 4):
        with pytest.raises(UnreadableImage, match=f"not_numbers L;{bits}"):
            decode_values(grey_png(bits, rows))


@pytest.mark.parametrize(
    ("file_format", "mode"), [("PNG", "uint8"), ("PNG", "uint16"), ("TIFF", "uint8"), ("TIFF", "uint16")]
)
def test_numbers_come_back_exactly(file_format, mode):
    values = np.random.default_rng(2).integers(0, np.iinfo(mode).max, (9, 11), dtype=mode, endpoint=True)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, file_format)
    assert decode_values(stream.getvalue()).tolist() == values.tolist()


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "GIF", "BMP"])
def test_formats_that_are_not_for_numbers(file_format):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(stream, file_format)
    with pytest.raises(UnreadableImage, match=f"not_numbers {file_format}"):
        decode_values(stream.getvalue())


def test_a_bomb_is_refused_by_its_header():
    bomb = grey_png(1, [[0] * 8] * 8, size=(60_000, 60_000))
    with pytest.raises(UnreadableImage, match="too_large"):
        decode_values(bomb)


def test_masks_are_as_large_as_the_source_allows_its_images_to_be(tmp_path, monkeypatch):
    assert decode_values(grey_png(1, [[0] * 8] * 8, size=(8, 8)), max_pixels=64).tolist() == [[0] * 8] * 8
    with pytest.raises(UnreadableImage, match="too_large"):
        decode_values(grey_png(1, [[0] * 8] * 8), max_pixels=63)
    side = 8_008  # more than 64 million pixels
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.new("L", (side, side), 3).save(tmp_path / name / "a.png", compress_level=1)
    source = open_source(f"folder:{tmp_path}/images?mask={tmp_path}/masks&max_pixels=65000000")
    assert source.annotations.mask(0).shape == (side, side)
    with pytest.raises(UnreadableImage, match="too_large"):
        open_source(f"folder:{tmp_path}/images?mask={tmp_path}/masks").annotations.mask(0)


def test_large_masks_of_tiff_that_pillow_does_not_read():
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.full((16, 16), 5, np.uint16), photometric="minisblack", compression="zstd")
    assert tiff.open_plain(stream.getvalue(), 256) is None
    assert decode_values(stream.getvalue(), max_pixels=256).tolist() == [[5] * 16] * 16
    with pytest.raises(UnreadableImage, match="too_large"):
        decode_values(stream.getvalue(), max_pixels=255)


def test_palette_indices_are_numbers_not_colours():
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8).repeat(8, 0).repeat(8, 1), "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    assert decode_values(stream.getvalue())[::8, ::8].tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n broken", png(np.zeros((9, 9), np.uint8))[:40]])
def test_bytes_that_are_no_picture(data):
    with pytest.raises(UnreadableImage):
        decode_values(data)


def test_signed_bytes_are_no_class_numbers():
    """Pillow reads int8 as unsigned: class -1 would be 255, which counts nowhere."""
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.full((16, 16), -1, np.int8), photometric="minisblack")
    with pytest.raises(UnreadableImage, match="unsupported_mode int8"):
        decode_values(stream.getvalue())


def test_what_does_not_fit_is_named(arrays, tmp_path):
    def write(name, **columns):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name)
        return f"parquet:{tmp_path / name}"

    images = structs([png(array) for array in arrays[0]])
    colours = write("colours.parquet", image=images, mask=images)
    with pytest.raises(
        UserError, match="colours.parquet:0 is stored as RGB; save it as PNG with one channel"
    ):
        open_source(colours).annotations.mask(0)
    large = write("large.parquet", image=images, mask=structs([png(array) for array in arrays[2]]))
    with pytest.raises(UserError, match=r"large.parquet:0 holds the value \d+; class numbers are 0 to 254"):
        open_source(large).annotations.mask(0)
    cut = write("cut.parquet", image=images, mask=structs([png(array[:, :10]) for array in arrays[1]]))
    with pytest.raises(
        UserError,
        match=r"cut.parquet:0 is 12 x 10 pixels \(height x width\) and its image 12 x 16; give one that shows",
    ):
        open_source(cut).annotations.mask(0)
    half = write("half.parquet", image=images, mask=structs([png(array[:9, :12]) for array in arrays[1]]))
    assert open_source(half).annotations.mask(0).shape == (9, 12)
    broken = write("broken.parquet", image=images, mask=structs([b"no picture"] * 4))
    with pytest.raises(UnreadableImage, match="not_an_image"):
        open_source(broken).annotations.mask(0)
    for option in ("depth", "captions"):
        with pytest.raises(UserError, match=f"no {option} .*name where it is by {option}=WHERE"):
            getattr(open_source(half).annotations, option)(0)
    numbers = write("numbers.parquet", image=images, label=[0, 1, 2, 3], share=[0.5] * 4, source=list("abcd"))
    with pytest.raises(UserError, match="column 'label' holds no images; name another by .mask=COLUMN"):
        open_source(f"{numbers}?mask=label")
    with pytest.raises(UserError, match="column 'share' holds neither texts nor lists of texts"):
        open_source(f"{numbers}?captions=share")
    with pytest.raises(UserError, match="copy_of=source needs a column image_id"):
        open_source(f"{numbers}?copy_of=source")
    with pytest.raises(UserError, match="ignore=x is not possible"):
        open_source(f"{colours}?ignore=x")
    with pytest.raises(UserError, match="depth_scale=0 is not possible"):
        open_source(f"{colours}?depth=mask&depth_scale=0")
    with pytest.raises(UserError, match="has no column 'masc'"):
        open_source(f"{colours}?mask=masc")
    bare = write("bare.parquet", image=images)
    assert open_source(bare).annotations is None and open_source(bare).knows == set()
    with pytest.raises(UserError, match="ignore needs a mask for each image; name them by mask=WHERE"):
        open_source(f"{bare}?ignore=1")


def test_a_mask_fits_the_upright_image(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((12, 24, 3), np.uint8)).save(tmp_path / "images/a.jpg", exif=exif)
    for shape, fits in (((24, 12), True), ((12, 24), False)):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "masks/a.png")
        source = open_source(f"folder:{tmp_path}/images?mask={tmp_path}/masks")
        if fits:
            assert source.annotations.mask(0).shape == source[0].image.shape[1:] == (24, 12)
        else:
            with pytest.raises(UserError, match="a.png is 12 x 24 pixels"):
                source.annotations.mask(0)


def test_columns_of_a_data_set_of_the_hub(arrays, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    images = structs([png(array) for array in arrays[0]])
    columns = {
        "image": images,
        "mask": list("abcd"),
        "caption": ["a", None, "c", "d"],
        "share": [0.5] * 4,
        "source": list("abcd"),
    }
    features = {
        "image": datasets.Image(),
        **{name: datasets.Value("string") for name in ("mask", "caption", "source")},
    }
    dataset = datasets.Dataset.from_dict(
        columns, features=datasets.Features({**features, "share": datasets.Value("float32")})
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: dataset)
    source = open_source("hf:some/name")
    assert source.knows == {"captions"} and [source.annotations.captions(row) for row in range(4)] == [
        ["a"],
        [],
        ["c"],
        ["d"],
    ]
    for options, message in (
        ("mask=mask", "column 'mask' holds no images; name another by .mask=COLUMN"),
        ("captions=share", "column 'share' holds neither texts nor lists of texts"),
        ("copy_of=source", "copy_of=source needs a column image_id"),
        ("depth=dephts", "no column 'dephts'; name one of image, mask, caption"),
        ("ignore=1", "ignore needs a mask for each image"),
        (
            "streaming=true&captions=caption",
            "captions needs an index, which a stream has not; leave out streaming=true",
        ),
    ):
        with pytest.raises(UserError, match=message):
            open_source(f"hf:some/name?{options}")


def test_scenes_know_everything():
    source = open_source("scenes?size=64&count=5&split=held_out")
    assert source.knows == {"label", "mask", "depth", "captions"}
    scene, known = draw_scene(0, 3, 64, "held_out"), source.annotations
    assert (
        torch.equal(known.foreground(3), scene.masks == 1)
        and torch.equal(known.depth(3), scene.depth)
        and known.captions(3) == scene.captions
    )
    assert known.mask(3)[scene.masks == 1].unique().tolist() == [1 + scene.category] and known.mask(3)[
        scene.masks == 0
    ].unique().tolist() == [0]
    assert len(known.mask_names) > int(known.mask(3).max())


def test_fingerprints_change_with_the_data(parquet_file, tmp_path):
    copy = tmp_path / "x.parquet"
    copy.write_bytes(parquet_file.read_bytes())
    first = open_source(f"parquet:{copy}").fingerprint
    assert (
        first
        == open_source(f"parquet:{copy}").fingerprint
        != open_source(f"parquet:{copy}?image=mask").fingerprint
    )
    os.utime(copy, ns=(1, 1))
    assert open_source(f"parquet:{copy}").fingerprint != first
    texts = {
        open_source(f"scenes?count={count}&seed={seed}").fingerprint for count in (3, 4) for seed in (0, 1)
    }
    assert len(texts) == 4


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("parquet:{}/camvid/test*.parquet?ignore=11", {"mask"}),
        ("parquet:{}/rgbd_7scenes/test*.parquet", {"depth"}),
        ("parquet:{}/copydetect_bsds/queries*.parquet", {"copy_of"}),
        ("parquet:{}/flickr8k_vl/test*.parquet", {"captions"}),
    ],
)
def test_real_data(text, known):
    if not DATA.is_dir():
        pytest.skip("../shared/data is not there")
    source = open_source(text.format(DATA))
    assert source.knows == known
    if "mask" in known:
        assert set(source.annotations.mask(0).unique().tolist()) <= {*range(11), MASK_IGNORED}
        assert source.annotations.mask(0).shape == source[0].image.shape[1:]
    if "depth" in known:
        depth = source.annotations.depth(0)
        assert 0.3 < depth[depth > 0].median() < 8 and depth.shape == source[0].image.shape[1:]
    if "captions" in known:
        assert len(source.annotations.captions(0)) == 5
