"""FITS against astropy."""

import gzip
import io
from pathlib import Path

import numpy as np
from astropy.io import fits

from tests.vision_core.images.formats.volume_files import fits_file, volume
from vision_core.images.decode import count_parts, decode_image, read_stored
from vision_core.images.open_source import open_source


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
