"""Image files whose headers lie: each is an image or a reason, in bounded time and memory, and nothing
is written on the terminal."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.image_files import outcomes, saved, smooth

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory in /proc")


def with_chunk(data: bytes, kind: bytes, content: bytes, length: int | None = None) -> bytes:
    """A PNG with a chunk behind its header, whose length may lie."""
    chunk = (
        struct.pack(">I", len(content) if length is None else length)
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
    return data[:33] + chunk + data[33:]


def zeros(megabytes: int) -> bytes:
    """Deflated zeros, a kilobyte for a megabyte: one block again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * megabytes + packer.flush()


def gz_of(data: bytes, megabytes: int) -> bytes:
    """Deflated `data`, and zeros behind it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH) + zeros(megabytes)


def nifti_header(shape: tuple[int, ...]) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into(f"<{len(shape) + 1}h", header, 40, len(shape), *shape)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, *[1.0] * 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    return bytes(header)


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + content


def npz_of(data: bytes, size: int, packed: bytes) -> bytes:
    """An archive whose only array begins with `data`, its content promised to have `size` bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.npy", b"x")
    content = bytearray(stream.getvalue())
    start = 30 + len("a.npy")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH) + packed
    local, central = content[:start], content[start + 1 :]
    for header, at in ((local, 8), (central, 10)):
        struct.pack_into("<H", header, at, zipfile.ZIP_DEFLATED)
        struct.pack_into("<II", header, at + 10, len(body), size)
    struct.pack_into("<I", central, len(central) - 6, start + len(body))
    return bytes(local + body + central)


def tiff(*entries: tuple[int, int, int, int], next_page: int = 0, behind: bytes = b"") -> bytes:
    table = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return (
        b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + struct.pack("<I", next_page) + behind
    )


def page(**changes: int) -> list[tuple[int, int, int, int]]:
    """The entries of a page of grey, 16 x 16; those named by their numbers are changed."""
    values = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 16, 279: 256} | {
        int(key[1:]): value for key, value in changes.items()
    }
    return [(tag, 4, 1, value) for tag, value in values.items()]


def lies() -> dict[str, tuple[bytes, str]]:
    """Files whose headers promise what is not there, and how the reason begins."""
    picture = Image.fromarray(smooth(3))
    png, jpeg, gif, bmp = (saved(picture, format) for format in ("PNG", "JPEG", "GIF", "BMP"))

    def app(marker, length):
        head = b"\xff" + bytes([marker]) + struct.pack(">H", length)
        return jpeg[:2] + head + b"x" * 20 + jpeg[2:]

    gz = b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
    dims = "'descr': '|u1', 'fortran_order': False, 'shape': "
    return {
        "png_no_size": (png[:16] + bytes(8) + png[24:], ""),
        "png_size_of_all": (png[:16] + b"\x7f\xff\xff\xff" * 2 + png[24:], ""),
        "png_chunk_beyond": (with_chunk(png, b"tEXt", b"a\0b", 2**31 - 1), ""),
        "png_text_bomb": (with_chunk(png, b"zTXt", b"a\0\0" + zlib.compress(bytes(80 * 2**20), 9)), ""),
        "png_profile_bomb": (with_chunk(png, b"iCCP", b"a\0\0" + zlib.compress(bytes(80 * 2**20), 9)), ""),
        "png_no_pixels": (png[:33] + png[-12:], ""),
        "jpeg_exif_beyond": (app(0xE1, 65535), ""),
        "jpeg_profile_of_nothing": (app(0xE2, 2), ""),
        "jpeg_no_size": (
            jpeg.replace(b"\xff\xc0\0\x11\x08\0\x30\0\x30", b"\xff\xc0\0\x11\x08\0\0\0\0", 1),
            "",
        ),
        "jpeg_size_of_all": (
            jpeg.replace(b"\xff\xc0\0\x11\x08\0\x30\0\x30", b"\xff\xc0\0\x11\x08\xff\xff\xff\xff", 1),
            "too_large",
        ),
        "gif_size_of_all": (gif[:6] + b"\xff" * 4 + gif[10:], "too_large"),
        "gif_no_size": (gif[:6] + bytes(4) + gif[10:], "too_small"),
        "bmp_size_of_all": (bmp[:18] + b"\xff\xff\xff\x7f" * 2 + bmp[26:], ""),
        "bmp_negative_size": (bmp[:18] + b"\xff" * 8 + bmp[26:], ""),
        "bmp_offset_beyond": (bmp[:10] + b"\xff\xff\xff\x7f" + bmp[14:], ""),
        "webp_size_of_all": (b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6, ""),
        "tiff_page_of_itself": (tiff(*page(), next_page=8, behind=bytes(600)), ""),
        "tiff_size_of_all": (tiff(*page(t256=2**31 - 1, t257=2**31 - 1), behind=bytes(600)), "too_large"),
        "tiff_no_size": (tiff(*page(t256=0, t257=0), behind=bytes(600)), ""),
        "tiff_strip_beyond": (tiff(*page(t273=2**31), behind=bytes(600)), ""),
        "tiff_strip_of_all": (tiff(*page(t279=2**32 - 1), behind=bytes(600)), ""),
        "tiff_many_samples": (tiff(*page(t277=65535), behind=bytes(600)), ""),
        "tiff_no_rows": (tiff(*page(t278=0), behind=bytes(600)), ""),
        "tiff_strips_beyond": (
            tiff(
                *(page()[:5] + [(273, 4, 2**31, 200), (277, 4, 1, 1), (278, 4, 1, 1), (279, 4, 2**31, 200)])
            ),
            "",
        ),
        "tiff_exif_of_itself": (tiff(*page(), (34665, 4, 1, 8), (330, 4, 1, 8), behind=bytes(600)), ""),
        "tiff_description_of_all": (tiff(*page(), (270, 2, 2**32 - 1, 8), behind=bytes(600)), ""),
        "bigtiff_entries_of_all": (b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 60, ""),
        "npy_objects": (npy("{'descr': '|O', 'fortran_order': False, 'shape': (16, 16)}"), "python_objects"),
        "npy_of_all": (npy(f"{{{dims}(4294967296, 4294967296)}}"), "too_large"),
        "npy_negative": (npy(f"{{{dims}(-16, 16)}}"), "too_small"),
        "npy_no_size": (npy(f"{{{dims}(0, 16)}}"), "too_small"),
        "npy_too_short": (npy(f"{{{dims}(4000, 4000)}}", bytes(99)), "truncated"),
        "npy_code": (npy("__import__('os').abort()"), "corrupt"),
        "npy_nested": (npy("(" * 20_000), "corrupt"),
        "npy_truth_values": (npy(f"{{{dims}(True, True)}}"), ""),
        "npz_bomb": (
            npz_of(
                npy("{'descr': '<f8', 'fortran_order': False, 'shape': (8000, 8000)}"),
                512_000_200,
                zeros(489),
            ),
            "too_large",
        ),
        "npz_of_nothing": (b"PK\x05\x06" + bytes(18), "not_an_image"),
        "nifti_of_all": (nifti_header((32767, 32767, 1)), "too_large"),
        "nifti_negative": (nifti_header((-5, 16, 16)), ""),
        "nifti_truncated": (nifti_header((64, 64, 1)), "truncated"),
        "nifti_gz_bomb": (gz + zeros(2200), "not_an_image"),
        "nifti_gz_inflates": (gz + gz_of(nifti_header((16, 16, 1)), 2200), ""),
        "nifti_gz_zeros": (gz + gz_of(nifti_header((1000, 1000, 900)), 1800), "too_large"),
        "gz_cut": (gz + gz_of(nifti_header((1000, 1000, 1)), 3)[:900], "truncated"),
        "fits_of_all": (fits_header(NAXIS="2", NAXIS1="999999999", NAXIS2="999999999"), ""),
        "fits_negative": (fits_header(NAXIS="2", NAXIS1="-9", NAXIS2="16"), ""),
        "fits_many_axes": (fits_header(NAXIS="999"), ""),
        "fits_without_end": (b"SIMPLE  =                    T".ljust(80) + b"COMMENT".ljust(80) * 5000, ""),
        "dicom_nothing_behind": (bytes(128) + b"DICM", ""),
        "dicom_meta_of_all": (bytes(128) + b"DICM\x02\0\0\0UL\x04\0\xff\xff\xff\xff", ""),
        "dicom_nested": (
            bytes(128)
            + b"DICM"
            + b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 3000,
            "",
        ),
        "heic_box_beyond": (b"\xff\xff\xff\xffftypheic" + bytes(200), ""),
        "avif_box_of_nothing": (b"\0\0\0\x1cftypavif" + bytes(200), ""),
    }


# what lies beside the pixels does no harm to them
HARMLESS = {
    *("jpeg_profile_of_nothing", "png_text_bomb", "png_profile_bomb", "bmp_negative_size"),
    *(
        "tiff_page_of_itself",
        "tiff_exif_of_itself",
        "tiff_description_of_all",
        "tiff_strip_of_all",
        "tiff_no_rows",
    ),
}


def fits_header(**cards: str) -> bytes:
    lines = {"SIMPLE": "T", "BITPIX": "16"} | cards
    text = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in lines.items()) + "END"
    return text.ljust(-(-len(text) // 2880) * 2880).encode() + bytes(2880)


def test_headers_that_lie_are_a_reason(tmp_path: Path) -> None:
    for package in ("tifffile", "pydicom", "nibabel", "astropy", "pillow_heif"):
        pytest.importorskip(package)
    cases = lies()
    reasons = outcomes(tmp_path / "cases", {name: data for name, (data, _) in cases.items()}, "all")
    assert len(reasons) == len(cases) >= 50
    wrong = {
        name: reasons[name]
        for name, (_, reason) in cases.items()
        if reason and not (reasons[name][0] or "").startswith(reason)
    }
    assert not wrong
    read = {name for name, found in reasons.items() if found[0] is None}
    assert read <= HARMLESS
