"""What folders make of files that hold several images, or a compressed one."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.vision_core.images.formats.volume_files import axial, nifti, volume
from vision_core.errors import UserError
from vision_core.images.decode import decode_image
from vision_core.images.formats import volumes
from vision_core.images.open_source import open_source
from vision_core.unreadable import UnreadableImage


def test_a_compressed_volume_is_read_once_for_all_its_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = nifti(volume(9, 10, 5))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scan.nii.gz").write_bytes(gzip.compress(data))
    source = open_source(str(tmp_path), 1)
    assert source.id_of(7) == "b/scan.nii.gz#2" and source.labels == [0] * 5 + [1] * 5
    reads = []
    monkeypatch.setattr(volumes, "_read", lambda file, read=volumes._read: reads.append(1) or read(file))
    for index in range(10):
        assert np.array_equal(source[index].image[0].numpy(), axial(data, index % 5))
    assert len(reads) == 2
    assert np.array_equal(decode_image(gzip.compress(data), 1, part=2)[0].numpy(), axial(data, 2))
    (tmp_path / "a/scan.nii.gz").write_bytes(gzip.compress(nifti(volume(9, 10, 5) + 1)))
    assert not np.array_equal(source[0].image[0].numpy(), axial(data, 0)), (
        "a file that is written anew is read anew"
    )


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "CACHE_BYTES", 5000)
    for number in range(4):
        (tmp_path / f"{number}.nii").write_bytes(nifti(volume(9, 10, 9)))
    source = open_source(str(tmp_path), 1)
    for index in range(len(source)):
        assert source[index] is not None
        assert sum(map(len, volumes._cache.values())) <= 5000
    monkeypatch.setattr(volumes, "MAX_VOLUME_BYTES", 500)
    with pytest.raises(UnreadableImage, match="file_too_large"):
        decode_image(gzip.compress(nifti(volume(9, 10, 9))), 1, part=0)


def test_archives_and_stacks_of_pages_are_expanded_too(tmp_path: Path) -> None:
    arrays = {"b": volume(10, 12, dtype=np.uint8), "a": volume(10, 12, dtype=np.uint8)}
    np.savez(tmp_path / "0.npz", **arrays)
    pages = volume(5, 10, 12, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "1.tif", pages, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "2.tif", pages, imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(
        tmp_path / "3.tif", pages[0], description="a single page of no stack, with words that are long enough"
    )
    source = open_source(str(tmp_path), 1)
    assert source.paths == ["0.npz"] * 2 + ["1.tif"] * 5 + ["2.tif"] * 5 + ["3.tif"]
    assert np.array_equal(source[0].image[0].numpy(), (arrays["a"] / 255).astype(np.float32))
    for index in range(5):
        for first in (2, 7):
            assert np.array_equal(
                source[first + index].image[0].numpy(), (pages[index] / 65535).astype(np.float32)
            )


def test_masks_beside_files_of_several_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/scan.nii").write_bytes(nifti(volume(9, 10, 5)))
    with pytest.raises(
        UserError,
        match=r"mask=.*: scan.nii holds several images, and a mask belongs to one; save every image as its own",
    ):
        open_source(f"{tmp_path}/images?mask={tmp_path}/masks", 1)
    (tmp_path / "images/scan.nii").write_bytes(nifti(volume(16, 24, 1)))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((24, 16), 3, np.uint8)).save(tmp_path / "masks/scan.png")
    source = open_source(f"{tmp_path}/images?mask={tmp_path}/masks&scale=4000")
    assert source.annotations.mask(0).unique().tolist() == [3]


def test_a_list_repeats_its_labels(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(nifti(volume(9, 10, 3)))
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "list.txt").write_text("scan.nii\t7\n0.png\t4\n")
    source = open_source(f"list:{tmp_path}/list.txt", 1)
    assert source.labels == [7, 7, 7, 4] and source.id_of(2) == "scan.nii#2" and source.id_of(3) == "0.png"
    assert source.fingerprint != open_source(f"list:{tmp_path}/list.txt", 3).fingerprint


def test_a_damaged_header_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "0.nii").write_bytes(nifti(volume(9, 10, 3))[:100])
    (tmp_path / "1.nii.gz").write_bytes(b"\x1f\x8b\x08nothing")
    source = open_source(str(tmp_path), 1)
    for index, reason in enumerate(["not_an_image", "truncated"]):
        with pytest.raises(UnreadableImage, match=reason):
            source[index]


def test_what_was_left_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "0.png")
    for name in ("a.txt", "b.txt", "slide.svs", "d.mp4", "e.xyz.gz"):
        (tmp_path / name).write_bytes(b"")
    description = open_source(str(tmp_path)).description
    assert description == (
        f"1 images under {tmp_path}; left out: 2 .txt, 1 .gz, 1 .mp4, 1 .svs (whole slides are read by ?tile=256)"
    )
