"""Tar shards that lie: refused in one line with the shard and the place, or their members counted
with a reason; `tarfile` and GNU tar write them."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.open_source import open_source
from vision_core.images.sources.tar_headers import read_headers
from vision_core.unreadable import UnreadableImage

BLOCK = 512
SIZE, KIND, CHECKSUM = 124, 156, 148


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, size: bytes | int | None = None
) -> bytes:
    """A header as `tarfile` writes it, its size another one where it lies, and the content in whole
    blocks."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if not isinstance(size, int) else size
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[-BLOCK:])
    if isinstance(size, bytes):
        header[SIZE : SIZE + 12] = size
    return sealed(header) + data + bytes(-len(data) % BLOCK)


def sealed(header: bytearray) -> bytes:
    header[CHECKSUM : CHECKSUM + 8] = b" " * 8
    header[CHECKSUM : CHECKSUM + 8] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE, size: bytes | None = None) -> bytes:
    return member("pax", records, kind, size)


def record(key: str, value: str) -> bytes:
    """`length key=value` and a line's end, the length counting its own digits."""
    rest = len(f" {key}={value}\n".encode())
    length = next(total for total in range(rest, rest + 9) if len(str(total)) + rest == total)
    return f"{length} {key}={value}\n".encode()


FIRST, LAST, END = member("0.png", png(0)), member("9.png", png(9)), bytes(2 * BLOCK)
GOOD = FIRST + LAST + END
SIZE_LIES = {
    "size_negative": b"\xff" * 12,
    "size_of_letters": b"00000000zz8\0",
    "size_of_nines": b"99999999999\0",
    "size_huge": b"77777777777\0",
    "size_huge_in_binary": b"\x80" + b"\x7f" * 11,
}
REFUSED = {
    **{
        name: (FIRST + member("1.png", png(1), size=size) + END, "size that is not possible|end of data")
        for name, size in SIZE_LIES.items()
    },
    "size_into_the_next": (
        FIRST + member("1.png", png(1), size=5000) + LAST * 20 + END,
        r"is damaged at byte [\d,]+",
    ),
    "overlaps_the_end": (
        FIRST + member("1.png", png(1), size=100_000),
        "unexpected end of data in member '1.png', which has 100,000 bytes",
    ),
    "cut_in_a_header": (GOOD[: len(FIRST) + 300], "is damaged at byte 1,024"),
    "checksum": (FIRST + LAST[:CHECKSUM] + b"0000001\0" + LAST[CHECKSUM + 8 :], "is damaged at byte 1,024"),
    "garbage_between": (FIRST + b"x" * BLOCK + LAST + END, "is damaged at byte 1,024"),
    "long_name_huge": (
        FIRST + member("n", b"a" * 2**21, tarfile.GNUTYPE_LONGNAME) + LAST,
        "the name of the member at byte 1,024 has 2,097,152",
    ),
    "long_name_lies": (
        FIRST + member("n", b"a", tarfile.GNUTYPE_LONGNAME, 2**19) + LAST,
        "unexpected end of data in the name",
    ),
    "long_link_huge": (
        FIRST + member("n", b"", tarfile.GNUTYPE_LONGLINK, 2**40) + LAST,
        "the name of the member",
    ),
    "pax_huge": (
        FIRST + pax(b"", size=b"77777777777\0") + LAST,
        "the name of the member at byte 1,024 has 8,589,934,591 bytes",
    ),
    "pax_of_all_huge": (
        pax(b"", tarfile.XGLTYPE, b"00077777777\0") + FIRST,
        "the name of the member at byte 0",
    ),
    "pax_length_zero": (FIRST + pax(b"0 path=a\n") + LAST, "the records of pax at byte 1,024 have lengths"),
    "pax_length_beyond": (FIRST + pax(b"99999 path=a\n") + LAST, "lengths that do not fit"),
    "pax_length_negative": (FIRST + pax(b"-9 path=a\n") + LAST, "lengths that do not fit"),
    "pax_length_endless": (FIRST + pax(b"9" * 400 + b" path=a\n") + LAST, "lengths that do not fit"),
    "pax_without_equals": (FIRST + pax(b"8 path1\n") + LAST, "lengths that do not fit"),
    "pax_size_negative": (FIRST + pax(record("size", "-1")) + LAST, "size that is not possible"),
    "pax_size_of_letters": (FIRST + pax(record("size", "many")) + LAST, "size that is not possible"),
    "pax_size_endless": (FIRST + pax(record("size", "9" * 5000)) + LAST, "size that is not possible"),
    "pax_size_beyond": (
        FIRST + pax(record("size", "1000000")) + LAST + END,
        "unexpected end of data in member '9.png'",
    ),
    "pax_size_into_the_next": (FIRST + pax(record("size", "700")) + LAST + LAST + END, "damaged at byte"),
    "sparse_map_without_end": (
        FIRST + sealed(bytearray(member("1.png", b"", b"S")[:482] + b"\1" + bytes(29))),
        "in the map of sparse member",
    ),
    "gzip": (gzip.compress(GOOD), "it is compressed by gzip; gunzip or rewrite it"),
    "bzip2": (bz2.compress(GOOD), "it is compressed by bzip2"),
    "xz": (lzma.compress(GOOD), "it is compressed by xz"),
    "zip": (b"PK\x03\x04" + bytes(600), "it is compressed by zip"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + bytes(600), "it is compressed by Zstandard"),
    "nothing": (b"", "it is empty"),
    "zeros": (bytes(10240), "does not begin with a header"),
    "picture": (png(3) * 20, "does not begin with a header"),
    "tar_in_a_tar": (member("inner.tar", GOOD) + END, "0 images in wds:.*fields there are: tar"),
    "folders_alone": (member("a.png/", b"", tarfile.DIRTYPE) + END, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_shard_that_lies_is_one_line(tmp_path: Path, name: str) -> None:
    data, message = REFUSED[name]
    (tmp_path / "s.tar").write_bytes(data)
    start = time.perf_counter()
    if message is None:
        assert reasons(open_source(f"wds:{tmp_path}/s.tar")) == ["not_a_regular_file"]
        return
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"wds:{tmp_path}/s.tar")
    line = str(caught.value)
    assert "\n" not in line and "s.tar" in line and len(line) - len(str(tmp_path)) < 250
    assert time.perf_counter() - start < 5


def reasons(source) -> list[str | None]:
    found: list[str | None] = []
    for index in range(len(source)):
        try:
            source[index]
            found.append(None)
        except UnreadableImage as error:
            found.append(error.reason)
    return found


KINDS = {
    "hard_link": b"1",
    "link": b"2",
    "device": b"3",
    "block_device": b"4",
    "folder": b"5",
    "pipe": b"6",
    "unknown": b"Z",
    "volume": b"V",
}


@pytest.mark.parametrize("kind", KINDS)
def test_members_that_are_no_files_are_counted(tmp_path: Path, kind: str) -> None:
    """Whatever they say of their size."""
    has_content = kind in ("unknown", "volume")
    odd = member("1.png", png(1) if has_content else b"", KINDS[kind], None if has_content else 12_345)
    (tmp_path / "s.tar").write_bytes(FIRST + odd + LAST + END)
    assert reasons(open_source(f"wds:{tmp_path}/s.tar")) == [None, "not_a_regular_file", None]


def test_sparse_members_of_every_format_are_counted(tmp_path: Path) -> None:
    """As GNU tar writes them; one without a map too. What lies behind them is read."""
    if (
        shutil.which("tar") is None
        or "GNU" not in subprocess.run(["tar", "--version"], capture_output=True, text=True).stdout
    ):
        pytest.skip("no GNU tar")
    with (tmp_path / "1.png").open("wb") as file:
        for place in range(0, 40):
            file.seek(place * 2**16)
            file.write(b"x" * 100)
    (tmp_path / "2.png").write_bytes(png(2))
    for options in (
        "--format=gnu",
        "--format=oldgnu",
        "--format=pax",
        "--sparse-version=0.0",
        "--sparse-version=0.1",
    ):
        subprocess.run(
            ["tar", "--format=pax", options, "-S", "-cf", "s.tar", "1.png", "2.png"], cwd=tmp_path, check=True
        )
        with tarfile.open(tmp_path / "s.tar") as tar:
            assert [info.issparse() for info in tar] == [True, False]
        assert reasons(open_source(f"wds:{tmp_path}/s.tar")) == ["not_a_regular_file", None]
    (tmp_path / "s.tar").write_bytes(FIRST + member("1.png", png(1), b"S") + LAST + END)
    assert reasons(open_source(f"wds:{tmp_path}/s.tar")) == [None, "not_a_regular_file", None]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tmp_path: Path, format: int) -> None:
    """Names, sizes and places, with long names, links, folders, and times that need pax."""
    with tarfile.open(tmp_path / "s.tar", "w", format=format, pax_headers={"comment": "é"}) as tar:
        tar.add(Path(__file__), "a/b/../c.py")
        for number in range(5):
            info = tarfile.TarInfo("f/" * 45 + "y" * 30 * (number % 3) + f"é{number}.png")
            info.size, info.mtime = 700 * number, 1.5 if format == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "z" * 90
        tar.addfile(info)
        info.name, info.type = "folder", tarfile.DIRTYPE
        tar.addfile(info)
    with tarfile.open(tmp_path / "s.tar") as tar, (tmp_path / "s.tar").open("rb") as file:
        expected = [(info.name, info.offset_data, info.size, info.isreg()) for info in tar]
        found = [
            (each.name, each.offset, each.size, each.isreg())
            for each in read_headers(file, (tmp_path / "s.tar").stat().st_size)
        ]
    assert found == expected and len(found) == 8


def test_a_chain_of_long_names_is_read_without_end_of_the_stack(tmp_path: Path) -> None:
    chain = member("n", b"1.png\0", tarfile.GNUTYPE_LONGNAME) * 3000
    (tmp_path / "s.tar").write_bytes(FIRST + chain + LAST + END)
    source = open_source(f"wds:{tmp_path}/s.tar")
    assert [source.id_of(index) for index in range(2)] == ["s.tar:0", "s.tar:1"]


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(FIRST + member("0.json", b"[" * 200_000) + END)
    with pytest.raises(UserError, match="s.tar: 0.json: the JSON is nested too deeply"):
        open_source(f"wds:{tmp_path}/s.tar")
