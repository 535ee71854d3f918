"""Which reader a TIFF gets, its stacks of pages, its limits, and what is missing without the
optional packages."""

import io
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vision_core.errors import UserError
from vision_core.images.decode import (
    UnreadableImage,
    count_parts,
    decode_image,
    decode_values,
    picture_size,
    picture_tensor,
    read_stored,
)
from vision_core.images.formats import tiff as reader
from vision_core.unreadable import MAX_PIXELS, cure

pytest.importorskip("imagecodecs")
tifffile = pytest.importorskip("tifffile")
ROOT = Path(__file__).resolve().parents[4]
DICE = np.random.default_rng(0)
COLOUR = DICE.integers(0, 256, (24, 32, 3), dtype=np.uint8)
PLANES_16 = DICE.integers(0, 65536, (3, 24, 32), dtype=np.uint16)
BLACK = {"photometric": "minisblack"}


def tiff(values: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def reason(data: bytes, num_channels: int = 3, part: int | None = None) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data, num_channels, part=part)
    return caught.value.reason


PLAIN = {
    "grey": tiff(COLOUR[..., 0]),
    "grey, white is zero": tiff(COLOUR[..., 0], photometric="miniswhite"),
    "grey, LZW": tiff(COLOUR[..., 0], compression="lzw"),
    "grey of 1 bit": tiff(COLOUR[..., 0] > 99),
    "grey of 16 bits": tiff(PLANES_16[0], **BLACK),
    "grey of 16 bits, white is zero": tiff(PLANES_16[0], photometric="miniswhite"),
    "grey of 16 bits, big-endian, predictor": tiff(
        PLANES_16[0], byteorder=">", compression="lzw", predictor=True, **BLACK
    ),
    "colour": tiff(COLOUR, photometric="rgb"),
    "colour, deflate in tiles, predictor": tiff(
        COLOUR, photometric="rgb", tile=(16, 16), compression="zlib", predictor=True
    ),
    "colour, alpha": tiff(
        np.dstack([COLOUR, COLOUR[..., 0]]), photometric="rgb", extrasamples=["unassalpha"]
    ),
    "colour, ImageJ": tiff(COLOUR, imagej=True),
    "palette": tiff(COLOUR[..., 0], photometric="palette", colormap=PLANES_16.reshape(3, -1)[:, :256]),
    "colour, turned": tiff(COLOUR, photometric="rgb", extratags=[(274, "H", 1, 6, True)]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_pillow_and_tifffile_agree_on_plain_pictures(name: str, monkeypatch) -> None:
    assert reader.open_plain(PLAIN[name], MAX_PIXELS) is not None
    by_pillow = [decode_image(PLAIN[name], num_channels) for num_channels in (3, 1)]
    monkeypatch.setattr(reader, "is_plain_page", lambda *_: False)
    by_tifffile = [decode_image(PLAIN[name], num_channels) for num_channels in (3, 1)]
    assert torch.equal(by_pillow[0], by_tifffile[0])
    is_colour = name.startswith(("colour", "palette"))  # whose luminance Pillow rounds
    torch.testing.assert_close(
        by_pillow[1], by_tifffile[1], rtol=0, atol=0.5 / 255 + 1e-3 if is_colour else 1e-6
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (tiff(COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"), "by band"),
        (tiff(np.stack([COLOUR, COLOUR]), photometric="rgb", metadata=None), "two pages"),
        (tiff(PLANES_16, imagej=True), "ImageJ's planes"),
        (tiff(PLANES_16, truncate=True, **BLACK), "planes behind a page"),
        (tiff(COLOUR[..., 0], extratags=[(33629, "I", 1, 3, True)]), "MetaMorph's planes"),
        (tiff(COLOUR[..., 0], extratags=[(42113, "s", 0, "7", True)]), "nodata"),
        (tiff(np.dstack([COLOUR, COLOUR[..., 0]]), photometric="rgb", extrasamples=["unspecified"]), "a fourth band"),
        (tiff(COLOUR[..., :2].copy(), extrasamples=["unspecified"], **BLACK), "a second band"),
        (tiff(COLOUR[..., 0].astype(np.int8), **BLACK), "signed"),
        (tiff(PLANES_16[0] >> 4, bitspersample=12), "12 bits"),
    ],
)  # fmt: skip
def test_what_pillow_might_get_wrong_is_no_plain_picture(data: bytes, what: str) -> None:
    assert reader.open_plain(data, MAX_PIXELS, high_byte=True) is None, what
    image = read_stored(data, 3) if what in ("by band", "ImageJ's planes", "planes behind a page") else None
    assert image is None or len(image.values) == 3


def test_parts_of_a_stack_are_its_images() -> None:
    stack = DICE.integers(0, 65536, (2, 4, 3, 24, 32), dtype=np.uint16)
    for options in ({"imagej": True}, {"imagej": True, "compression": "zlib"}, {"ome": True, **BLACK}):
        data = tiff(stack, metadata={"axes": "TZCYX"}, **options)
        assert reason(data) == "several_images T=2 Z=4"
        assert count_parts(data) == 8
        for part in (0, 3, 7):
            assert np.array_equal(read_stored(data, 3, part=part).values, stack.reshape(8, 3, 24, 32)[part])
    slices = tiff(stack.transpose(0, 2, 1, 3, 4).copy(), ome=True, metadata={"axes": "TCZYX"}, **BLACK)
    for part in (0, 5):
        assert np.array_equal(read_stored(slices, 3, part=part).values, stack.reshape(8, 3, 24, 32)[part])


def test_pages_of_colour_are_images() -> None:
    pages = np.stack([COLOUR, 255 - COLOUR, COLOUR // 2])
    for metadata in (None, {}):
        data = tiff(pages, photometric="rgb", metadata=metadata)
        assert reason(data) == "several_images pages=3" and count_parts(data) == 3
        assert np.array_equal(decode_image(data, part=1).numpy(), (255 - COLOUR).transpose(2, 0, 1))
    assert count_parts(tiff(PLANES_16, metadata=None, **BLACK)) == 1
    assert count_parts(tiff(PLANES_16, metadata=None, **BLACK), 1) == 3
    assert count_parts(PLAIN["colour"]) == 1


def test_pages_of_several_sizes_are_several_images() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for page in (COLOUR, COLOUR[:16]):
            writer.write(page, photometric="rgb", metadata=None)
    assert reason(stream.getvalue()) == "several_images series=2"


def test_a_pyramid_is_its_largest_level() -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, ome=True) as writer:
        writer.write(PLANES_16, subifds=1, metadata={"axes": "CYX"}, **BLACK)
        writer.write(PLANES_16[:, ::2, ::2], subfiletype=1, **BLACK)
    assert np.array_equal(read_stored(stream.getvalue()).values, PLANES_16)


def peak_bytes(reset: bool = False) -> int:
    """The most memory that was resident at once since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the largest resident memory from /proc"
)
@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "packbits", "webp", "jpeg"])
def test_a_strip_that_inflates_beyond_the_image_makes_no_room_for_itself(compression: str) -> None:
    """A small strip is replaced by what unpacks to 48 MiB, or to 4096 x 4096 pixels."""
    small, large = np.zeros((64, 64, 3), np.uint8), np.zeros((4096, 4096, 3), np.uint8)
    data = tiff(
        small,
        photometric="rgb",
        compression=compression,
        metadata=None,
        extratags=[(42113, "s", 0, "7", True)],
    )
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offsets, counts = file.pages[0].tags["StripOffsets"], file.pages[0].tags["StripByteCounts"]
    bomb = tiff(large, photometric="rgb", compression=compression, rowsperstrip=4096, metadata=None)
    with tifffile.TiffFile(io.BytesIO(bomb)) as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    forged = bytearray(data) + bomb[start : start + length]
    struct.pack_into("<I", forged, offsets.valueoffset, len(data))
    struct.pack_into("<I", forged, counts.valueoffset, length)
    decode_image(data)
    before = peak_bytes(reset=True)
    outcome = decode_or_reason(bytes(forged))
    assert peak_bytes() - before < 20 * 2**20, outcome
    assert outcome in ("corrupt", (3, 64, 64))


def decode_or_reason(data: bytes) -> str | tuple[int, ...]:
    try:
        return tuple(decode_image(data).shape)
    except UnreadableImage as error:
        return error.reason


FILES = {
    "plain_lzw": PLAIN["grey, LZW"],
    "plain_lzw_16": PLAIN["grey of 16 bits, big-endian, predictor"],
    "planes": tiff(PLANES_16, photometric="rgb", planarconfig="separate"),
    "planes_lzw": tiff(PLANES_16, photometric="rgb", planarconfig="separate", compression="lzw"),
    "planes_zstd": tiff(PLANES_16, photometric="rgb", planarconfig="separate", compression="zstd"),
    "planes_float_predictor": tiff(
        PLANES_16.astype("f4"), photometric="rgb", planarconfig="separate", compression="zlib", predictor=3
    ),
    "twelve_bits": tiff(PLANES_16[0] >> 4, bitspersample=12),
}


@pytest.mark.parametrize("name", FILES)
def test_plain_pictures_need_no_tifffile_and_others_name_it(name: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    if name.startswith("plain"):
        assert decode_image(FILES[name]).shape == (3, 24, 32)
        return
    with pytest.raises(
        UserError, match=r"needs the package tifffile; pip install 'vision-encoder-fusion\[scientific\]'"
    ):
        decode_image(FILES[name])


WITHOUT_IMAGECODECS = """
import sys
sys.modules["imagecodecs"] = None
from vision_core.images.pixel_options import AS_STORED
from vision_core.images.formats.tiff_pages import read
for name in sys.argv[1:]:
    try:
        print(read(open(name, "rb").read(), 3, AS_STORED, None).values.shape)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_what_needs_imagecodecs_says_so(tmp_path: Path) -> None:
    names = [name for name in FILES if not name.startswith("plain")]
    for name in names:
        (tmp_path / name).write_bytes(FILES[name])
    command = [sys.executable, "-c", WITHOUT_IMAGECODECS, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.stdout.splitlines() == ["(3, 24, 32)"] + 4 * ["UnreadableImage needs_imagecodecs"], (
        done.stderr[-2000:]
    )
    assert "pip install 'vision-encoder-fusion[scientific]'" in cure("needs_imagecodecs")


def test_masks_are_never_the_first_of_several_pages_or_bands() -> None:
    mask = COLOUR[..., 0] % 5
    palette = PLANES_16.reshape(3, -1)[:, :256]
    with_nodata = tiff(mask, photometric="palette", colormap=palette, extratags=[(42113, "s", 0, "4", True)])
    for data in (tiff(mask), with_nodata, tiff(mask, photometric="palette", colormap=palette)):
        assert np.array_equal(decode_values(data).numpy(), mask)
    for data, expected in (
        (tiff(np.stack([mask, mask]), metadata=None, **BLACK), "several_images pages=2"),
        (tiff(np.stack([mask, mask]), planarconfig="separate", **BLACK), "not_1_channels 2 bands"),
        (tiff(PLANES_16, photometric="rgb", planarconfig="separate"), "not_numbers RGB"),
        (tiff(mask.astype(np.int32), **BLACK), "unsupported_mode int32"),
    ):
        with pytest.raises(UnreadableImage) as caught:
            decode_values(data)
        assert caught.value.reason == expected


def test_the_size_of_what_pillow_does_not_read() -> None:
    for data in (FILES["planes"], tiff(PLANES_16, imagej=True), tiff(PLANES_16.astype(np.float32), **BLACK)):
        assert picture_size(data) == (24, 32)


def test_a_pil_image_whose_file_is_gone_is_refused() -> None:
    from PIL import Image

    picture = Image.open(io.BytesIO(FILES["planes"]))
    picture.load()
    with pytest.raises(UnreadableImage, match="not_its_files_pixels"):
        picture_tensor(picture)
    assert cure("not_its_files_pixels").endswith("give its path")


def test_no_user_error_comes_from_a_damaged_file() -> None:
    whole = tiff(PLANES_16, photometric="rgb", planarconfig="separate", compression="zlib")
    outcomes = set()
    for number in range(120):
        damaged = bytearray(whole)
        if number % 2:
            del damaged[DICE.integers(8, len(damaged)) :]
        else:
            for place in DICE.integers(4, min(400, len(damaged)), 3):
                damaged[place] = DICE.integers(256)
        try:
            decode_image(bytes(damaged))
        except UnreadableImage as error:
            outcomes.add(error.reason.partition(" ")[0])
        except UserError as error:
            pytest.fail(str(error))
    assert {"corrupt", "unsupported_tiff"} <= outcomes
