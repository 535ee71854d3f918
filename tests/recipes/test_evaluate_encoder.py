import io
import itertools
import json
import sys
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from safetensors.torch import load_file

from recipes import evaluate_encoder
from vision_core.errors import UserError

SCRIPT = "recipes/evaluate_encoder.py"
ALL_BUT_TEXT = [
    "knn",
    "linear",
    "logistic",
    "few_shot",
    "retrieval",
    "copy_detection",
    "segmentation",
    "depth",
    "depth_dpt",
    "emergent_segmentation",
]
QUICK = ["--linear_iterations", "20", "--dense_iterations", "20"]


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the program in this process with a cache and an output folder of its own; the report."""

    def call(*arguments, output="result"):
        places = [] if output is None else ["--output_dir", tmp_path / output]
        given = ["evaluate_encoder.py", *arguments, *QUICK, "--cache_dir", tmp_path / "cache", *places]
        monkeypatch.setattr(sys, "argv", [str(each) for each in given])
        evaluate_encoder.main()
        return json.loads((tmp_path / output / "results.json").read_text())

    return call


def test_it_runs_uninstalled_from_another_folder(encoder, colours, runs, tmp_path):
    arguments = (
        "--encoder",
        encoder,
        "--dataset",
        colours,
        *QUICK,
        "--tasks",
        *ALL_BUT_TEXT,
        "--cache_dir",
        tmp_path / "cache",
    )
    printed = runs.finish(
        runs.launch([sys.executable], SCRIPT, *arguments, environment={"PYTHONPATH": ""}, folder=tmp_path)
    )
    folder = tmp_path / "outputs/evaluation-1"
    report = json.loads((folder / "results.json").read_text())
    assert list(report["results"]) == ALL_BUT_TEXT and report["images"] == {"train": 59, "test": 21}
    metrics = {name: task["metrics"] for name, task in report["results"].items()}
    assert (
        metrics["linear"]["top-1"] > 90
        and metrics["knn"]["top-1"] > 50
        and metrics["segmentation"]["mIoU"] > 80
    )
    assert 0 < metrics["depth"]["RMSE (m)"] < 2 and 0 < metrics["copy_detection"]["mAP"] <= 100
    page = (folder / "README.md").read_text()
    for name in ("segmentation", "depth", "depth_dpt", "emergent_segmentation"):
        assert (folder / "figures" / f"{name}.png").is_file() and f"figures/{name}.png" in page
    assert (
        f"{encoder}: 32 x 32 pixels, centre crop of 86%" in printed
        and "59 training images and 21 test images" in printed
    )
    assert "outputs/evaluation-1" in printed and (folder / "config.yaml").is_file()


def test_depth_is_judged_as_on_nyu(encoder, colours, run, tmp_path):
    """What lies outside the crop changes nothing; whole images have another figure; other sizes are
    refused."""
    generator = np.random.default_rng(0)
    pictures = {
        part: [png(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)) for _ in range(4)]
        for part in ("train", "test")
    }
    for name, border in (("near", 1000), ("far", 9000)):
        depth = np.full((480, 640), border, np.uint16)
        depth[45:471, 41:601] = 3000
        for part in ("train", "test"):
            rows = [{"image": picture, "depth": png(depth)} for picture in pictures[part]]
            folder = tmp_path / f"{name}-{part}"
            folder.mkdir()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    reports = {}
    for test, protocol in itertools.product(("near", "far"), ("nyu", "all")):
        sources = [f"parquet:{tmp_path}/{part}/*.parquet" for part in ("near-train", f"{test}-test")]
        data = ("--dataset", sources[0], "--test_dataset", sources[1])
        arguments = ("--encoder", encoder, *data, "--tasks", "depth", "--depth_protocol", protocol)
        reports[test, protocol] = run(*arguments, output=f"{test}-{protocol}")["results"]["depth"]
    assert reports["near", "nyu"]["metrics"] == reports["far", "nyu"]["metrics"]
    assert reports["near", "all"]["metrics"] != reports["far", "all"]["metrics"]
    assert (
        "NYU's evaluation: 0.001 to 10 m, rows 45 to 470, columns 41 to 600"
        in reports["near", "nyu"]["protocol"]
    )
    assert "depths up to" in reports["near", "all"]["protocol"]
    with pytest.raises(UserError, match="judged on depths of 480 x 640 pixels, not 40 x 48"):
        run("--encoder", encoder, "--dataset", colours, "--tasks", "depth", "--depth_protocol", "nyu")


def test_an_encoder_with_options_in_its_text(encoder, colours, run, runs, tmp_path):
    text = f"{encoder}?layers=1&norm=false&image_size=48&preprocess=published"
    config = run("--encoder", text, "--dataset", colours, "--tasks", "knn")["encoder"]["config"]
    assert config["layers"] == [1] and config["norm"] is False and config["source"] == str(encoder)
    assert config["transform"]["size"] == [48, 48] and config["transform"]["preprocess"] == "published"
    said = runs.error(SCRIPT, "--encoder", f"{encoder}?layer=1", "--dataset", colours, folder=tmp_path)
    assert "unknown option 'layer', did you mean 'layers'?" in said
    both = ("--encoder", f"{encoder}?image_size=48", "--image_size", 64)
    said = runs.error(SCRIPT, *both, "--dataset", colours, folder=tmp_path)
    assert "image_size is also given as an argument; give it once" in said


def test_features_are_extracted_once(encoder, colours, run, tmp_path):
    first = run("--encoder", encoder, "--dataset", colours, "--tasks", "knn")
    entries = sorted((tmp_path / "cache").iterdir())
    assert len(entries) == 2
    stamps = [entry.stat().st_mtime_ns for entry in entries]
    second = run("--encoder", encoder, "--dataset", colours, "--tasks", "knn", "linear", output="again")
    assert [entry.stat().st_mtime_ns for entry in sorted((tmp_path / "cache").iterdir())] == stamps
    assert first["results"]["knn"] == second["results"]["knn"]


def test_two_processes_give_what_one_gives(encoder, colours, run, runs, tmp_path):
    arguments = ("--encoder", encoder, "--dataset", colours, "--tasks", "knn", "segmentation")
    alone = run(*arguments)
    places = ("--cache_dir", tmp_path / "cache2", "--output_dir", tmp_path / "two")
    runs.finish(*runs.start_two(SCRIPT, *arguments, *QUICK, *places))
    together = json.loads((tmp_path / "two" / "results.json").read_text())
    assert together["results"]["knn"]["metrics"] == pytest.approx(alone["results"]["knn"]["metrics"])
    assert together["results"]["segmentation"]["metrics"] == pytest.approx(
        alone["results"]["segmentation"]["metrics"], abs=1
    )
    assert stored_rows(tmp_path / "cache2") == stored_rows(tmp_path / "cache"), (
        "each image is to be looked at by one process"
    )


def stored_rows(cache):
    """Of every tensor in a cache, by its name, the rows in all files together."""
    rows = Counter()
    for path in cache.rglob("*.safetensors"):
        rows.update({name: len(tensor) for name, tensor in load_file(path).items()})
    return rows


def test_the_default_needs_nothing(run):
    report = run("--dataset", "scenes?count=40", "--tasks", "knn")
    assert report["encoder"]["untrained"] and report["arguments"]["encoder"] == "tiny:dinov2"


def test_training_and_test_images_of_their_own(encoder, colours, run):
    data = f"parquet:{colours}/train*.parquet"
    report = run(
        "--encoder",
        encoder,
        "--dataset",
        data,
        "--test_dataset",
        data,
        "--tasks",
        "knn",
        "--max_train_samples",
        20,
        "--max_test_samples",
        10,
    )
    assert report["images"] == {"train": 20, "test": 10}


def test_multi_band_encoders_are_judged_on_multi_band_images(save_run, tmp_path, run):
    encoder, generator = save_run(tmp_path / "encoder", channels=5), np.random.default_rng(0)
    for part in ("train", "test"):
        for index in range(24):
            folder = tmp_path / "images" / part / f"class{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{index}.npy", generator.random((5, 40, 40), dtype=np.float32) + index % 2)
    assert (
        run("--encoder", encoder, "--dataset", tmp_path / "images", "--tasks", "knn")["results"]["knn"][
            "metrics"
        ]["top-1"]
        > 90
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "knn", "knn"), "name at least one of knn, linear"),
        (("--tasks", "kn"), "--tasks expects"),
        (("--linear_iterations", 0), "linear_iterations"),
        (("--dense_image_size", 40), "--dense_image_size 40: give height and width"),
        (("--image_size", 30), "30 is no multiple of the stride 8; use 32"),
        (("--encoder", "no/such/encoder"), "is no folder and names no encoder"),
        (("--dataset", "DATA/absent"), "absent"),
        (("--dataset", "parquet:DATA/train*.parquet"), "name the test images by --test_dataset"),
        (("--tasks", "image_text"), "image_text needs captions, which"),
        (("--tasks", "zero_shot"), "zero_shot needs a text tower, which"),
        (
            ("--tasks", "segmentation", "--dense_image_size", 41, 48),
            "a height of 41 is no multiple of the stride 8",
        ),
        (("--ground_truth", "absent.json", "--tasks", "retrieval"), "absent.json cannot be read as JSON"),
        (("--banks", "x"), "unknown option 'banks'"),
    ],
)
def test_bad_input(encoder, colours, run, arguments, message):
    given = {"--encoder": encoder, "--dataset": colours}
    flat = [str(each).replace("DATA", str(colours)) for each in arguments]
    defaults = [each for name, value in given.items() if name not in flat for each in (name, value)]
    with pytest.raises(UserError) as caught:
        run(*defaults, *flat)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_result_is_not_overwritten(encoder, colours, run):
    run("--encoder", encoder, "--dataset", colours, "--tasks", "knn")
    with pytest.raises(UserError, match="output"):
        run("--encoder", encoder, "--dataset", colours, "--tasks", "knn")
