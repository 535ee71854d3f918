"""NIfTI against nibabel."""

import nibabel
import numpy as np
import pytest
import torch

from tests.vision_core.images.formats.volume_files import axial, nifti, volume
from vision_core.images.decode import count_parts, decode_image
from vision_core.images.pixel_options import PixelOptions, Scale
from vision_core.unreadable import UnreadableImage

ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "SAL", "ILP")


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
