"""Runs on images of other ranges than pictures: what they say, what their cards say, and that
evaluation reads the same pixels."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from transformers import AutoImageProcessor

from encoders.load import load_encoder
from encoders.preprocess import PUBLISHED_MARGIN, ImageTransform
from pretrain import dinov2
from pretrain.run.args import DINOv2Arguments
from pretrain.run.build import build_multicrop
from pretrain.run.build_evaluation import build_benchmark
from vision_core.images.open_source import open_source

TINY = """
eval_dataset: none
global_crop_size: [32]
local_crop_size: [16]
num_local_crops: 1
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
num_prototypes: 32
head_hidden_dim: 32
head_bottleneck_dim: 16
per_device_train_batch_size: 8
dataloader_num_workers: 0
max_steps: 2
warmup_steps: 1
num_cpu_threads: 1
"""


@pytest.fixture(scope="module")
def plates(tmp_path_factory):
    """Grey of 12 bits in 16, two classes."""
    folder = tmp_path_factory.mktemp("plates")
    for number in range(24):
        values = (
            np.random.default_rng(number)
            .gamma(3, 300 + 20 * number, (64, 80))
            .clip(0, 4095)
            .astype(np.uint16)
        )
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        tifffile.imwrite(folder / "ab"[number % 2] / f"{number}.tif", values)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.write_text(TINY)

    def run_script(*arguments):
        dinov2.sys.argv = ["dinov2.py", "--config", str(config), *map(str, arguments)]
        dinov2.main()

    return run_script


@pytest.fixture(scope="module")
def scaled(run, plates, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaled") / "run"
    run("--dataset", f"folder:{plates}?scale=auto", "--output_dir", folder)
    return folder


def reading(folder):
    """The options with which a run has read its images."""
    return json.loads((folder / "checkpoint-2" / "training_state.json").read_text())["pixel_options"]


def test_the_card_feeds_the_encoder_as_training_did(scaled, plates):
    """Its code, run on its own folder: the pixels of the source, normalised, at the size of the
    run."""
    card = (scaled / "README.md").read_text()
    assert f"folder:path/to/images?{reading(scaled)}" in card
    code = card[card.index("```python\n") + 10 :].partition("```")[0]
    names: dict = {}
    exec(code.replace("path/to/this/folder", str(scaled)).replace("path/to/images", str(plates)), names)
    image = open_source(f"folder:{plates}?scale=auto")[0].image
    expected = ImageTransform((32, 32), margin=PUBLISHED_MARGIN)([image])
    assert image.dtype == torch.float32 and len(image.unique()) > 500
    torch.testing.assert_close(names["inputs"]["pixel_values"], expected, rtol=0, atol=2e-3)
    assert names["tokens"].shape[-1] == 32 and not AutoImageProcessor.from_pretrained(scaled).do_rescale


def test_a_run_says_its_range_and_how_to_judge_it(run, plates, tmp_path, capsys):
    run("--dataset", plates, "--output_dir", tmp_path / "plain", "--max_steps", 2)
    said = capsys.readouterr().out
    assert (
        "note            values use " in said
        and "of their full scale 0 to 65,535" in said
        and "add ?scale=" in said
    )
    run("--dataset", f"folder:{plates}?scale=4095", "--output_dir", tmp_path / "scaled")
    said = capsys.readouterr().out
    assert (
        "full scale" not in said
        and "pixels          read with scale=4095; judge this encoder on images that are read with the same"
        in said
    )


def test_a_dry_run_says_the_same(run, plates, capsys):
    run("--dataset", plates, "--dry_run", "true")
    assert "note: values use " in capsys.readouterr().out


def test_images_that_are_judged_in_a_run_are_read_with_the_scale_that_was_learnt(plates, tmp_path):
    brighter = tmp_path / "brighter"
    for path in plates.glob("*/*.tif"):
        (brighter / path.parent.name).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(brighter / path.parent.name / path.name, tifffile.imread(path) * 3)
    args = DINOv2Arguments(
        dataset=f"folder:{plates}?scale=auto",
        eval_dataset=f"folder:{brighter}?scale=auto",
        knn_k=1,
        knn_num_queries=8,
    )
    source = open_source(args.dataset)
    benchmark = build_benchmark(args, source, True)
    assert (
        benchmark.queries.images.mean() > 1.5 * benchmark.bank.images.mean()
    )  # with a scale of their own they would be equal


def test_a_resumed_run_whose_images_are_read_otherwise_says_so(run, scaled, plates, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(scaled, folder)
    run(
        "--dataset",
        f"folder:{plates}?scale=2000",
        "--output_dir",
        folder,
        "--resume_from_checkpoint",
        "true",
        "--max_steps",
        3,
    )
    assert (
        f"images were read with {reading(scaled)} and are read with scale=2000: other pixels"
        in capsys.readouterr().out
    )


def test_crops_take_three_bands_for_colours_only_where_black_and_white_are_known(plates):
    args = DINOv2Arguments()
    assert build_multicrop(args, open_source(f"folder:{plates}?scale=4095")).known_range
    assert not build_multicrop(args, open_source(f"folder:{plates}")).known_range


def test_three_bands_of_floats_are_published_as_numbers(run, tmp_path, capsys):
    for number in range(16):
        ratios = np.random.default_rng(number).normal(0, 3, (3, 48, 48)).astype(np.float32)
        (tmp_path / "data").mkdir(exist_ok=True)
        np.save(tmp_path / "data" / f"{number}.npy", ratios)
    means = ["--image_mean", "0.0", "0.0", "0.0", "--image_std", "3.0", "3.0", "3.0"]
    run("--dataset", tmp_path / "data", "--output_dir", tmp_path / "run", *means)
    said = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert not said["do_rescale"] and not said["do_convert_rgb"]
    assert "load_image" not in (tmp_path / "run" / "README.md").read_text()
    (crops,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("crops")]
    assert (
        "colour strength" not in crops
        and "solarize 0," in crops
        and "left out, they need RGB of a known range" in crops
    )


def test_an_encoder_of_a_scaled_run_reads_files_as_training_did(scaled, plates):
    encoder = load_encoder(scaled)
    path = next(plates.glob("a/*.tif"))
    source = open_source(f"folder:{plates}?scale=auto")
    (index,) = [number for number in range(len(source)) if source.id_of(number).endswith(f"a/{path.name}")]
    torch.testing.assert_close(encoder.transform(path), encoder.transform(source[index].image))
