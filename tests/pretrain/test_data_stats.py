"""`data_stats.py` as users run it: its numbers are NumPy's, and what it proposes gives pixels of
that mean and std."""

import re
import shlex

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pretrain.data_stats import DataStatsArguments, report, with_option
from vision_core.errors import UserError
from vision_core.images.open_source import open_source


@pytest.fixture
def plates(tmp_path):
    """Grey of 12 bits in 16; one file cannot be read."""
    for number in range(8):
        values = np.random.default_rng(number).gamma(3, 300, (40, 50)).clip(0, 4095).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{number}.tif", values)
    (tmp_path / "bad.tif").write_bytes(b"II*\x00broken")
    return tmp_path


def pasted(text):
    """The proposed options as {name: values}."""
    command = shlex.split(
        text[text.index("  --dataset") :].partition("\n  values above")[0].replace("\\\n", "")
    )
    options, name = {}, ""
    for word in command:
        if word.startswith("--"):
            name = word[2:]
            options[name] = []
        else:
            options[name].append(word)
    return options


def test_the_table_is_numpys(plates, capsys):
    text = report(f"folder:{plates}", 1, 200)
    values = np.concatenate([tifffile.imread(path).ravel() for path in plates.glob("[0-9].tif")]).astype(
        np.float64
    )
    row = next(line for line in text.splitlines() if re.match(r" +1 ", line)).replace(",", "").split()
    expected = [
        values.min(),
        np.percentile(values, 1),
        values.mean(),
        np.percentile(values, 99),
        values.max(),
        values.std(),
    ]
    np.testing.assert_allclose([float(cell) for cell in row[1:7]], expected, rtol=1e-4)
    assert row[7:] == ["12", "0.00%"]
    assert (
        "8 read, 11.1% unreadable (" in text
        and "40 x 50 (8)" in text
        and "uint16 (8); full scale 0 to 65,535, " in text
    )
    assert len(text.splitlines()) < 24


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_proposed_gives_its_own_mean_and_std(plates, channels):
    options = pasted(report(f"folder:{plates}", channels, 200))
    assert options["num_channels"] == [str(channels)] and "?scale=" in options["dataset"][0]
    (plates / "bad.tif").unlink()
    source = open_source(options["dataset"][0], channels)
    pixels = torch.stack([source[index].image for index in range(len(source))]).double()
    for name, figure in (
        ("image_mean", pixels.mean((0, 2, 3))),
        ("image_std", pixels.std((0, 2, 3), correction=0)),
    ):
        np.testing.assert_allclose([float(value) for value in options[name]], figure, rtol=1e-3)


def test_bits_are_counted_where_they_are_stored_at_the_top(tmp_path):
    """12 bits times 16, as some cameras write them."""
    values = np.random.default_rng(0).integers(0, 4096, (20, 20)).astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / "a.tif", values)
    text = report(f"folder:{tmp_path}", 1, 10)
    assert re.search(r"  12 +0\.00%", text) and "?scale=" not in text


def test_8_bit_pictures_need_mean_and_std_alone(tmp_path):
    for number in range(5):
        Image.fromarray(np.random.default_rng(number).integers(0, 200, (20, 24, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    options = pasted(report(f"folder:{tmp_path}", 3, 10))
    values = (
        np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.iterdir())]).astype(np.float64)
        / 255
    )
    assert options["dataset"] == [f"folder:{tmp_path}"]
    np.testing.assert_allclose(
        [float(value) for value in options["image_mean"]], values.mean((0, 1, 2)), rtol=1e-3
    )
    np.testing.assert_allclose(
        [float(value) for value in options["image_std"]], values.std((0, 1, 2)), rtol=1e-3
    )


def test_bands_and_their_missing_values_have_a_row_each(tmp_path):
    values = np.random.default_rng(0).normal([[[5]], [[-20]], [[300]]], 2, (3, 30, 30)).astype(np.float32)
    values[1, :3] = np.nan
    np.save(tmp_path / "a.npy", values)
    rows = [
        line.split()
        for line in report(f"folder:{tmp_path}?bands=2,3/3", 2, 10).splitlines()
        if re.match(r" +[12] ", line)
    ]
    assert [row[-1] for row in rows] == ["10.00%", "0.00%"] and [row[-2] for row in rows] == ["-", "-"]
    np.testing.assert_allclose(
        [float(row[3]) for row in rows], [np.nanmean(values[1]), values[2].mean(dtype=float)], rtol=1e-3
    )


def test_a_band_of_one_value_is_said(tmp_path):
    np.save(
        tmp_path / "a.npy",
        np.stack([np.random.default_rng(0).random((20, 20)), np.ones((20, 20))]).astype(np.float32),
    )
    assert "band 2 has one value only" in report(f"folder:{tmp_path}", 2, 10)


def test_options_are_joined_to_those_that_are_there():
    assert with_option("folder:x?nodata=0", "scale=9") == "folder:x?nodata=0&scale=9"
    assert with_option("folder:x", "scale=9") == "folder:x?scale=9"


def test_the_program_runs_and_its_mistakes_are_one_line(runs, plates, tmp_path):
    said = runs.finish(
        runs.start("pretrain/data_stats.py", "--dataset", plates, "--num_channels", 1, "--max_samples", 4)
    )
    assert "to paste" in said and "uint16 (" in said
    assert "--max_samples 0 must be above 0" in runs.error("pretrain/data_stats.py", "--max_samples", 0)


def test_nothing_readable_is_one_line(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\x00broken")
    with pytest.raises(UserError, match="none of 1 images of .* could be read: "):
        report(f"folder:{tmp_path}", 3, 10)
    with pytest.raises(UserError, match="must be above 0"):
        DataStatsArguments(max_samples=-1)
