"""What runs on images of one's own are judged on, as users start them."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pretrain.run.own_evaluation import chosen_evaluation

SCRIPT = "pretrain/dinov2.py"
TINY = """
global_crop_size: [32]
local_crop_size: [16]
num_local_crops: 1
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
num_prototypes: 16
head_hidden_dim: 16
head_bottleneck_dim: 8
centering: softmax
per_device_train_batch_size: 8
dataloader_num_workers: 0
max_steps: 2
warmup_steps: 1
logging_steps: 1
save_steps: 2
eval_steps: 2
knn_k: 3
num_cpu_threads: 1
"""


@pytest.fixture(scope="module", autouse=True)
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """lab: cat, dog; raw: 2021, 2022; flat: no folders; copies: half of lab under other names, and
    as many others. 24 images each, raw has 40."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def write(place):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (36, 40, 3), dtype=np.uint8)).save(root / place)

    for number in range(24):
        write(f"lab/{('cat', 'dog')[number % 2]}/{number:02d}.png")
        write(f"flat/{number:02d}.png")
        write(f"copies/{('cat', 'dog')[number % 2]}/{number:02d}.png")
        if number < 12:
            image = Image.open(root / f"lab/{('cat', 'dog')[number % 2]}/{number:02d}.png")
            image.save(root / f"copies/{('cat', 'dog')[number % 2]}/{number:02d}.png", compress_level=0)
    for number in range(40):
        write(f"raw/{2021 + number % 2}/{number:02d}.png")
    return root


@pytest.fixture
def run(runs, config, tmp_path):
    def run(*options, folder="run"):
        return runs.finish(runs.start(SCRIPT, config, "--output_dir", tmp_path / folder, *options))

    return run


def knn_line(printed):
    return next(line for line in printed.splitlines() if line.startswith("k-NN   "))


def test_auto_means_scenes_for_scenes_and_a_held_out_part_for_anything_else():
    for scenes in ("scenes", "scenes?size=96", "scenes:?seed=1"):
        assert chosen_evaluation("auto", scenes, "held-out scenes") == "held-out scenes"
    for own in ("folder:scenes", "photos/scenes", "wds:x/*.tar", "scenes.parquet"):
        assert chosen_evaluation("auto", own, "held-out scenes") == "held_out"
    for given in (None, "folder:lab", "held_out"):
        assert chosen_evaluation(given, "folder:own", "held-out scenes") == given


def test_ones_own_labels_judge_on_images_that_are_not_trained_on(run, data, tmp_path):
    """It was judged on drawn scenes: 20 classes, 7.1 %."""
    printed = run("--dataset", data / "raw")
    assert "raw, 2 classes; 4 of them are held out of training" in printed
    assert "bank 36, queries 4, 2 classes, k = 3" in knn_line(printed)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["eval_dataset"] == "held_out"
    card = (tmp_path / "run/README.md").read_text()
    assert "4 of them are held out of training" in card and "bank 36, queries 4, 2 classes" in card
    resumed = run("--dataset", data / "raw", "--resume_from_checkpoint", "true", "--max_steps", 3)
    assert knn_line(resumed) == knn_line(printed)


def test_without_labels_nothing_is_judged_and_that_is_said(run, data, tmp_path):
    printed = run("--dataset", data / "flat")
    assert (
        "not judged      the images have no labels; name labelled images by --eval_dataset" in printed
        and "k-NN   " not in printed
    )
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["eval_dataset"] is None
    assert "knn_cls" not in (tmp_path / "run/metrics.jsonl").read_text()
    dry = run("--dataset", data / "raw", "--per_device_train_batch_size", 38, "--dry_run", folder="dry")
    assert (
        "not judged      with a tenth held out 36 images would be left, fewer than a global batch or knn_k"
        in dry
    )


def test_a_run_of_an_earlier_version_keeps_its_evaluation_and_its_images(run, data, tmp_path):
    scenes = "scenes?size=64&split=held_out&count=50"
    first = run("--dataset", data / "raw", "--eval_dataset", scenes)
    assert "the bank is a part of the evaluation images" in knn_line(first)
    resumed = run("--dataset", data / "raw", "--resume_from_checkpoint", "true", "--max_steps", 3)
    assert knn_line(resumed) == knn_line(first) and "held out of training" not in resumed


def test_folders_of_years_are_no_classes_of_cats_and_dogs(run, data):
    """It passed for a bank, and gave 56.2 %."""
    line = knn_line(run("--dataset", data / "raw", "--eval_dataset", data / "lab"))
    assert (
        "bank 12, queries 12, 2 classes, k = 3; the bank is a part of the evaluation images, "
        "because the queries' classes cat, dog" in line
    )
    assert "are not among 2021, 2022" in line


def test_a_bank_that_was_named_is_refused_for_other_classes(runs, config, data, tmp_path):
    options = (
        "--dataset",
        data / "flat",
        "--eval_dataset",
        data / "lab",
        "--eval_bank_dataset",
        data / "raw",
        "--output_dir",
        tmp_path / "run",
    )
    assert (
        "are not among 2021, 2022" in runs.error(SCRIPT, config, *options) and not (tmp_path / "run").exists()
    )


def test_a_query_is_not_in_the_bank(run, data, tmp_path):
    """Raw pixels found themselves: 99.8 %, also in the card. Here the images are noise, and nothing
    can tell their classes."""
    same = knn_line(run("--dataset", data / "lab", "--eval_dataset", data / "lab"))
    assert "bank 12, queries 12" in same and "because they are the training images too" in same
    copies = knn_line(run("--dataset", data / "copies", "--eval_dataset", data / "lab", folder="copies"))
    said = "12 of 24 queries are in the bank; those images were left out of the bank"
    assert (
        "bank 12, queries 24" in copies
        and said in copies
        and said in (tmp_path / "copies/README.md").read_text()
    )


def test_what_cannot_be_read_is_named_and_above_a_share_stops_it(runs, run, config, data, tmp_path):
    broken = tmp_path / "broken"
    for number, path in enumerate(sorted((data / "lab").rglob("*.png"))):
        (broken / path.parent.name).mkdir(parents=True, exist_ok=True)
        (broken / path.parent.name / path.name).write_bytes(
            b"junk" if number in (3, 20) else path.read_bytes()
        )
    options = ("--dataset", data / "copies", "--eval_dataset", broken, "--output_dir", tmp_path / "stopped")
    said = runs.error(SCRIPT, config, *options)
    assert (
        "2 of 24 k-NN queries could not be read, more than max_bad_fraction=0.01" in said
        and "dog/17.png (not_an_image)" in said
    )
    printed = run("--dataset", data / "copies", "--eval_dataset", broken, "--max_bad_fraction", 0.1)
    assert "queries 22" in knn_line(printed) and "2 unreadable images left out" in knn_line(printed)
    assert "left out        k-NN: 2 images cannot be read, " in printed
    named = [json.loads(line)["id"] for line in (tmp_path / "run/bad_samples.jsonl").read_text().splitlines()]
    assert sorted(named) == ["cat/06.png", "dog/17.png"]
    probes = run("--dataset", broken, "--eval_dataset", "none", "--max_bad_fraction", 0.5, folder="probes")
    assert "left out        health probes: 2 images cannot be read" in probes


def own_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (36, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def test_mae_measures_the_loss_of_a_held_out_part_of_ones_own_images(runs, trainings, tmp_path):
    text = trainings["mae"].config.read_text()
    config = tmp_path / "own.yaml"
    config.write_text(
        "\n".join(
            line
            for line in text.splitlines()
            if not line.startswith(("dataset", "eval_dataset", "max_steps"))
        )
    )
    options = ("--max_steps", 7, "--dataset", own_pictures(tmp_path / "images", 90))
    runs.finish(runs.start("pretrain/mae.py", config, *options, "--output_dir", tmp_path / "run"))
    assert "9 of them are held out of training" in (tmp_path / "run/README.md").read_text()
    assert "eval_loss" in (tmp_path / "run/metrics.jsonl").read_text()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["eval_dataset"] == "held_out"
    few = ("--max_steps", 2, "--dataset", own_pictures(tmp_path / "few", 20))
    printed = runs.finish(runs.start("pretrain/mae.py", config, *few, "--output_dir", tmp_path / "without"))
    assert (
        "no held-out loss: a tenth of 20 images does not fill a batch of 8; name others by --eval_dataset"
        in printed
    )
    assert yaml.safe_load((tmp_path / "without/config.yaml").read_text())["eval_dataset"] is None


def test_siglip_measures_the_loss_of_a_held_out_part_with_its_captions(runs, trainings, tmp_path):
    """`held_out` may be asked for of any images, drawn scenes too."""
    options = (
        "--dataset",
        "scenes?size=32&count=100",
        "--eval_dataset",
        "held_out",
        "--max_steps",
        7,
        "--output_dir",
        tmp_path / "run",
    )
    runs.finish(runs.start("pretrain/siglip.py", trainings["siglip"].config, *options))
    assert "10 of them are held out of training" in (tmp_path / "run/README.md").read_text()
    assert "eval_loss" in (tmp_path / "run/metrics.jsonl").read_text()
