"""NIfTI against nibabel, FITS against astropy, and what folders make of files that hold several
images."""

import gzip
import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from astropy.io import fits
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.decode import count_parts, decode_image, read_stored
from vision_core.images.formats import volumes
from vision_core.images.open_source import open_source
from vision_core.images.pixel_options import PixelOptions, Scale
from vision_core.unreadable import UnreadableImage

ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "SAL", "ILP")


def nifti(
    array: np.ndarray, orientation: str = "RAS", kind: type = nibabel.Nifti1Image, slope: tuple | None = None
) -> bytes:
    volume = kind(array, np.eye(4))
    if slope:
        volume.header.set_slope_inter(*slope)
    target = nibabel.orientations.axcodes2ornt(orientation)
    change = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), target)
    return volume.as_reoriented(change).to_bytes()


def axial(data: bytes, height: int, time: int = 0, kind: type = nibabel.Nifti1Image) -> np.ndarray:
    """A slice by nibabel, rows to the back and columns to the left."""
    canonical = nibabel.as_closest_canonical(kind.from_bytes(data)).get_fdata()
    volume = canonical[..., time] if canonical.ndim == 4 else canonical
    return volume[::-1, ::-1, height].T


def volume(*shape: int, dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, shape).astype(dtype)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_slices_are_those_of_nibabel_in_every_orientation(orientation: str, kind: type) -> None:
    data = nifti(volume(9, 10, 11), orientation, kind)
    assert count_parts(data) == 11
    for height in (0, 4, 10):
        slice_of_ours = decode_image(data, 1, part=height)[0].numpy()
        assert np.array_equal(slice_of_ours, axial(data, height, kind=kind))
    with pytest.raises(UnreadableImage, match="no_such_part"):
        decode_image(data, 1, part=11)


def test_slope_intercept_and_time() -> None:
    floats = nibabel.Nifti1Image(volume(9, 10, 3, 2).astype(np.float64) / 7, np.eye(4))
    floats.set_data_dtype(np.int16)  # nibabel's writer chooses slope and intercept
    data = floats.to_bytes()
    assert nibabel.Nifti1Image.from_bytes(data).dataobj.slope != 1
    assert count_parts(data, 1) == 6 and count_parts(data, 2) == 3
    assert np.allclose(decode_image(data, 1, part=4)[0].numpy(), axial(data, 1, 1), rtol=1e-6)
    both = decode_image(data, 2, part=1).numpy()
    assert np.allclose(both, np.stack([axial(data, 1, 0), axial(data, 1, 1)]), rtol=1e-6)


def test_grey_floats_need_a_scale_for_three_channels() -> None:
    data = nifti(volume(9, 10, 1, dtype=np.float32))
    with pytest.raises(UnreadableImage, match="unsupported_mode float32"):
        decode_image(data)
    image = decode_image(data, 3, PixelOptions(Scale("values", 0, 4000)))
    assert np.allclose(image[2].numpy(), axial(data, 0) / 4000, atol=1e-6)


def test_colours_and_what_is_no_volume() -> None:
    colours = np.zeros((9, 10, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = volume(9, 10, 2, dtype=np.uint8)
    data = nibabel.Nifti1Image(colours, np.eye(4)).to_bytes()
    image = decode_image(data, part=1)
    assert (
        image.dtype == torch.uint8
        and np.array_equal(image[1].numpy(), colours["G"][::-1, ::-1, 1].T)
        and not image[0].any()
    )
    with pytest.raises(UnreadableImage, match="unsupported_nifti complex64"):
        decode_image(nifti(volume(9, 10, 2, dtype=np.complex64)), part=0)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(nifti(volume(9, 10, 2))[:-100], 1, part=1)


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


def fits_file(*hdus) -> bytes:
    stream = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(stream)
    return stream.getvalue()


def test_images_of_a_fits_file_are_those_of_astropy() -> None:
    signed = fits.ImageHDU(volume(10, 12))
    unsigned = fits.ImageHDU(volume(10, 12, dtype=np.uint16))  # stored as int16 with BZERO
    floats = fits.ImageHDU(np.where(volume(10, 12) > 3000, np.nan, volume(10, 12) / 3).astype(np.float32))
    packed = fits.CompImageHDU(volume(10, 12), compression_type="RICE_1")
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1, 2])])
    data = fits_file(fits.PrimaryHDU(), signed, table, unsigned, floats, packed)
    assert count_parts(data, 1) == 4
    with fits.open(io.BytesIO(data)) as hdus:
        expected = [hdus[number].data for number in (1, 3, 4, 5)]
    for part, values in enumerate(expected):
        stored = read_stored(data, 1, part=part)
        assert np.array_equal(stored.values[0], values, equal_nan=True)
        assert (stored.missing is None) == (part != 2)
    assert np.array_equal(decode_image(data, 1, part=1)[0].numpy(), (expected[1] / 65535).astype(np.float32))
    filled = decode_image(data, 1, part=2)[0].numpy()
    assert np.allclose(
        filled,
        np.where(np.isnan(expected[2]), np.nanmean(expected[2], dtype=np.float64), expected[2]),
        rtol=1e-6,
    )


def test_blank_scale_and_offset() -> None:
    hdu = fits.PrimaryHDU(volume(10, 12))
    hdu.data[0] = -32768
    data = bytearray(fits_file(hdu))
    header = fits.Header(
        {
            "SIMPLE": True,
            "BITPIX": 16,
            "NAXIS": 2,
            "NAXIS1": 12,
            "NAXIS2": 10,
            "BSCALE": 0.5,
            "BZERO": 10.0,
            "BLANK": -32768,
        }
    )
    data = header.tostring().encode() + bytes(data[2880:])
    with fits.open(io.BytesIO(data)) as hdus:
        expected = hdus[0].data
    stored = read_stored(data, 1)
    assert np.isnan(expected[0]).all() and stored.missing[0, 0].all() and not stored.missing[0, 1:].any()
    assert np.array_equal(stored.values[0], expected.astype(np.float32), equal_nan=True)


def test_cubes_are_bands_or_images(tmp_path: Path) -> None:
    cube = volume(4, 10, 12)
    data = fits_file(fits.PrimaryHDU(cube))
    assert count_parts(data, 4) == 1 and count_parts(data, 1) == 4
    assert np.array_equal(decode_image(data, 4).numpy(), cube)
    assert np.array_equal(decode_image(data, 1, part=3)[0].numpy(), cube[3])
    (tmp_path / "a.fits").write_bytes(data)
    (tmp_path / "b.fits.gz").write_bytes(gzip.compress(data))
    (tmp_path / "c.fits").write_bytes(
        fits_file(fits.PrimaryHDU(), fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])]))
    )
    source = open_source(str(tmp_path), 1)
    assert [source.id_of(index) for index in (0, 3, 4, 7)] == [
        "a.fits#0",
        "a.fits#3",
        "b.fits.gz#0",
        "b.fits.gz#3",
    ]
    assert len(source) == 8 and np.array_equal(source[6].image[0].numpy(), cube[2])
    assert len(open_source(str(tmp_path), 4)) == 2 and source.description.endswith(
        "1 files without a picture"
    )


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


@pytest.mark.parametrize("ending", ["heic", "avif"])
def test_heic_and_avif_are_decoded_like_other_pictures(tmp_path: Path, ending: str) -> None:
    import pillow_heif

    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (48, 1))
    picture = Image.fromarray(np.stack([ramp, ramp[:, ::-1], ramp], axis=-1))
    exif = Image.Exif()
    exif[0x0112] = 6
    if ending == "avif":
        picture.save(tmp_path / "0.avif", quality=100, subsampling="4:4:4", exif=exif)
    else:
        pillow_heif.from_pillow(picture).save(
            tmp_path / "0.heic", quality=-1, chroma=444, exif=exif.tobytes()
        )
    source = open_source(str(tmp_path))
    upright = np.asarray(picture.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert source[0].image.shape == (3, 32, 48)
    assert np.abs(source[0].image.permute(1, 2, 0).numpy() - upright).max() <= 4
    assert open_source(str(tmp_path), 1)[0].image.shape == (1, 32, 48)
    with pytest.raises(UnreadableImage, match="not_5_channels"):
        open_source(str(tmp_path), 5)[0]
