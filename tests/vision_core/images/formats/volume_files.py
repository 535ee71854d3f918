"""Files of NIfTI and FITS in memory, and what nibabel reads of them."""

import io

import nibabel
import numpy as np
from astropy.io import fits


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


def fits_file(*hdus) -> bytes:
    stream = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(stream)
    return stream.getvalue()
