"""Whole slides by tiles, from pyramids that tifffile writes, against tifffile's reading of the same
region."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from torch.utils.data import DataLoader

from vision_core.errors import UserError
from vision_core.images.formats.slides import LEAST_CHROMA, LEAST_TISSUE
from vision_core.images.open_source import open_source
from vision_core.images.pixel_options import PixelOptions, Scale
from vision_core.unreadable import UnreadableImage

SIDE = 64
# of 1024 x 768 pixels, in tiles of 64: tissue at these rows and columns
TISSUE_ROWS, TISSUE_COLUMNS = range(2, 7), range(5, 12)


def slide_pixels(rows: range = TISSUE_ROWS, columns: range = TISSUE_COLUMNS) -> np.ndarray:
    """Light glass with one rectangle of pink, speckled tissue."""
    generator = np.random.default_rng(0)
    pixels = np.full((768, 1024, 3), 240, np.uint8)
    area = (slice(rows.start * SIDE, rows.stop * SIDE), slice(columns.start * SIDE, columns.stop * SIDE))
    shape = pixels[area].shape[:2]
    pixels[area] = np.stack(
        [
            generator.integers(180, 220, shape),
            generator.integers(80, 140, shape),
            generator.integers(150, 200, shape),
        ],
        -1,
    )
    return pixels


def write_slide(path: Path, pixels: np.ndarray, levels: int = 3, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            step = 2**level
            shrunk = (
                pixels.reshape(pixels.shape[0] // step, step, pixels.shape[1] // step, step, 3)
                .mean(axis=(1, 3))
                .astype(np.uint8)
            )
            writer.write(
                shrunk,
                tile=(256, 256),
                photometric="rgb",
                subfiletype=int(level > 0),
                metadata=None,
                **options,
            )
    return path


def region(path: Path, name: str) -> np.ndarray:
    """What tifffile reads where the id `slide.tif#level0:x,y` points."""
    level, _, corner = name.partition("#level")[2].partition(":")
    x, y = map(int, corner.split(","))
    return tifffile.imread(path, key=int(level))[y : y + SIDE, x : x + SIDE]


@pytest.mark.parametrize("compression, level", [("zlib", 0), ("zlib", 1), ("jpeg", 0), ("jpeg", 2)])
def test_tiles_are_the_regions_that_tifffile_reads(tmp_path: Path, compression: str, level: int) -> None:
    path = write_slide(
        tmp_path / "slide.tif", slide_pixels(range(0, 12), range(0, 16)), compression=compression
    )
    source = open_source(f"{tmp_path}?tile={SIDE}&level={level}")
    assert len(source) == (12 >> level) * (16 >> level)
    names = []
    for index in range(0, len(source), 5):
        record = source[index]
        names.append(record.id)
        difference = record.image.permute(1, 2, 0).numpy().astype(int) - region(path, record.id)
        assert np.abs(difference).max() <= (1 if compression == "jpeg" else 0)
    assert names[0] == f"slide.tif#level{level}:0,0"


def test_background_is_left_out_and_said(tmp_path: Path) -> None:
    write_slide(tmp_path / "slide.svs", slide_pixels())
    source = open_source(f"{tmp_path}?tile={SIDE}")
    expected = [
        f"slide.svs#level0:{column * SIDE},{row * SIDE}" for row in TISSUE_ROWS for column in TISSUE_COLUMNS
    ]
    assert [source.id_of(index) for index in range(len(source))] == expected, "by slide, row, column"
    assert source.description == (
        f"35 tiles of 64 x 64 pixels at level 0 of 1 slides under {tmp_path}; "
        "81.8% of 192 tiles are background and left out"
    )
    kept = open_source(f"{tmp_path}?tile={SIDE}&background=keep")
    assert len(kept) == 192 and "are background" not in kept.description


def test_the_rule_for_background_is_the_stated_one(tmp_path: Path) -> None:
    """A tile counts from a tenth of pixels on whose channels differ by 15."""
    pixels = np.full((256, 512, 3), 200, np.uint8)
    pixels[:256, 256 : 256 + 32, 0] += LEAST_CHROMA  # an eighth of the tile
    pixels[:256, :16, 0] += 50  # a sixteenth
    write_slide(tmp_path / "slide.tif", pixels, levels=1)
    source = open_source(f"{tmp_path}?tile=256")
    assert LEAST_TISSUE == 0.1 and [source.id_of(index) for index in range(len(source))] == [
        "slide.tif#level0:256,0"
    ]
    pixels[:256, 256 : 256 + 32, 0] -= 1
    write_slide(tmp_path / "slide.tif", pixels, levels=1)
    with pytest.raises(UserError, match="none of 2 tiles under .* shows tissue, .* add background=keep"):
        open_source(f"{tmp_path}?tile=256")


def test_classes_other_files_and_lists(tmp_path: Path) -> None:
    write_slide(tmp_path / "tumor/a.tif", slide_pixels(range(0, 1), range(0, 2)))
    write_slide(tmp_path / "normal/b.tif", slide_pixels(range(0, 1), range(0, 3)))
    tifffile.imwrite(tmp_path / "normal/plain.tif", np.zeros((64, 64), np.float32))
    (tmp_path / "normal/notes.txt").write_text("no slide")
    source = open_source(f"{tmp_path}?tile={SIDE}")
    assert source.labels == [0, 0, 0, 1, 1] and source.class_names == ["normal", "tumor"]
    assert source.description.endswith("left out: 1 .tif (no whole slide), 1 .txt")
    (tmp_path / "list.txt").write_text("tumor/a.tif\t5\nnormal/b.tif\t2\n")
    listed = open_source(f"list:{tmp_path}/list.txt?tile={SIDE}")
    assert listed.labels == [5, 5, 2, 2, 2] and listed.id_of(0) == "tumor/a.tif#level0:0,0"


def test_forked_workers_open_the_slides_themselves(tmp_path: Path) -> None:
    write_slide(tmp_path / "0.tif", slide_pixels(range(0, 12), range(0, 16)), compression="zlib")
    source = open_source(f"{tmp_path}?tile={SIDE}")
    alone = [
        source[index].image for index in range(len(source))
    ]  # this process has the slide open when it forks
    loader = DataLoader(source, batch_size=1, collate_fn=lambda records: records[0].image, num_workers=2)
    assert all((ours == theirs).all() for ours, theirs in zip(loader, alone, strict=True))


def test_one_channel_and_options(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.tif", slide_pixels(), compression="zlib")
    grey = open_source(f"{tmp_path}?tile={SIDE}", 1)
    expected = region(path, grey[3].id) @ np.array([0.299, 0.587, 0.114]) / 255
    assert np.abs(grey[3].image[0].numpy() - expected).max() < 1e-6
    scaled = open_source(f"{tmp_path}?tile={SIDE}&scale=200")
    assert (
        scaled.pixel_options == PixelOptions(Scale("values", 0, 200))
        and scaled.fingerprint != grey.fingerprint
    )
    with pytest.raises(UserError, match="slides have 3 channels, and num_channels=4 is not possible"):
        open_source(f"{tmp_path}?tile={SIDE}", 4)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            "tile=64&level=3",
            r"slide.tif has no level=3; its levels are 0: 1024 x 768, 1: 512 x 384, 2: 256 x 192 pixels",
        ),
        (
            "tile=256&level=2",
            r"slide.tif is 256 x 192 pixels \(width x height\) at level=2, less than tile=256; give a smaller tile",
        ),
        ("tile=0", r"tile=0 is not possible; give the side of a tile in pixels, 8 to 8000"),
        ("tile=64&level=top", r"level=top is not possible"),
        ("tile=64&background=no", r"background=no is not possible; use leave_out or keep"),
        ("level=1", r"add tile="),
        ("tile=64&mask=/masks", r"mask cannot stand beside tile="),
    ],
)
def test_what_is_not_possible(tmp_path: Path, options: str, message: str) -> None:
    write_slide(tmp_path / "slide.tif", slide_pixels())
    with pytest.raises(UserError, match=message):
        open_source(f"{tmp_path}?{options}")


def test_damaged_slides_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "0.tif", slide_pixels(range(0, 12), range(0, 16)), compression="jpeg")
    (tmp_path / "1.mrxs").write_bytes(b"nothing")
    source = open_source(f"{tmp_path}?tile={SIDE}")
    assert "left out: 1 .mrxs (no whole slide)" in source.description
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="0 whole slides under"):
        open_source(f"{tmp_path}/nothing?tile={SIDE}")
    data = bytearray(path.read_bytes())
    data[1000:-20000] = b"\0" * len(data[1000:-20000])
    path.write_bytes(bytes(data))
    with pytest.raises(UnreadableImage, match="corrupt|unsupported_slide"):
        source[0]
    path.unlink()
    monkeypatch.setattr("vision_core.images.formats.slides._slides", {})
    with pytest.raises(UnreadableImage, match="missing"):
        source[0]
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(
        UserError, match=r"needs the package openslide-python; pip install 'vision-encoder-fusion\[slides\]'"
    ):
        open_source(f"{tmp_path}?tile={SIDE}")
