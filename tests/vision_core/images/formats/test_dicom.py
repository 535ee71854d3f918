"""DICOM against pydicom's own modality and VOI functions, on its test files and on files that its
writer makes."""

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from vision_core.errors import UserError
from vision_core.images.decode import count_parts, decode_image, read_stored
from vision_core.images.formats import by_content as formats
from vision_core.images.open_source import open_source
from vision_core.images.pixel_options import PixelOptions, Scale
from vision_core.unreadable import UnreadableImage


def content(name: str) -> bytes:
    return Path(get_testdata_file(name, download=False)).read_bytes()


def written(
    values: np.ndarray,
    frames: int | None = None,
    photometric: str = "MONOCHROME2",
    bits: int = 16,
    **attributes,
) -> bytes:
    """A file by pydicom's writer: `[H, W]`, `[frames, H, W]` or `[H, W, 3]` of 8 or 16 bits."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        "1.2.840.10008.5.1.4.1.1.7",
        generate_uid(),
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    samples = 3 if photometric == "RGB" else 1
    dataset.Rows, dataset.Columns = values.shape[:2] if samples == 3 else values.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = samples, photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (8 * values.dtype.itemsize, bits, bits - 1)
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    if samples == 3:
        dataset.PlanarConfiguration = 0
    if frames:
        dataset.NumberOfFrames = frames
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def ct(**attributes) -> bytes:
    """16 x 16 pixels of -1024 to 3071 Hounsfield units, 12 bits."""
    stored = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)
    return written(stored, bits=12, RescaleSlope=1, RescaleIntercept=-1024, **attributes)


def shown(data: bytes) -> np.ndarray:
    """0 to 1 by pydicom's functions: the output of the window over its whole range, MONOCHROME1
    negative."""
    dataset = dcmread(io.BytesIO(data))
    low, high = (
        (-(2 ** (dataset.BitsStored - 1)), 2 ** (dataset.BitsStored - 1) - 1)
        if dataset.PixelRepresentation
        else (0, 2**dataset.BitsStored - 1)
    )
    slope, intercept = (float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0)))
    physical = apply_modality_lut(dataset.pixel_array, dataset)
    values = apply_voi_lut(physical, dataset)
    if "VOILUTSequence" in dataset:
        share = values / (2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1)
    else:
        share = (values - (low * slope + intercept)) / ((high - low) * slope)
    return 1 - share if dataset.PhotometricInterpretation == "MONOCHROME1" else share


WINDOWED = {
    "window": ct(WindowCenter=40, WindowWidth=400),
    "the first of two windows": ct(WindowCenter=[40, 600], WindowWidth=[400, 1500]),
    "exact": ct(WindowCenter=40, WindowWidth=400, VOILUTFunction="LINEAR_EXACT"),
    "sigmoid": ct(WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID"),
    "no window": ct(),
    "white is low": ct(WindowCenter=40, WindowWidth=400, PhotometricInterpretation="MONOCHROME1"),
    "white is low, sigmoid": ct(
        WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID", PhotometricInterpretation="MONOCHROME1"
    ),
    "white is low, no window": ct(PhotometricInterpretation="MONOCHROME1"),
    "of the library: MR": content("MR_small.dcm"),
    "of the library: run lengths": content("MR_small_RLE.dcm"),
    "of the library: big-endian": content("MR_small_bigendian.dcm"),
    "of the library: JPEG 2000": content("MR_small_jp2klossless.dcm"),
    "of the library: CT without a window": content("CT_small.dcm"),
}


@pytest.mark.parametrize("name", WINDOWED)
def test_one_channel_is_what_pydicom_shows(name: str) -> None:
    data = WINDOWED[name]
    expected = shown(data)
    assert np.abs(decode_image(data, 1)[0].numpy() - expected).max() < 1e-6
    levels = decode_image(data)
    assert (
        levels.dtype.is_floating_point is False
        and np.abs(levels[0].numpy() - expected * 255).max() <= 0.5 + 1e-3
    )


def test_a_table_of_values_of_interest() -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], list(range(4095, -1, -1))
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    data = written(
        np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16), bits=12, VOILUTSequence=[table]
    )
    assert np.abs(decode_image(data, 1)[0].numpy() - shown(data)).max() < 1e-6
    modality = Dataset()
    modality.LUTDescriptor, modality.LUTData, modality.ModalityLUTType = (
        [4096, 0, 16],
        [16 * value for value in range(4096)],
        "US",
    )
    modality["LUTDescriptor"].VR, modality["LUTData"].VR = "US", "US"
    data = written(np.arange(256, dtype=np.uint16).reshape(16, 16), bits=12, ModalityLUTSequence=[modality])
    assert np.allclose(
        decode_image(data, 1)[0].numpy(), np.arange(256).reshape(16, 16) * 16 / 65535, atol=1e-6
    )


def test_a_scale_speaks_of_physical_values() -> None:
    data = ct(WindowCenter=40, WindowWidth=400)
    physical = apply_modality_lut(pixel_array(io.BytesIO(data)), dcmread(io.BytesIO(data)))
    own = decode_image(data, 1, PixelOptions(Scale("values", -1000, 400)))
    assert np.allclose(own[0].numpy(), np.clip((physical + 1000) / 1400, 0, 1), atol=1e-6)
    full = decode_image(data, 1, PixelOptions(Scale("full")))
    assert np.allclose(full[0].numpy(), (physical + 1024) / 4095, atol=1e-6)
    negative = ct(PhotometricInterpretation="MONOCHROME1")
    own = decode_image(negative, 1, PixelOptions(Scale("values", -1000, 400)))
    assert np.allclose(own[0].numpy(), 1 - np.clip((physical + 1000) / 1400, 0, 1), atol=1e-6)


def test_padding_is_no_value() -> None:
    stored = np.full((16, 16), 100, dtype=np.int16)
    stored[:4] = -2000
    data = written(stored, PixelPaddingValue=-2000, RescaleSlope=2, RescaleIntercept=1)
    found = read_stored(data, 1)
    assert found.missing[0, :4].all() and not found.missing[0, 4:].any()
    assert set(decode_image(data, 1, PixelOptions(Scale("values", 0, 402))).unique().tolist()) == {0.5}


def test_colours() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    data = written(colours, photometric="RGB", bits=8)
    assert np.array_equal(decode_image(data).permute(1, 2, 0).numpy(), colours)
    luminance = colours @ np.array([0.299, 0.587, 0.114]) / 255
    assert np.abs(decode_image(data, 1)[0].numpy() - luminance).max() < 1e-6
    for name in (
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_rle.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "examples_ybr_color.dcm",
    ):
        data = content(name)
        frame = pixel_array(io.BytesIO(data), index=0)
        part = 0 if count_parts(data) > 1 else None
        assert np.array_equal(decode_image(data, part=part).permute(1, 2, 0).numpy(), frame), name
    data = content("examples_palette.dcm")
    palette = apply_color_lut(pixel_array(io.BytesIO(data)), dcmread(io.BytesIO(data)))
    assert np.array_equal(read_stored(data).values, np.moveaxis(palette, -1, 0))


def test_frames_are_images_each_with_its_own_window(tmp_path: Path) -> None:
    frames = np.arange(3 * 256, dtype=np.uint16).reshape(3, 16, 16)
    groups = []
    for number in range(3):
        window, rescale, group = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = (
            128 + 256 * number,
            256,
            "LINEAR_EXACT",
        )
        rescale.RescaleSlope, rescale.RescaleIntercept = 1, 10 * number
        group.FrameVOILUTSequence, group.PixelValueTransformationSequence = [window], [rescale]
        groups.append(group)
    data = written(frames, frames=3, PerFrameFunctionalGroupsSequence=groups)
    assert count_parts(data) == 3
    with pytest.raises(UnreadableImage, match="several_images"):
        decode_image(data)
    for number in range(3):
        expected = np.clip((frames[number] + 10.0 * number - 256 * number) / 256, 0, 1)
        assert np.allclose(decode_image(data, 1, part=number)[0].numpy(), expected, atol=1e-6)
    for folder, values in (("a", data), ("b", ct())):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scan.dcm").write_bytes(values)
    source = open_source(str(tmp_path))
    assert [source.id_of(index) for index in range(4)] == [
        "a/scan.dcm#0",
        "a/scan.dcm#1",
        "a/scan.dcm#2",
        "b/scan.dcm",
    ]
    assert source.labels == [0, 0, 0, 1] and source.description.startswith("4 images in 2 files under")
    assert [int(source[index].image.max()) for index in range(3)] == [254, 255, 255]


def test_files_without_an_ending_and_those_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(ct())
    (tmp_path / "1.2.840.113619.2.55.3").write_bytes(ct())
    (tmp_path / "report.dcm").write_bytes(content("reportsi.dcm"))
    (tmp_path / "README").write_text("no image")
    (tmp_path / "empty").write_bytes(b"")
    source = open_source(str(tmp_path), 1)
    assert source.paths == ["1.2.840.113619.2.55.3", "IM0001"] and source[0].image.shape == (1, 16, 16)
    assert "left out: 2 without an extension" in source.description and source.description.endswith(
        "1 files without a picture"
    )


@pytest.mark.parametrize(
    "data, reason",
    [
        (content("image_dfl.dcm"), "unsupported_dicom deflated"),
        (content("JPEGLSNearLossless_16.dcm"), "needs_pylibjpeg"),
        (content("JPGExtended.dcm"), "needs_pylibjpeg"),
        (content("MR_truncated.dcm"), "corrupt"),
        (content("rtplan.dcm"), "no_pixels"),
        (written(np.zeros((4, 16), np.uint16)), "too_small"),
        (ct(Rows=60000, Columns=60000), "too_large"),
        (ct(PhotometricInterpretation="HSV"), "unsupported_dicom HSV"),
        (ct(NumberOfFrames=7), "several_images"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 400, "no_pixels"),
    ],
)
def test_what_is_not_read_has_a_reason(data: bytes, reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnreadableImage) as caught:
            decode_image(data)
    assert caught.value.reason == reason


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        UserError, match=r"DICOM needs the package pydicom; pip install 'vision-encoder-fusion\[scientific\]'"
    ):
        decode_image(WINDOWED["window"])
    assert formats.why_left_out(".dcm") == "needs pydicom"
