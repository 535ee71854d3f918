"""The table of `docs/data.md`: what becomes of stored values. Every cell is computed from what
rasterio, tifffile or NumPy reads in the file."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision_core.images.decode import UnreadableImage, decode_image
from vision_core.images.pixel_options import AS_STORED, PixelOptions, Scale

imagecodecs = pytest.importorskip("imagecodecs")
rasterio = pytest.importorskip("rasterio")
tifffile = pytest.importorskip("tifffile")

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"
DICE = np.random.default_rng(0)
HEIGHT, WIDTH = 16, 24
LOW, HIGH = 100, 4095
ANYWHERE = rasterio.Affine(1, 0, 5, 0, -1, 50)
COLUMNS = {
    "3 channels": (3, AS_STORED),
    "1 channel": (1, AS_STORED),
    "scaled": (3, PixelOptions(Scale("values", LOW, HIGH))),
}
Made = tuple[bytes, np.ndarray]


def numbers(dtype: str, bands: int = 1, bits: int | None = None) -> np.ndarray:
    """`[bands, H, W]`: all of the type's range or of the bits', and for floats noise around
    zero."""
    shape = (bands, HEIGHT, WIDTH)
    if np.dtype(dtype).kind == "f":
        return (DICE.standard_normal(shape) * 3000).astype(dtype)
    limits = np.iinfo(dtype)
    low, high = (limits.min, limits.max) if bits is None else (0, 2**bits - 1)
    return DICE.integers(low, high, shape, dtype=dtype, endpoint=True)


def geotiff(values: np.ndarray, **options) -> Made:
    """Written by rasterio, read by rasterio."""
    sizes = {
        "count": len(values),
        "height": HEIGHT,
        "width": WIDTH,
        "dtype": values.dtype,
        "transform": ANYWHERE,
    }
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", **sizes, **options) as file:
            file.write(values)
        data = memory.read()
    return data, rasterio_reads(data)


def rasterio_reads(data: bytes) -> np.ndarray:
    with rasterio.MemoryFile(data) as memory, memory.open() as file:
        return file.read()


def tiff(values: np.ndarray, **options) -> Made:
    """Written by tifffile; a stack is read by tifffile, anything else by rasterio."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    data = stream.getvalue()
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        is_stack = len(file.pages) > 1
    return data, tifffile.imread(io.BytesIO(data)) if is_stack else rasterio_reads(data)


def last(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(values, 0, -1))


def png(values: np.ndarray) -> Made:
    """Written by libpng, read by GDAL's."""
    data = imagecodecs.png_encode(last(values).squeeze())
    return data, rasterio_reads(data)


def palette_png() -> Made:
    picture = Image.fromarray(last(numbers("uint8", 3))).quantize(64)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    colours = np.array(picture.getpalette(), dtype=np.uint8).reshape(-1, 3)
    return stream.getvalue(), colours[rasterio_reads(stream.getvalue())[0]].transpose(2, 0, 1)


def palette_tiff(nodata: bool) -> Made:
    colours = numbers("uint16", 3).reshape(3, -1)[:, :256]
    tags = [(42113, "s", 0, "-1", True)] if nodata else []
    data, indices = tiff(numbers("uint8")[0], photometric="palette", colormap=colours, extratags=tags)
    return data, colours[:, indices[0]] >> 8


def npy(values: np.ndarray) -> Made:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue(), np.load(io.BytesIO(stream.getvalue()))


def npz(*arrays: np.ndarray) -> Made:
    stream = io.BytesIO()
    np.savez_compressed(stream, *arrays)
    return stream.getvalue(), np.load(io.BytesIO(stream.getvalue()))["arr_0"]


BLACK, WHITE = {"photometric": "minisblack"}, {"photometric": "miniswhite"}
PLANES = {"planarconfig": "separate"}
SMOOTH = np.add.outer(np.arange(3) * 40, np.add.outer(np.arange(HEIGHT) * 3, np.arange(WIDTH) * 4)).astype(
    np.uint8
)
TILES = {"tiled": True, "blockxsize": 16, "blockysize": 16}

ROWS: dict[str, Callable[[], Made]] = {
    "picture | 8 | grey | ": lambda: png(numbers("uint8")),
    "picture | 8 | grey, alpha | ": lambda: png(numbers("uint8", 2)),
    "picture | 8 | colour | ": lambda: png(numbers("uint8", 3)),
    "picture | 8 | colour, alpha | ": lambda: png(numbers("uint8", 4)),
    "picture | 8 | palette | ": palette_png,
    "PNG | 16 | grey | ": lambda: png(numbers("uint16")),
    "PNG | 16 | grey, alpha | ": lambda: png(numbers("uint16", 2)),
    "PNG | 16 | colour | ": lambda: png(numbers("uint16", 3)),
    "PNG | 16 | colour, alpha | ": lambda: png(numbers("uint16", 4)),
    "TIFF | 1 | grey | ": lambda: geotiff(numbers("uint8", bits=1), nbits=1),
    "TIFF | 2 | grey | ": lambda: geotiff(numbers("uint8", bits=2), nbits=2),
    "TIFF | 4 | grey | ": lambda: geotiff(numbers("uint8", bits=4), nbits=4),
    "TIFF | 8 | grey | ": lambda: geotiff(numbers("uint8")),
    "TIFF | 8 | grey | white is zero": lambda: geotiff(numbers("uint8"), photometric="miniswhite"),
    "TIFF | 8 | grey, alpha | ": lambda: tiff(
        last(numbers("uint8", 2)), extrasamples=["unassalpha"], **BLACK
    ),
    "TIFF | 8 | palette | ": lambda: palette_tiff(nodata=False),
    "TIFF | 8 | palette | with a nodata tag": lambda: palette_tiff(nodata=True),
    "TIFF | 8 | colour | by pixel": lambda: geotiff(numbers("uint8", 3), interleave="pixel"),
    "TIFF | 8 | colour | by band": lambda: geotiff(numbers("uint8", 3), interleave="band"),
    "TIFF | 8 | colour | JPEG in tiles": lambda: geotiff(
        SMOOTH, compress="jpeg", photometric="ycbcr", interleave="pixel", **TILES
    ),
    "TIFF | 8 | colour | JPEG by band": lambda: geotiff(SMOOTH, compress="jpeg", interleave="band"),
    "TIFF | 8 | colour | WebP": lambda: geotiff(SMOOTH, compress="webp", interleave="pixel"),
    "TIFF | 8 | colour, alpha | by pixel": lambda: geotiff(numbers("uint8", 4), interleave="pixel"),
    "TIFF | 8 | colour, alpha | by band": lambda: geotiff(numbers("uint8", 4), interleave="band"),
    "TIFF | 8 | 2 | ": lambda: geotiff(numbers("uint8", 2)),
    "TIFF | 8 | 3 | ": lambda: geotiff(numbers("uint8", 3), photometric="minisblack"),
    "TIFF | 8 | 4 | ": lambda: geotiff(numbers("uint8", 4), alpha="no"),
    "TIFF | 8 | CMYK by band | ": lambda: tiff(numbers("uint8", 4), photometric="separated", **PLANES),
    "TIFF | 8 | CIE L\\*a\\*b\\* | ": lambda: tiff(last(numbers("uint8", 3)), photometric="cielab"),
    "TIFF | 10 | 3 | ": lambda: geotiff(numbers("uint16", 3, bits=10), nbits=10),
    "TIFF | 12 | grey | ": lambda: geotiff(numbers("uint16", bits=12), nbits=12),
    "TIFF | 16 | grey | ": lambda: geotiff(numbers("uint16")),
    "TIFF | 16 | grey | big-endian, LZW": lambda: geotiff(
        numbers("uint16"), endianness="big", compress="lzw"
    ),
    "TIFF | 16 | grey | white is zero": lambda: geotiff(numbers("uint16"), photometric="miniswhite"),
    "TIFF | 16 | grey | white is zero, big-endian": lambda: geotiff(
        numbers("uint16"), photometric="miniswhite", endianness="big"
    ),
    "TIFF | 16 | colour | by pixel": lambda: geotiff(
        numbers("uint16", 3), photometric="rgb", interleave="pixel"
    ),
    "TIFF | 16 | colour | by band": lambda: geotiff(
        numbers("uint16", 3), photometric="rgb", interleave="band"
    ),
    "TIFF | 16 | 3 | by pixel": lambda: geotiff(numbers("uint16", 3), interleave="pixel"),
    "TIFF | 16 | 3 | by band": lambda: geotiff(numbers("uint16", 3), interleave="band"),
    "TIFF | 16 | 3 | tiles, LZW, predictor": lambda: geotiff(
        numbers("uint16", 3), compress="lzw", predictor=2, **TILES
    ),
    "TIFF | 16 | 3 | BigTIFF, big-endian, deflate": lambda: geotiff(
        numbers("uint16", 3), compress="deflate", bigtiff="yes", endianness="big"
    ),
    "TIFF | 16 | 4 | by band, LZW": lambda: geotiff(numbers("uint16", 4), interleave="band", compress="lzw"),
    "TIFF | 16 | 3 pages | ": lambda: tiff(numbers("uint16", 3), metadata=None, **BLACK),
    "TIFF | 16 | 4 pages | ": lambda: tiff(numbers("uint16", 4), metadata=None, **BLACK),
    "TIFF | 16 | 3 pages | ImageJ, CYX": lambda: tiff(
        numbers("uint16", 3), imagej=True, metadata={"axes": "CYX"}
    ),
    "TIFF | 16 | 3 pages | ImageJ, ZYX": lambda: tiff(
        numbers("uint16", 3), imagej=True, metadata={"axes": "ZYX"}
    ),
    "TIFF | 16 | 3 pages | OME, CYX": lambda: tiff(
        numbers("uint16", 3), ome=True, metadata={"axes": "CYX"}, **BLACK
    ),
    "TIFF | 16 | 3 pages | OME, TYX": lambda: tiff(
        numbers("uint16", 3), ome=True, metadata={"axes": "TYX"}, **BLACK
    ),
    "TIFF | 16 | 4 pages | OME, CYX": lambda: tiff(
        numbers("uint16", 4), ome=True, metadata={"axes": "CYX"}, **BLACK
    ),
    "TIFF | int8 | 1 | ": lambda: geotiff(numbers("int8")),
    "TIFF | int16 | 1 | ": lambda: geotiff(numbers("int16")),
    "TIFF | int16 | 3 | ": lambda: geotiff(numbers("int16", 3)),
    "TIFF | int32 | 1 | ": lambda: geotiff(numbers("int32")),
    "TIFF | uint32 | 1 | ": lambda: geotiff(numbers("uint32")),
    "TIFF | float16 | 1 | ": lambda: geotiff(numbers("float16").astype("float32"), nbits=16),
    "TIFF | float32 | 1 | ": lambda: geotiff(numbers("float32")),
    "TIFF | float32 | 3 | by pixel": lambda: geotiff(numbers("float32", 3), interleave="pixel"),
    "TIFF | float32 | 3 | by band, Zstandard, predictor": lambda: geotiff(
        numbers("float32", 3), interleave="band", compress="zstd", predictor=3
    ),
    "TIFF | float64 | 1 | ": lambda: geotiff(numbers("float64")),
    "TIFF | float64 | 3 | PackBits": lambda: geotiff(numbers("float64", 3), compress="packbits"),
    "TIFF | complex64 | 1 | ": lambda: geotiff(numbers("float32").astype("complex64")),
    "NumPy | uint8 | H, W | ": lambda: npy(numbers("uint8")[0]),
    "NumPy | uint8 | H, W, 3 | ": lambda: npy(last(numbers("uint8", 3))),
    "NumPy | uint16 | H, W | ": lambda: npy(numbers("uint16")[0]),
    "NumPy | uint16 | 3, H, W | ": lambda: npy(numbers("uint16", 3)),
    "NumPy | float32 | H, W | ": lambda: npy(numbers("float32")[0]),
    "NumPy | float32 | 3, H, W | ": lambda: npy(numbers("float32", 3)),
    "NumPy | int64 | 4, H, W | ": lambda: npy(numbers("int64", 4)),
    "NumPy | uint16 | 3, H, W | .npz": lambda: npz(numbers("uint16", 3)),
    "NumPy | uint16 | 3, H, W | .npz of two arrays": lambda: npz(numbers("uint16", 3), numbers("uint16", 3)),
}


def documented() -> dict[str, dict[str, str]]:
    """The cells of each row, by its first four."""
    table = PAGE.read_text().partition("| file | bits | bands | layout |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {" | ".join(row[:4]): dict(zip(COLUMNS, row[4:], strict=True)) for row in rows}


def expected_of(formula: str, values: np.ndarray, num_channels: int) -> torch.Tensor:
    """`[num_channels, H, W]` float64 by the formula of a cell, whose `y` is the luminance of a
    colour."""
    v = values.astype(np.float64)
    names = {"v": v, "low": LOW, "high": HIGH}
    if "y" in formula:
        names["y"] = (0.299 * v[0] + 0.587 * v[1] + 0.114 * v[2])[None]
    result = torch.from_numpy(eval(formula, {"__builtins__": {}}, names))
    return result.expand(num_channels, -1, -1)


def channels_first(values: np.ndarray, row: str) -> np.ndarray:
    """The values that count: alpha is dropped, and an array gets its channels in front."""
    if row.startswith("NumPy"):
        return np.moveaxis(values, -1, 0) if "W, 3" in row else values.reshape(-1, HEIGHT, WIDTH)
    return values[:-1] if "alpha" in row else values


def test_the_table_speaks_of_every_row_in_order() -> None:
    assert list(documented()) == list(ROWS)
    assert len(ROWS) * len(COLUMNS) >= 200


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_what_the_decoder_does(row: str) -> None:
    data, values = ROWS[row]()
    for column, (num_channels, options) in COLUMNS.items():
        cell = documented()[row][column]
        refusal = re.fullmatch(r"refused: `(.+)`", cell)
        if refusal:
            with pytest.raises(UnreadableImage) as caught:
                decode_image(data, num_channels, options)
            assert caught.value.reason == refusal[1], column
            continue
        image = decode_image(data, num_channels, options)
        formula, as_float = re.fullmatch(r"`(.+)`(, float32)?", cell).groups()
        is_uint8 = column == "3 channels" and not as_float
        expected = expected_of(formula, channels_first(values, row), num_channels)
        expected = expected.clip(0, 1) if column == "scaled" else expected
        assert (
            image.dtype == (torch.uint8 if is_uint8 else torch.float32) and image.shape == expected.shape
        ), column
        rounds_luminance = "y / 255" in formula and column == "1 channel"
        rounding = 0.5 if is_uint8 else (0.5 / 255 + 1e-3 if rounds_luminance else 0)
        np.testing.assert_allclose(
            image.double().numpy(), expected.numpy(), rtol=1e-6, atol=rounding + 1e-6, err_msg=column
        )


def test_the_examples_of_white_is_zero_and_of_int8() -> None:
    """16 bits are 255 and 55 as the same picture of 8 bits is; int8 keeps its sign."""
    values = np.repeat([[0, 200 * 257]], 12, axis=1).repeat(16, axis=0).astype(np.uint16)
    eight_bits = decode_image(tiff((values // 257).astype(np.uint8), **WHITE)[0])
    for options in (WHITE, WHITE | {"compression": "zlib"}, WHITE | {"byteorder": ">"}):
        data = tiff(values, **options)[0]
        assert decode_image(data).unique().tolist() == [55, 255]
        assert torch.equal(decode_image(data), eight_bits)
    signed = np.repeat([[-5, 7]], 12, axis=1).repeat(16, axis=0).astype(np.int8)
    assert decode_image(tiff(signed, **BLACK)[0], 1).unique().tolist() == [-5, 7]
