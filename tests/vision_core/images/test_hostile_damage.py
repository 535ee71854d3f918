"""Image files of every format, damaged at many places: each is an image or a reason, in bounded time
and memory, and nothing is written on the terminal."""

import io
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.image_files import outcomes, saved, smooth

DAMAGES = 12

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory in /proc")


def by_pillow() -> dict[str, bytes]:
    colour, exif = Image.fromarray(smooth(3)), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    files = {
        "jpeg": saved(colour, "JPEG", exif=exif),
        "jpeg_progressive": saved(colour, "JPEG", progressive=True),
        "png": saved(colour, "PNG", exif=exif),
        "webp": saved(colour, "WEBP", exif=exif),
        "webp_animated": saved(colour, "WEBP", save_all=True, append_images=[colour.rotate(90)]),
        "gif": saved(colour, "GIF", save_all=True, append_images=[colour.rotate(90)]),
        "bmp": saved(colour, "BMP"),
        "tiff_fax": saved(colour.convert("1"), "TIFF", compression="group4"),
    }
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files[f"tiff_{compression}"] = saved(colour, "TIFF", compression=compression)
    return files | ({"avif": saved(colour, "AVIF")} if "AVIF" in Image.SAVE else {})


def by_imagecodecs() -> dict[str, bytes]:
    import imagecodecs

    deep = {bands: smooth(bands, dtype=np.uint16, top=60_000) for bands in (2, 3, 4)}
    return {f"png_16_bits_{bands}": imagecodecs.png_encode(values) for bands, values in deep.items()}


def by_tifffile() -> dict[str, bytes]:
    import tifffile

    def written(values: np.ndarray, **options) -> bytes:
        stream = io.BytesIO()
        tifffile.imwrite(stream, values, **options)
        return stream.getvalue()

    grey = smooth(1, dtype=np.uint16, top=4000)
    return {
        "tiff_grey": written(grey),
        "tiff_tiles": written(
            smooth(3, dtype=np.uint16),
            photometric="rgb",
            compression="deflate",
            tile=(16, 16),
            predictor=True,
        ),
        "tiff_zstd": written(smooth(3), photometric="rgb", compression="zstd", bigtiff=True),
        "tiff_imagej": written(np.stack([grey] * 3), imagej=True, metadata={"axes": "CYX"}),
        "tiff_ome": written(np.stack([grey] * 3), ome=True, metadata={"axes": "CYX"}),
    }


def by_rasterio() -> dict[str, bytes]:
    from rasterio.io import MemoryFile

    values = smooth(3, dtype=np.uint16, top=4000).transpose(2, 0, 1)
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore")  # that the file is nowhere on earth
        with memory.open(
            driver="GTiff",
            width=48,
            height=48,
            count=3,
            dtype="uint16",
            nodata=0,
            compress="lzw",
            interleave="band",
        ) as file:
            file.write(values)
        return {"tiff_rasterio": memory.read()}


def by_pydicom() -> dict[str, bytes]:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = (
        CTImageStorage,
        "1.2.3",
        ExplicitVRLittleEndian,
    )
    scan = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    scan.SOPClassUID, scan.SOPInstanceUID, scan.PhotometricInterpretation, scan.SamplesPerPixel = (
        CTImageStorage,
        "1.2.3",
        "MONOCHROME2",
        1,
    )
    scan.Rows = scan.Columns = 48
    scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 12, 11, 0
    scan.RescaleSlope, scan.RescaleIntercept, scan.WindowCenter, scan.WindowWidth = (1, -1024, 40, 400)
    scan.PixelData = smooth(1, dtype=np.uint16, top=4000).tobytes()
    files = {}
    for name in ("dicom", "dicom_run_lengths"):
        if name == "dicom_run_lengths":
            scan.compress(RLELossless, generate_instance_uid=False)
        stream = io.BytesIO()
        scan.save_as(stream, enforce_file_format=True)
        files[name] = stream.getvalue()
    return files


def by_others() -> dict[str, bytes]:
    import gzip

    import nibabel
    import pillow_heif
    from astropy.io import fits

    volume = nibabel.Nifti1Image(smooth(4, 32, np.int16, 4000), np.diag([-1, -1, 2, 1.0])).to_bytes()
    files = {
        "nifti": volume,
        "nifti_gz": gzip.compress(volume, mtime=0),
        "nifti_2": nibabel.Nifti2Image(smooth(4, 32), np.eye(4)).to_bytes(),
    }
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(smooth(3))).save(stream)
    files["heic"] = stream.getvalue()
    for name, hdu in (
        ("fits", fits.PrimaryHDU(smooth(1, dtype=np.uint16, top=4000))),
        ("fits_rice", fits.CompImageHDU(smooth(1, dtype=np.int16))),
    ):
        stream = io.BytesIO()
        fits.HDUList([hdu] if name == "fits" else [fits.PrimaryHDU(), hdu]).writeto(stream)
        files[name] = stream.getvalue()
    for name, save in (("npy", np.save), ("npz", np.savez_compressed)):
        stream = io.BytesIO()
        save(stream, smooth(3))
        files[name] = stream.getvalue()
    return files


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Cut, or some bytes near the head or the end set to 0 or 255, flipped, turned around or drawn
    anew."""
    if dice.random() < 0.15:
        return data[: dice.randrange(len(data))]
    content = bytearray(data)
    head = min(len(content), dice.choice([64, 256, 1024, len(content)]))
    way = dice.randrange(5)
    for _ in range(dice.choice([1, 2, 4])):
        place, width = dice.randrange(head), dice.choice([1, 2, 4, 8])
        old = bytes(content[place : place + width])
        flipped = bytes([old[0] ^ 1 << dice.randrange(8)]) + old[1:]
        content[place : place + width] = [
            bytes(len(old)),
            b"\xff" * len(old),
            flipped,
            old[::-1],
            dice.randbytes(len(old)),
        ][way]
    return bytes(content)


def test_seeded_damage_of_every_format_is_an_image_or_a_reason(tmp_path: Path) -> None:
    for package in ("imagecodecs", "tifffile", "rasterio", "pydicom", "nibabel", "astropy", "pillow_heif"):
        pytest.importorskip(package)
    files: dict[str, bytes] = {}
    for write in (by_pillow, by_imagecodecs, by_tifffile, by_rasterio, by_pydicom, by_others):
        files |= write()
    cases = {
        f"{name}-{seed:02}": damaged(data, random.Random(f"{name} {seed}"))
        for name, data in files.items()
        for seed in range(DAMAGES)
    }
    whole = outcomes(tmp_path / "whole", files, "all")
    assert {(found[0] or "read").split()[0] for found in whole.values()} == {
        "read",
        "several_images",
        "unsupported_mode",
    }
    reasons = outcomes(tmp_path / "cases", cases, "all")
    assert len(reasons) == len(cases) >= 380
    refused = sum(found[0] is not None for found in reasons.values())
    assert 100 < refused < len(cases) - 60  # the faults fired, and readers read
