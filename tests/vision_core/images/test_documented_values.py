"""The table of `docs/data.md`: what becomes of stored values. Every cell is computed and compared with the decoder."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vision_core.images.decode import UnreadableImage, decode_image

tifffile = pytest.importorskip("tifffile")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"
DICE = np.random.default_rng(0)
BLACK, WHITE = {"photometric": "minisblack"}, {"photometric": "miniswhite"}


def tiff(values: np.ndarray, options: dict) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def numbers(dtype: str, shape: tuple[int, ...] = (16, 24)) -> np.ndarray:
    """All of the type's range, or noise around zero for floats."""
    if np.dtype(dtype).kind == "f":
        return DICE.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return DICE.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


STORED = {
    "grey of 8 bits": (numbers("uint8"), BLACK),
    "grey of 16 bits": (numbers("uint16"), BLACK),
    "grey TIFF of 8 bits, white is zero": (numbers("uint8"), WHITE),
    "grey TIFF of 16 bits, white is zero": (numbers("uint16"), WHITE),
    "grey TIFF of 16 bits, white is zero, big-endian": (numbers("uint16"), WHITE | {"byteorder": ">"}),
    **{f"grey TIFF of {name}": (numbers(name), BLACK) for name in ("int8", "int16", "int32", "uint32", "float32", "float64")},
    "colour of 8 bits": (numbers("uint8", (16, 24, 3)), {"photometric": "rgb"}),
    "colour of 16 bits": (numbers("uint16", (16, 24, 3)), {"photometric": "rgb"}),
}


def documented() -> dict[str, tuple[str, str]]:
    """Of each kind of stored values: the cell for 3 channels, and the one for 1."""
    table = PAGE.read_text().partition("| stored values |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {stored: (three, one) for stored, three, one in rows}


def planes_of(formula: str, values: np.ndarray) -> np.ndarray:
    """`[C, H, W]` float64 by the formula of a cell: of each part of a colour, or of its three together."""
    parts = np.atleast_3d(values).astype(np.float64).transpose(2, 0, 1)
    if "r" not in formula:
        return np.stack([eval(formula, {"__builtins__": {}}, {"v": part}) for part in parts])
    return eval(formula, {"__builtins__": {}}, dict(zip("rgb", parts, strict=True)))[None]


def test_the_table_speaks_of_every_kind() -> None:
    assert documented().keys() == STORED.keys()


@pytest.mark.parametrize("num_channels", [3, 1])
@pytest.mark.parametrize("stored", STORED)
def test_a_cell_is_what_the_decoder_does(stored: str, num_channels: int) -> None:
    values, options = STORED[stored]
    cell = documented()[stored][0 if num_channels == 3 else 1]
    refusal = re.fullmatch(r"refused: `(.+)`", cell)
    if refusal:
        with pytest.raises(UnreadableImage) as caught:
            decode_image(tiff(values, options), num_channels)
        assert caught.value.reason == refusal[1]
        return
    image = decode_image(tiff(values, options), num_channels)
    expected = torch.from_numpy(planes_of(cell.strip("`"), values)).expand(num_channels, -1, -1)
    assert image.dtype == (torch.uint8 if num_channels == 3 else torch.float32) and image.shape == expected.shape
    luminance_is_rounded = num_channels == 1 and values.ndim == 3
    rounding = 0.5 if num_channels == 3 else (0.5 / 255 + 1e-3 if luminance_is_rounded else 0)
    np.testing.assert_allclose(image.double().numpy(), expected.numpy(), rtol=1e-6, atol=rounding + 1e-6)


def test_the_examples_of_white_is_zero_and_of_int8() -> None:
    """16 bits are 255 and 55 as the same picture of 8 bits is; int8 keeps its sign."""
    values = np.repeat([[0, 200 * 257]], 12, axis=1).repeat(16, axis=0).astype(np.uint16)
    eight_bits = decode_image(tiff((values // 257).astype(np.uint8), WHITE))
    for options in (WHITE, WHITE | {"compression": "zlib"}):
        assert decode_image(tiff(values, options)).unique().tolist() == [55, 255]
        assert torch.equal(decode_image(tiff(values, options)), eight_bits)
    signed = np.repeat([[-5, 7]], 12, axis=1).repeat(16, axis=0).astype(np.int8)
    assert decode_image(tiff(signed, BLACK), 1).unique().tolist() == [-5, 7]
