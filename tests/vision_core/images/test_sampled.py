import numpy as np
import pytest
from PIL import Image

from vision_core.images.open_source import open_source
from vision_core.images.ranges import usual_range
from vision_core.images.sampled import BandStatistics, sample_stored


def arrays(count, shape=(3, 24, 30), seed=0):
    generator = np.random.default_rng(seed)
    return [generator.gamma(2.0, 300.0 + 50 * number, shape).astype(np.uint16) for number in range(count)]


def test_statistics_are_numpys_over_all_pixels(tmp_path):
    images = arrays(12)
    for number, image in enumerate(images):
        np.save(tmp_path / f"{number}.npy", image)
    sample = sample_stored(open_source(f"folder:{tmp_path}", 3), 100)
    together = np.stack(images, 1).astype(np.float64).reshape(3, -1)
    for number, (band, values) in enumerate(zip(sample.bands, together, strict=True)):
        assert (band.least, band.greatest, band.count, band.missing) == (
            values.min(),
            values.max(),
            values.size,
            0,
        )
        assert band.mean == pytest.approx(values.mean(), rel=1e-12) and band.std == pytest.approx(
            values.std(), rel=1e-12
        )
        assert (
            sample.percentiles((0.1, 1, 50, 99), number) == np.percentile(values, (0.1, 1, 50, 99)).tolist()
        )
        assert sample.bits[number] == np.bitwise_or.reduce(values.astype(np.uint16))
    assert sample.percentiles((1, 99.9)) == np.percentile(together, (1, 99.9)).tolist()
    assert sample.images == 12 and sample.sizes == {(24, 30): 12} and sample.types == {"uint16": 12}


def test_statistics_in_parts_lose_no_digits():
    """Values far from 0 with a small spread, where a sum of squares would have none left."""
    values = 1e9 + np.random.default_rng(0).normal(0, 1, (50, 40, 40))
    band = BandStatistics()
    for part in values:
        band.add(part)
    assert band.std == pytest.approx(values.std(), rel=1e-9) and band.mean == pytest.approx(
        values.mean(), rel=1e-15
    )


def test_large_images_are_measured_whole_and_their_percentiles_from_a_grid(tmp_path, monkeypatch):
    monkeypatch.setattr("vision_core.images.sampled.MOST_KEPT_VALUES", 5000)
    values = np.random.default_rng(0).normal(50, 10, (400, 300)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    sample = sample_stored(open_source(f"folder:{tmp_path}", 1), 10)
    assert sample.bands[0].mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-12)
    assert sample.kept[0][0].size <= 5000 and sample.percentiles((99,))[0] == pytest.approx(
        np.percentile(values, 99), rel=0.02
    )


def test_a_grey_file_counts_for_three_channels_and_a_colour_for_one(tmp_path):
    Image.fromarray(np.full((16, 16), 100, np.uint8)).save(tmp_path / "a.png")
    Image.new("RGB", (16, 16), (10, 200, 30)).save(tmp_path / "b.png")
    three, one = (sample_stored(open_source(f"folder:{tmp_path}", channels), 5) for channels in (3, 1))
    assert [band.mean for band in three.bands] == [55, 150, 65] and len(one.bands) == 1
    assert one.bands[0].least == 100 and one.bands[0].greatest == round(0.299 * 10 + 0.587 * 200 + 0.114 * 30)
    assert usual_range(three) == (0, 255)
