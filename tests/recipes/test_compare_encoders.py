import itertools
import json
import sys

import numpy as np
import pytest
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from encoders.preprocess import save_image_processor
from recipes import compare_encoders
from vision_core.errors import UserError

QUICK = ["--linear_iterations", "20", "--dense_iterations", "10"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    def call(*arguments):
        given = [
            "compare_encoders.py",
            *arguments,
            *QUICK,
            "--cache_dir",
            tmp_path / "cache",
            "--output_dir",
            tmp_path / "result",
        ]
        monkeypatch.setattr(sys, "argv", [str(each) for each in given])
        compare_encoders.main()
        return tmp_path / "result"

    return call


def test_a_row_for_each_encoder_and_a_column_for_each_task_and_data_set(encoder, colours, run, capsys):
    names = [str(encoder), f"untrained:{encoder}", "tiny:siglip", "tiny:vit_mae", "raw_pixels"]
    folder = run("--encoders", *names, "--datasets", colours, "scenes?count=40")
    table = (folder / "table.md").read_text()
    lines = table.splitlines()
    assert len(lines) == 2 + len(names) and all(
        line.startswith(f"| {name} |") for line, name in zip(lines[2:], names, strict=True)
    )
    assert (
        "knn, scenes: top-1" in lines[0]
        and f"copy_detection, {colours.name}: mAP" in lines[0]
        and "copy_detection, scenes" not in lines[0]
    )
    assert (
        "self-distillation, untrained" in lines[3]
        and "image-text, untrained" in lines[4]
        and "reconstruction, untrained" in lines[5]
    )
    report = json.loads((folder / "results.json").read_text())["encoders"]
    assert [row["source"] for row in report] == names and [row["untrained"] for row in report] == [
        False,
        True,
        True,
        True,
        False,
    ]
    tasks = {(result["task"], result["dataset"]) for result in report[0]["results"]}
    assert len(tasks) == 6 + 5
    assert any("has no attention" in problem for problem in report[4]["not_run"])
    assert all(result["protocol"] for row in report for result in row["results"])
    page = (folder / "README.md").read_text()
    for name in ("comparison", "pca", "attention", "cosine"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000 and f"figures/{name}.png" in page
    assert "weighted k-NN" in page and table.strip() in page and table.strip() in capsys.readouterr().out


def test_a_task_that_no_data_set_allows_is_refused_at_once(encoder, run):
    with pytest.raises(UserError, match="copy_detection needs copy_of, which embedded scenes"):
        run("--encoders", encoder, "--datasets", "scenes?count=40", "--tasks", "knn", "copy_detection")
    with pytest.raises(UserError, match="need at least one name each"):
        run("--encoders", "[]")
    with pytest.raises(UserError, match="is no folder and names no encoder"):
        run("--encoders", "raw_pixels", "nonsense", "--datasets", "scenes?count=40", "--tasks", "knn")


def test_the_task_of_one_encoder_alone_is_allowed(run, encoder):
    """The data have masks; raw pixels have no attention, which is no reason to refuse the task to
    all."""
    folder = run(
        "--encoders",
        encoder,
        "raw_pixels",
        "--datasets",
        "scenes?count=12",
        "--tasks",
        "emergent_segmentation",
    )
    trained, raw = json.loads((folder / "results.json").read_text())["encoders"]
    assert [each["task"] for each in trained["results"]] == ["emergent_segmentation"]
    assert raw["results"] == [] and "has no attention" in raw["not_run"][0]


def test_an_encoder_of_another_number_of_channels_is_named_and_left_out(run, tmp_path, encoder):
    config = Dinov2Config(
        num_channels=1,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    Dinov2Model(config).save_pretrained(tmp_path / "grey")
    save_image_processor(tmp_path / "grey", (28, 28), [0.5], [0.2], 1.0)
    with pytest.raises(
        UserError,
        match="encoders of 3 channels are compared, and .*grey has 1; judge one by recipes/evaluate_encoder.py",
    ):
        run("--encoders", tmp_path / "grey", "--datasets", "scenes?count=12", "--tasks", "knn")
    folder = run(
        "--encoders", tmp_path / "grey", "raw_pixels", "--datasets", "scenes?count=12", "--tasks", "knn"
    )
    grey, raw = json.loads((folder / "results.json").read_text())["encoders"]
    assert grey["results"] == [] and "sees 1-channel images, and pictures have 3" in grey["not_run"][0]
    assert [each["task"] for each in raw["results"]] == ["knn"]


def test_what_the_last_encoder_refuses_is_said_before_the_first_is_judged(run, tmp_path, encoder):
    arguments = (
        "--encoders",
        encoder,
        "raw_pixels",
        "--datasets",
        "scenes?count=12",
        "--tasks",
        "knn",
        "--position_offset",
        "0.1",
    )
    with pytest.raises(
        UserError, match="position_offset is for DINOv2 in transformers, not for raw_pixels; leave it out"
    ):
        run(*arguments)
    assert not (tmp_path / "result").exists() and not (tmp_path / "cache").exists()


def test_a_forgotten_scale_is_said_once_for_a_data_set(run, tmp_path, encoder, capsys):
    """Values of 12 bits in files of 16."""
    generator = np.random.default_rng(0)
    for part, name, number in itertools.product(("train", "test"), ("a", "b"), range(4)):
        path = tmp_path / "data" / part / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 4096, (32, 32), dtype=np.uint16)).save(path)
    run("--encoders", encoder, "raw_pixels", "--datasets", tmp_path / "data", "--tasks", "knn")
    assert (
        capsys.readouterr().out.count(
            "note: values use 6.2% of their full scale 0 to 65,535, so images are nearly black: add ?scale="
        )
        == 1
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("scenes?count=3", "scenes"),
        ("/a/b/camvid?ignore=11", "camvid"),
        ("parquet:/a/b/{split}-*.parquet", "b"),
    ],
)
def test_short_names(text, name):
    assert compare_encoders.short_name(text) == name
