"""Range and missing values: `?scale=`, `?nodata=`, GDAL's tag, NaN; and `?max_pixels=`."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage, decode_image, read_stored
from vision_core.images.open_source import open_source
from vision_core.images.pixel_options import PixelOptions, Scale, take_pixel_options

rasterio = pytest.importorskip("rasterio")
tifffile = pytest.importorskip("tifffile")
DICE = np.random.default_rng(0)
ANYWHERE = rasterio.Affine(1, 0, 5, 0, -1, 50)
TWELVE_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
COLOUR = DICE.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def options(text: str) -> PixelOptions:
    """As a user writes them behind a source."""
    return take_pixel_options("x", dict(item.split("=") for item in text.split("&")))[0]


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def encoded(values: np.ndarray, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format)
    return stream.getvalue()


def geotiff(values: np.ndarray, **written) -> bytes:
    sizes = {
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
        "transform": ANYWHERE,
    }
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", **sizes, **written) as file:
            file.write(values)
        return memory.read()


def tiff(values: np.ndarray, **written) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **written)
    return stream.getvalue()


def reason(data: bytes, num_channels: int = 3, text: str | None = None) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data, num_channels, options(text)) if text else decode_image(data, num_channels)
    return caught.value.reason


@pytest.mark.parametrize(
    "data", [encoded(TWELVE_BITS), encoded(TWELVE_BITS, "TIFF"), geotiff(TWELVE_BITS[None]), npy(TWELVE_BITS)]
)
def test_a_scale_keeps_the_grey_levels_of_twelve_bits_at_three_channels(data: bytes) -> None:
    scaled = decode_image(data, 3, options("scale=4095"))
    assert scaled.dtype == torch.float32 and scaled.shape == (3, 64, 64)
    assert len(scaled[1].unique()) == 4096
    np.testing.assert_allclose(scaled[2].numpy(), TWELVE_BITS / 4095, atol=1e-6)
    assert len(decode_image(data, 1).unique()) == 4096
    assert len(decode_image(data).unique()) == 17


def test_a_scale_of_two_values_cuts_at_both() -> None:
    values = np.linspace(-2000, 2000, 600, dtype=np.int16).reshape(20, 30)
    scaled = decode_image(npy(values), 3, options("scale=-1000,400"))
    np.testing.assert_allclose(scaled[0].numpy(), ((values + 1000.0) / 1400).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "uint32", "float32", "float64"])
def test_percentiles_are_those_of_each_image(dtype: str) -> None:
    values = (DICE.gamma(2, 2000, (3, 40, 50))).clip(0, 60000).astype(dtype)
    low, high = np.percentile(values, [1, 99])
    scaled = decode_image(npy(values), 3, options("scale=p1,p99"))
    np.testing.assert_allclose(
        scaled.numpy(), ((values.astype(np.float64) - low) / (high - low)).clip(0, 1), atol=1e-6
    )


def test_percentiles_do_not_count_what_is_missing() -> None:
    values = DICE.normal(1000, 100, (3, 40, 50)).astype(np.float32)
    holes = DICE.random(values.shape) < 0.4
    low, high = np.percentile(values[~holes], [2, 98])
    scaled = decode_image(
        npy(np.where(holes, np.float32(-9999), values)), 3, options("scale=p2,p98&nodata=-9999")
    )
    np.testing.assert_allclose(
        scaled.numpy()[~holes], ((values - low) / (high - low)).clip(0, 1)[~holes], atol=1e-5
    )


def test_an_image_of_one_value_has_no_percentiles_apart_and_is_black() -> None:
    assert decode_image(
        npy(np.full((16, 16), 7, np.uint16)), 3, options("scale=p1,p99")
    ).unique().tolist() == [0]


def test_the_full_scale_is_that_of_the_type() -> None:
    twelve = geotiff(TWELVE_BITS[None], nbits=12)
    np.testing.assert_allclose(
        decode_image(twelve, 3, options("scale=full"))[0].numpy(), TWELVE_BITS / 4095, atol=1e-6
    )
    signed = np.array([[-32768, 0, 32767]], np.int16).repeat(16, 0).repeat(4, 1)
    assert decode_image(npy(signed), 3, options("scale=full"))[0, 0, ::4].tolist() == pytest.approx(
        [0, 32768 / 65535, 1]
    )
    assert reason(npy(signed.astype(np.float32)), 3, "scale=full") == "no_full_scale float32"


def test_pictures_of_eight_bits_keep_their_range_under_every_scale() -> None:
    for text in ("scale=4095", "scale=p1,p99", "scale=full", "scale=-5,7"):
        for data in (
            encoded(COLOUR),
            geotiff(COLOUR.transpose(2, 0, 1)),
            geotiff(COLOUR.transpose(2, 0, 1), interleave="band"),
        ):
            image = decode_image(data, 3, options(text))
            assert image.dtype == torch.float32
            np.testing.assert_allclose(image.numpy(), COLOUR.transpose(2, 0, 1) / 255, atol=1e-6)


def test_white_stays_white_where_it_is_zero() -> None:
    data = tiff(TWELVE_BITS, photometric="miniswhite")
    np.testing.assert_allclose(
        decode_image(data, 3, options("scale=4095"))[0].numpy(), 1 - TWELVE_BITS / 4095, atol=1e-6
    )


def test_a_scaled_tiff_is_turned_as_the_same_picture_without_a_scale_is() -> None:
    values = DICE.integers(0, 65536, (3, 16, 24), dtype=np.uint16)
    for turn in range(1, 9):
        data = tiff(values.transpose(1, 2, 0), photometric="rgb", extratags=[(274, "H", 1, turn, True)])
        scaled = decode_image(data, 3, options("scale=full"))
        assert torch.equal((scaled * 65535).round().int() >> 8, decode_image(data).int())


BANDS = DICE.normal(500, 50, (4, 30, 40)).astype(np.float32)
HOLES = DICE.random(BANDS.shape) < 0.2
MEANS = np.array([band[~hole].mean(dtype=np.float64) for band, hole in zip(BANDS, HOLES, strict=True)])
FILLED = np.where(HOLES, MEANS[:, None, None], BANDS)


def marked(value: float) -> np.ndarray:
    return np.where(HOLES, np.float32(value), BANDS)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (geotiff(marked(-9999), nodata=-9999), "max_pixels=9999"),
        (geotiff(marked(-9999), nodata=-9999, interleave="band", compress="deflate", predictor=3), "max_pixels=9999"),
        (geotiff(marked(-3.4028234663852886e38), nodata=-3.4028234663852886e38), "max_pixels=9999"),
        (geotiff(marked(np.nan), nodata=np.nan), "max_pixels=9999"),
        (geotiff(marked(0.1), nodata=0.1), "max_pixels=9999"),
        (geotiff(marked(np.nan)), "max_pixels=9999"),
        (npy(marked(np.nan)), "max_pixels=9999"),
        (npy(marked(-9999)), "nodata=-9999"),
        (npy(marked(0.1)), "nodata=0.1"),
        (geotiff(np.where(np.arange(40) % 2, marked(-9999), marked(-1)), nodata=-9999), "nodata=-1"),
    ],
)  # fmt: skip
def test_what_is_missing_becomes_the_mean_of_its_band(data: bytes, text: str) -> None:
    image = decode_image(data, 4, options(text))
    np.testing.assert_allclose(image.numpy(), FILLED, rtol=1e-6)
    assert np.array_equal(read_stored(data, 4, options(text)).missing, HOLES)


def test_nodata_of_whole_numbers() -> None:
    values = DICE.integers(1, 256, (3, 24, 32), dtype=np.uint8)
    values[1, 3, 4] = values[2, :9] = 0
    expected = values.copy()
    expected[1, 3, 4] = np.rint(values[1][values[1] > 0].mean())
    expected[2, :9] = np.rint(values[2, 9:].mean())
    assert np.array_equal(decode_image(geotiff(values, nodata=0)).numpy(), expected)
    for data in (encoded(values.transpose(1, 2, 0)), npy(values), geotiff(values)):
        assert np.array_equal(decode_image(data).numpy(), values)
        assert np.array_equal(decode_image(data, 3, options("nodata=0")).numpy(), expected)
    assert read_stored(geotiff(values, nodata=0)).missing.sum(axis=(1, 2)).tolist() == [0, 1, 9 * 32]


def test_a_nodata_value_that_the_type_cannot_hold_marks_nothing() -> None:
    values = np.full((16, 16), 55537, np.uint16)  # -9999 in the bits of uint16
    assert read_stored(npy(values), 1, options("nodata=-9999")).missing is None
    assert read_stored(npy(values.astype(np.float32)), 1, options("nodata=-9999")).missing is None
    assert read_stored(tiff(values, extratags=[(42113, "s", 0, "-9999", True)]), 1).missing is None


def test_an_image_without_any_value_is_refused() -> None:
    empty = marked(-9999).copy()
    empty[2] = -9999
    assert reason(geotiff(empty, nodata=-9999), 4) == "nodata_only band 3"
    assert reason(npy(np.full((16, 16), np.nan, np.float32)), 1) == "nodata_only"
    assert reason(npy(np.full((16, 16), np.nan, np.float32)), 3, "scale=p1,p99") == "nodata_only"
    assert reason(encoded(np.zeros((16, 16), np.uint8)), 3, "nodata=0") == "nodata_only"
    assert reason(npy(marked(np.inf)), 4) == "not_finite"
    assert reason(npy(marked(np.inf)), 4, "scale=1") == "not_finite"


def test_a_photograph_of_108_megapixels_is_read_where_the_source_allows_it() -> None:
    stream = io.BytesIO()
    Image.new("L", (12_000, 9_000), 200).save(stream, "JPEG")
    assert reason(stream.getvalue()) == "too_large"
    assert reason(stream.getvalue(), 3, "max_pixels=107999999") == "too_large"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_image(stream.getvalue(), 1, options("max_pixels=110000000"))
    assert image.shape == (1, 9_000, 12_000)
    assert image[0, ::999, ::999].unique().tolist() == pytest.approx([200 / 255])


def test_max_pixels_holds_in_every_format() -> None:
    values = np.zeros((32, 32), np.uint16)
    for data in (
        encoded(values),
        encoded(values.astype(np.uint8), "GIF"),
        geotiff(values[None]),
        geotiff(values[None], nodata=7),
        npy(values),
    ):
        assert reason(data, 1, "max_pixels=1023") == "too_large"
        assert decode_image(data, 1, options("max_pixels=1024")).shape == (1, 32, 32)


def test_the_options_of_a_source_reach_the_decoder_and_its_fingerprint(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(TWELVE_BITS))
    texts = ["", "?scale=4095", "?scale=p1,p99", "?nodata=0", "?max_pixels=5000"]
    sources = [open_source(f"folder:{tmp_path}{text}") for text in texts]
    assert torch.equal(
        sources[1][0].image, decode_image(encoded(TWELVE_BITS), 3, PixelOptions(Scale("values", 0, 4095)))
    )
    fingerprints = {source.fingerprint for source in [*sources, open_source(str(tmp_path), 1)]}
    assert len(fingerprints) == len(texts) + 1
    assert open_source(f"folder:{tmp_path}?scale=4095").fingerprint == sources[1].fingerprint


@pytest.mark.parametrize(
    "text",
    ["scale=4095,0", "scale=p99,p1", "scale=p1", "scale=p1,99", "scale=white", "nodata=none", "max_pixels=0"],
)
def test_an_option_that_is_not_possible_is_named(text: str) -> None:
    with pytest.raises(UserError, match=text.partition("=")[0]):
        options(text)
