"""The automatic scale `?scale=auto`, the bands `?bands=`, and what a run says of its range."""

import io

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage, decode_image
from vision_core.images.open_source import open_source
from vision_core.images.pixel_options import PixelOptions, Scale, pixel_options_text
from vision_core.images.ranges import automatic_scale, range_notes
from vision_core.images.sampled import sample_stored
from vision_core.images.splits import open_splits

PICTURE = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture
def twelve_bits(tmp_path):
    """Grey of 12 bits in 16, as microscopes write it: ten files, and one that cannot be read."""
    for number in range(10):
        values = np.random.default_rng(number).integers(0, 4096, (24, 30)).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{number}.tif", values)
    (tmp_path / "bad.tif").write_bytes(b"II*\x00broken")
    return tmp_path


@pytest.fixture
def satellite(tmp_path):
    """Float32 of 4 bands with GDAL's nodata in a corner, written by rasterio."""
    for number in range(6):
        values = np.random.default_rng(number).normal(-12, 4, (4, 24, 30)).astype(np.float32)
        np.save(tmp_path / f"{number}.npy", np.where(np.arange(30) < 3, np.nan, values))
    return tmp_path


def test_missing_values_are_counted_and_left_out(satellite):
    sample = sample_stored(open_source(f"folder:{satellite}", 4), 100)
    values = np.concatenate([np.load(path).reshape(4, -1) for path in sorted(satellite.iterdir())], 1).astype(
        np.float64
    )
    assert sample.missing_share == pytest.approx(0.1)
    for band, expected in zip(sample.bands, values, strict=True):
        assert band.mean == pytest.approx(np.nanmean(expected), rel=1e-12) and band.std == pytest.approx(
            np.nanstd(expected), rel=1e-12
        )


def test_automatic_scale_is_its_rule_and_is_said(twelve_bits):
    source = open_source(f"folder:{twelve_bits}?scale=auto", 3)
    values = np.concatenate([tifffile.imread(path).ravel() for path in twelve_bits.glob("[0-9].tif")])
    high = float(f"{np.percentile(values, 99.9):.6g}")
    assert source.pixel_options.scale == Scale("values", 0.0, high)
    assert source.description.endswith(f"scale=auto: 0 to {high:,.6g} from 10 images")
    index = source.paths.index("3.tif")
    expected = (tifffile.imread(twelve_bits / "3.tif").astype(np.float64) / high).clip(0, 1)
    image = source[index].image
    assert image.dtype == torch.float32 and image.shape == (3, 24, 30)
    np.testing.assert_allclose(image[0], expected, rtol=0, atol=1e-6)
    by_hand = open_source(f"folder:{twelve_bits}?{pixel_options_text(source.pixel_options)}", 3)
    assert torch.equal(by_hand[index].image, image) and by_hand.fingerprint == source.fingerprint


def test_automatic_scale_begins_below_0_where_values_do(satellite):
    scale, count = automatic_scale(open_source(f"folder:{satellite}", 4), "here")
    values = np.concatenate([np.load(path).ravel() for path in satellite.iterdir()])
    low, high = np.nanpercentile(values, (0.1, 99.9))
    assert (
        count == 6
        and scale.low == pytest.approx(low, rel=1e-5)
        and scale.high == pytest.approx(high, rel=1e-5)
    )


def test_pictures_of_8_bits_keep_their_range_and_do_not_count(twelve_bits):
    alone = open_source(f"folder:{twelve_bits}?scale=auto", 3).pixel_options.scale
    for number in range(10):
        Image.new("L", (30, 24), 200).save(twelve_bits / f"grey{number}.png")
    both = open_source(f"folder:{twelve_bits}?scale=auto", 3)
    assert both.pixel_options.scale == alone
    assert both[both.paths.index("grey0.png")].image.unique().item() == pytest.approx(200 / 255)


def test_images_that_are_judged_are_read_as_those_that_were_learnt_from(tmp_path):
    for part, brightness in (("train", 1), ("test", 3)):
        (tmp_path / part / "cat").mkdir(parents=True)
        for number in range(4):
            values = brightness * np.random.default_rng(number).integers(0, 1000, (16, 16))
            tifffile.imwrite(tmp_path / part / "cat" / f"{number}.tif", values.astype(np.uint16))
    splits = open_splits(f"folder:{tmp_path}/{{split}}?scale=auto")
    assert splits.train.pixel_options == splits.test.pixel_options
    assert splits.test.description.endswith("as the images that were learnt from")


@pytest.mark.parametrize(
    "fill, message",
    [
        (0, "scale=auto found no range, its values are 0; give scale=LOW,HIGH"),
        (None, "found no readable image among"),
    ],
)
def test_where_there_is_no_range_it_is_one_line(tmp_path, fill, message):
    if fill is None:
        (tmp_path / "bad.tif").write_bytes(b"II*\x00broken")
    else:
        tifffile.imwrite(tmp_path / "a.tif", np.full((16, 16), fill, np.uint16))
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{tmp_path}?scale=auto", 1)


def test_a_stream_has_no_samples(tmp_path):
    datasets = pytest.importorskip("datasets")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}, features=features).to_parquet(
        str(tmp_path / "train.parquet")
    )
    with pytest.raises(
        UserError, match="scale=auto needs samples, which a stream has not; give scale=LOW,HIGH"
    ):
        open_source(f"hf:{tmp_path}?streaming=true&scale=auto")


def test_bands_are_those_that_rasterio_counts(tmp_path):
    values = np.random.default_rng(0).integers(0, 60000, (6, 20, 24)).astype(np.uint16)
    path = tmp_path / "scene.tif"
    with rasterio.open(path, "w", driver="GTiff", width=24, height=20, count=6, dtype="uint16") as file:
        file.write(values)
    with rasterio.open(path) as file:
        expected = file.read([4, 3, 2]).astype(np.float64) / 65535
    image = open_source(f"folder:{tmp_path}?bands=4,3,2/6&scale=full", 3)[0].image
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-6)
    one = open_source(f"folder:{tmp_path}?bands=6/6", 1)[0].image
    np.testing.assert_allclose(one[0], values[5] / 65535, rtol=0, atol=1e-6)


def test_bands_take_their_missing_values_with_them(tmp_path):
    values = np.ones((3, 10, 10), np.float32)
    values[2, 0] = np.nan
    np.save(tmp_path / "a.npy", values)
    sample = sample_stored(open_source(f"folder:{tmp_path}?bands=3,1/3", 2), 5)
    assert [band.missing for band in sample.bands] == [10, 0]


def test_files_with_another_number_of_bands_are_unreadable():
    stream = io.BytesIO()
    tifffile.imwrite(
        stream, np.zeros((4, 20, 24), np.uint16), photometric="minisblack", planarconfig="separate"
    )
    with pytest.raises(UnreadableImage, match="not_12_channels"):
        decode_image(stream.getvalue(), 12, PixelOptions(bands=(4, 3, 2), bands_of=12))


def test_bands_and_channels_must_be_equal(tmp_path):
    with pytest.raises(UserError, match="3 bands are chosen, and num_channels is 5; make them equal"):
        open_source(f"folder:{tmp_path}?bands=4,3,2/12", 5)


def test_a_run_says_where_images_are_nearly_black(twelve_bits):
    (note,) = range_notes(open_source(f"folder:{twelve_bits}", 1), 1, [0.03], [0.02])
    assert note.startswith("values use 6.2% of their full scale 0 to 65,535") and "add ?scale=40" in note
    assert range_notes(open_source(f"folder:{twelve_bits}?scale=4095", 1), 1, [0.5], [0.3]) == []


def test_a_run_says_where_values_are_far_from_what_they_are_normalised_by(satellite):
    notes = range_notes(open_source(f"folder:{satellite}", 4), 4, [0.0] * 4, [1.0] * 4)
    assert (
        len(notes) == 2
        and "values of band 1 have mean -12" in notes[0]
        and "set both as pretrain/data_stats.py proposes" in notes[0]
    )
    assert notes[1].startswith("10.00% of the values are missing (nodata or NaN)")
    assert len(range_notes(open_source(f"folder:{satellite}", 4), 4, [-12.0] * 4, [4.0] * 4)) == 1


def test_a_run_says_that_three_bands_without_a_scale_are_no_colours(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(290, 10, (3, 20, 20)).astype(np.float32))
    notes = range_notes(open_source(f"folder:{tmp_path}", 3), 3, *PICTURE)
    assert (
        "colour jitter, grayscale and solarize of RGB are left out" in notes[0]
        and "far from image_mean 0.485" in notes[1]
    )


def test_of_an_encoder_that_is_judged_neither_crops_nor_its_mean_can_be_chosen(tmp_path, twelve_bits):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(290, 10, (3, 20, 20)).astype(np.float32))
    (note,) = range_notes(open_source(f"folder:{tmp_path}", 3), 3, *PICTURE, is_trained=True)
    assert "far from image_mean 0.485" in note and note.endswith(
        "read them as the encoder's training did, by ?scale=LOW,HIGH"
    )
    (note,) = range_notes(open_source(f"folder:{twelve_bits}", 1), 1, [0.03], [0.02], is_trained=True)
    assert "images are nearly black: add ?scale=40" in note


def test_pictures_scenes_and_streams_cost_nothing(tmp_path, monkeypatch):
    for number in range(9):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
    source, read = open_source(f"folder:{tmp_path}"), []
    plain = type(source).read_bytes
    monkeypatch.setattr(
        type(source), "read_bytes", lambda self, index: read.append(index) or plain(self, index)
    )
    assert range_notes(source, 3, *PICTURE) == [] and len(read) <= 4
    assert range_notes(open_source("scenes?count=5"), 3, *PICTURE) == []
