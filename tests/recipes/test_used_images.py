"""What an evaluation says of images that it could not use, as users meet it."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

EVALUATE, COMPARE = "recipes/evaluate_encoder.py", "recipes/compare_encoders.py"


def picture(number, colour):
    pixels = np.random.default_rng(number).integers(0, 90, (40, 40, 3), dtype=np.uint8)
    pixels[..., colour] += 100
    return pixels


def write_folder(folder, count, junk=(), first=0):
    """`count` PNG files of two classes, those of `junk` being no images."""
    for index in range(count):
        path = folder / ("red", "green")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(first + index, index % 2)).save(path)
        if index in junk:
            path.write_bytes(b"no image")


@pytest.fixture
def data(tmp_path):
    write_folder(tmp_path / "data" / "train", 30, junk=[8])
    write_folder(tmp_path / "data" / "test", 16, junk=range(13), first=100)
    return tmp_path / "data"


def lines(folder):
    return [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]


def test_mostly_unreadable_test_images_stop_it(encoder, data, runs, tmp_path):
    """The case of 16 test files, 13 of them junk: it was "16 test images", 100.0."""
    arguments = ("--encoder", encoder, "--dataset", data, "--tasks", "knn", "--cache_dir", tmp_path / "cache")
    said = runs.error(EVALUATE, *arguments, "--output_dir", tmp_path / "stopped")
    assert (
        "13 of 16 test images could not be read, more than max_bad_fraction=0.01: green/01.png (not_an_image)"
        in said
    )
    assert "and 8 more; give a JPEG, PNG" in said and "or remove them" in said
    assert len(lines(tmp_path / "stopped")) == 14, "also the training image, and all names of the test images"

    arguments = (*arguments, "--max_bad_fraction", 1, "--output_dir", tmp_path / "result")
    printed = runs.finish(runs.start(EVALUATE, *arguments))  # from the cache, which remembers
    assert (
        "29 training images and 3 test images; left out of the training images, because they cannot be read: red/08.png"
        in printed
    )
    report = json.loads((tmp_path / "result" / "results.json").read_text())
    assert report["images"] == report["results"]["knn"]["images"] == {"train": 29, "test": 3}
    assert report["unreadable"] == {"train": 1, "test": 13}
    page = (tmp_path / "result" / "README.md").read_text()
    assert "| 29 training and 3 test images |" in page and "left out of the test images" in page
    named = lines(tmp_path / "result")
    assert {line["id"] for line in named if line["part"] == "test"} == {
        f"{('red', 'green')[i % 2]}/{i:02d}.png" for i in range(13)
    }
    assert {(line["reason"], line["dataset"]) for line in named} == {("not_an_image", str(data))}


def test_test_images_are_not_learnt_from(encoder, runs, tmp_path):
    """4 of 12 test images lie among the training images, under other names and as another kind of
    file."""
    write_folder(tmp_path / "data" / "train", 30)
    write_folder(tmp_path / "data" / "test", 12, first=100)
    for index in (2, 3, 4, 5):
        path = tmp_path / "data" / "test" / ("red", "green")[index % 2] / f"{index:02d}.png"
        Image.open(path).save(
            tmp_path / "data" / "train" / path.parent.name / f"copy{index}.webp", lossless=True
        )
    tasks = ("knn", "linear", "logistic", "few_shot")
    quick = (
        "--linear_iterations",
        20,
        "--cache_dir",
        tmp_path / "cache",
        "--output_dir",
        tmp_path / "result",
    )
    printed = runs.finish(
        runs.start(EVALUATE, "--encoder", encoder, "--dataset", tmp_path / "data", "--tasks", *tasks, *quick)
    )
    assert "4 of 12 test images are among the training images" in printed
    report = json.loads((tmp_path / "result" / "results.json").read_text())
    assert report["images"] == {"train": 34, "test": 12} and report["test_images_in_training"] == 4
    assert all(report["results"][name]["images"] == {"train": 30, "test": 12} for name in tasks)
    assert "4 of 12 test images are among" in (tmp_path / "result" / "README.md").read_text()

    same = (
        "--dataset",
        f"folder:{tmp_path}/data/test",
        "--test_dataset",
        f"folder:{tmp_path}/data/test",
        "--cache_dir",
        tmp_path / "cache",
    )
    said = runs.error(EVALUATE, "--encoder", encoder, *same, "--tasks", "knn")
    assert "all 12 training images are test images too; name other images by --test_dataset" in said


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture
def dense(tmp_path):
    """Images with masks and depths; of the test images one, and another one's mask and depth, are
    cut short."""
    for part, count in (("train", 8), ("test", 5)):
        rows = []
        for index in range(count):
            mask = np.zeros((40, 40), np.uint8)
            mask[:, 20:] = 1
            depth = (1000 + 2000 * mask.astype(np.uint16)).astype(np.uint16)
            pixels = picture(index + 50 * (part == "test"), 0) + 60 * mask[..., None]
            rows.append({"image": png(pixels), "mask": png(mask), "depth": png(depth)})
        if part == "test":
            for row, column in ((0, "image"), (2, "mask"), (2, "depth")):
                rows[row][column]["bytes"] = rows[row][column]["bytes"][:60]
        (tmp_path / "dense").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "dense" / f"{part}-0.parquet")
    return tmp_path / "dense"


def test_images_without_a_readable_mask_or_depth_are_left_out(encoder, dense, runs, tmp_path):
    """The first test image is unreadable, so the comparison's pictures show the next ones."""
    tasks = ("segmentation", "depth", "depth_dpt", "emergent_segmentation")
    places = ("--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "result", "--dense_iterations", 5)
    arguments = ("--encoders", encoder, "raw_pixels", "--datasets", dense, "--tasks", *tasks, *places)
    assert "more than max_bad_fraction=0.01" in runs.error(
        COMPARE, *arguments[:-4], "--output_dir", tmp_path / "stopped"
    )
    runs.finish(runs.start(COMPARE, *arguments, "--max_bad_fraction", 0.7))
    ours, raw = json.loads((tmp_path / "result" / "results.json").read_text())["encoders"]
    counts = {result["task"]: result["images"] for result in ours["results"]}
    both = {"train": 8, "test": 3}
    assert counts == {
        "segmentation": both,
        "depth": both,
        "depth_dpt": both,
        "emergent_segmentation": {"test": 3},
    }
    assert {result["images"]["test"] for result in raw["results"]} == {3}
    page = (tmp_path / "result" / "README.md").read_text()
    assert "* segmentation, dense: linear head" in page and "; 8 training and 3 test images" in page
    named = {line["id"].rpartition(":")[2]: line["reason"] for line in lines(tmp_path / "result")}
    assert named == {"0": "truncated", "2": "mask truncated, depth truncated"}
    assert len(lines(tmp_path / "result")) == 2, "once for all encoders"
