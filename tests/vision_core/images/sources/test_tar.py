import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.open_source import open_source
from vision_core.images.sources import tar_shards
from vision_core.unreadable import MAX_FILE_BYTES, cure


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, members: list[tuple[str, bytes | tuple]], **options) -> str:
    """A tar of (name, bytes) or (name, (type, target))."""
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                tar.addfile(info)
    return f"wds:{path}"


def reason(source, index: int) -> str:
    with pytest.raises(UnreadableImage) as caught:
        source[index]
    return caught.value.reason


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_keys_labels_and_long_names(tmp_path: Path, format: int) -> None:
    long = "folder/" + "é" * 40 + "/" + "y" * 60
    members = [
        ("0.cls", b"7"),
        ("0.png", png(0)),
        ("0.json", b"{}"),
        (f"{long}.png", png(1)),
        (f"{long}.cls", b" 3\n"),
    ]
    source = open_source(write(tmp_path / "s.tar", members, format=format))
    assert source.labels == [7, 3]
    assert [source[index].id for index in range(2)] == ["s.tar:0", f"s.tar:{long}"]
    assert [int(source[index].image[0, 0, 0]) for index in range(2)] == [0, 1]


def test_labels_are_all_or_none(tmp_path: Path) -> None:
    assert (
        open_source(write(tmp_path / "s.tar", [("0.png", png(0)), ("0.cls", b"1"), ("1.png", png(1))])).labels
        is None
    )
    source = open_source(write(tmp_path / "t.tar", [("0.png", png(0)), ("0.cls", b"cat"), ("1.png", png(1))]))
    assert source.labels is None and source.description.endswith(", cls beside 1 of 2 images only, not used")


def test_members_are_never_paths(tmp_path: Path) -> None:
    """Traversal, links and devices: nothing is written, nothing outside of the shard is read."""
    (tmp_path / "secret.png").write_bytes(png(9))
    (tmp_path / "work").mkdir()
    members = [
        ("../escaped.png", png(1)),
        (f"{tmp_path}/absolute.png", png(2)),
        ("link.png", (tarfile.SYMTYPE, f"{tmp_path}/secret.png")),
        ("hard.png", (tarfile.LNKTYPE, "../secret.png")),
        ("device.png", (tarfile.CHRTYPE, "")),
        ("pipe.png", (tarfile.FIFOTYPE, "")),
    ]
    before = sorted(tmp_path.rglob("*"))
    source = open_source(write(tmp_path / "work/s.tar", members))
    assert [int(source[index].image[0, 0, 0]) for index in range(2)] == [1, 2]
    assert {reason(source, index) for index in range(2, 6)} == {"not_a_regular_file"}
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "work/s.tar"])


def test_caps(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tar_shards, "MAX_FILE_BYTES", 1000)
    source = open_source(write(tmp_path / "s.tar", [("0.png", bytes(1001)), ("1.png", png(1))]))
    assert reason(source, 0) == "file_too_large" and int(source[1].image[0, 0, 0]) == 1
    monkeypatch.setattr(tar_shards, "MAX_MEMBERS", 2)
    with pytest.raises(UserError, match="more than 2 members"):
        open_source(write(tmp_path / "t.tar", [(f"{number}.png", png(0)) for number in range(3)]))


def test_a_member_may_be_as_large_as_a_file(tmp_path: Path) -> None:
    """65 MiB of an array; one byte more than a picture may have is refused by its header."""
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        stream = io.BytesIO()
        np.save(stream, np.zeros((65 * 2**20 // 3 // 64, 64, 3), np.uint8))
        info = tarfile.TarInfo("0.npy")
        info.size = stream.tell()
        stream.seek(0)
        tar.addfile(info, stream)
    assert open_source(f"wds:{tmp_path}/s.tar")[0].image.shape[0] == 3
    info = tarfile.TarInfo("1.npy")
    for size, refused in ((MAX_FILE_BYTES, None), (MAX_FILE_BYTES + 1, "file_too_large")):
        info.size = size
        assert tar_shards._refusal(info) == refused
    assert f"{MAX_FILE_BYTES // 2**20} MiB are the most of a picture" in cure("file_too_large")


def test_bad_shards(tmp_path: Path) -> None:
    good = Path(
        write(tmp_path / "good.tar", [(f"{number}.png", png(number)) for number in range(6)]).removeprefix(
            "wds:"
        )
    ).read_bytes()
    assert len(open_source(f"wds:{tmp_path}/good.tar")) == 6
    damaged = bytearray(good)
    damaged[good.index(b"3.png")] = (
        0xFF  # tarfile alone would see the end of the archive here, and three images
    )
    cases = {
        "damaged": (bytes(damaged), r"damaged.tar is damaged at byte [\d,]+"),
        "cut": (
            good[: good.index(b"4.png") + 700],
            "cut.tar cannot be read as a plain .tar file: unexpected end of data",
        ),
        "gz": (gzip.compress(good), "gz.tar cannot be read as a plain .tar file: .*; gunzip"),
        "text": (b"no tar", "text.tar cannot be read as a plain .tar file"),
        "empty": (b"", "empty.tar cannot be read as a plain .tar file"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
        with pytest.raises(UserError, match=message) as caught:
            open_source(f"wds:{tmp_path}/{name}.tar")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"0 images in wds:.*none.tar \(looked for .jpg"):
        open_source(write(tmp_path / "none.tar", [("a.txt", b"text")]))
    with pytest.raises(UserError, match="two images have the key 'a'"):
        open_source(write(tmp_path / "twice.tar", [("a.png", png(0)), ("a.jpg", png(1))]))


def test_a_shard_that_shrank_is_truncated(tmp_path: Path) -> None:
    text = write(tmp_path / "s.tar", [("0.png", png(0))])
    source = open_source(text)
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:540])
    assert reason(source, 0) == "truncated"
    (tmp_path / "s.tar").unlink()
    assert reason(source, 0) == "missing"
