import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from encoders.preprocess import PUBLISHED_MARGIN, save_image_processor
from recipes import evaluate_encoder
from vision_core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8, "image_size": 32}
FEATURES = ["encoder, cls", "encoder, patch_mean", "untrained, cls", "untrained, patch_mean", "raw_pixels", "colour_histogram"]


def save_encoder(folder, channels=3):
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SHAPE, num_channels=channels, layerscale_value=0.5)).save_pretrained(folder)
    save_image_processor(folder, (32, 32), [0.5] * channels, [0.25] * channels, PUBLISHED_MARGIN)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """60 PNGs in parquet, the hue tells which of 3 classes; one is cut short. Also a file without labels."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = []
    for index in range(60):
        pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
        pixels[..., index % 3] += 150
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        rows.append({"image": {"bytes": stream.getvalue(), "path": None}, "label": index % 3})
    rows[11]["image"]["bytes"] = rows[11]["image"]["bytes"][:300]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "labelled.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"image": row["image"]} for row in rows]), folder / "bare.parquet")
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate_encoder.py", *map(str, arguments)])
    evaluate_encoder.main()


def test_it_runs_uninstalled_from_another_folder(encoder, images, tmp_path):
    data = f"parquet:{images}/labelled.parquet"
    command = [sys.executable, str(ROOT / "recipes" / "evaluate_encoder.py"), "--encoder", str(encoder), "--k", "5"]
    command += ["--bank_dataset", data, "--query_dataset", data, "--num_queries", "20", "--output", "result.json"]
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    # one text for both: 60 images, 20 of them queries, one of either unreadable
    report = json.loads((tmp_path / "result.json").read_text())
    sizes = report["sizes"]
    assert sizes["bank"] + sizes["queries"] == 59 and sizes["unreadable"] == 1 and sizes["classes"] == 3
    assert lines[0].endswith(
        f"32 x 32 pixels, bank {sizes['bank']}, queries {sizes['queries']}, 3 classes, k = 5, 1 unreadable images left out"
    )
    assert list(report["accuracy"]) == FEATURES and report["accuracy"]["colour_histogram"] == 100
    assert [line.rsplit(maxsplit=2)[0].strip() for line in lines[1:]] == FEATURES
    assert f"{report['accuracy']['encoder, cls']:.1f} %" in lines[1]


def test_bank_and_queries_of_their_own(encoder, images, monkeypatch, tmp_path):
    """The same images in both, so that every query finds itself: what one text for both must prevent."""
    data = f"parquet:{images}/labelled.parquet"
    run(
        monkeypatch,
        "--encoder",
        encoder,
        "--bank_dataset",
        data,
        "--query_dataset",
        f"{data}?label=label",
        "--k",
        1,
        "--output",
        tmp_path / "r",
    )
    report = json.loads((tmp_path / "r").read_text())
    assert report["sizes"]["bank"] == report["sizes"]["queries"] == 59 and set(report["accuracy"].values()) == {100.0}


def test_the_untrained_twin_is_drawn_by_the_seed_with_layer_scale_1(encoder):
    model, _ = evaluate_encoder.load(str(encoder))
    state = torch.random.get_rng_state()
    twins = [evaluate_encoder.untrained(model, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    first, same, other = (twin.embeddings.patch_embeddings.projection.weight for twin in twins)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert not torch.equal(first, model.embeddings.patch_embeddings.projection.weight)
    assert (twins[0].encoder.layer[0].layer_scale1.lambda1 == 1).all() and model.config.layerscale_value == 0.5


def test_multi_band_encoders_are_judged_on_multi_band_images(tmp_path, monkeypatch, capsys):
    encoder, generator = save_encoder(tmp_path / "encoder", channels=5), np.random.default_rng(0)
    for index in range(24):
        folder = tmp_path / "images" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{index}.npy", generator.random((5, 40, 40), dtype=np.float32) + index % 2)
    data = f"folder:{tmp_path}/images"
    run(monkeypatch, "--encoder", encoder, "--bank_dataset", data, "--query_dataset", data, "--num_queries", 8, "--k", 3)
    printed = capsys.readouterr().out
    assert "bank 16, queries 8, 2 classes, k = 3" in printed and "colour_histogram        100.0 %" in printed


def test_the_processors_own_view_is_taken(encoder):
    _, processor = evaluate_encoder.load(str(encoder))
    assert evaluate_encoder.view_of(processor, None, 8) == ((32, 32), 37 / 32)
    assert evaluate_encoder.view_of(processor, 48, 8) == ((48, 48), 37 / 32)
    processor.crop_size = None
    with pytest.raises(UserError, match="no centre crop; give --image_size"):
        evaluate_encoder.view_of(processor, None, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--encoder is missing"),
        (("--encoder", "ENCODER", "--k", 0), "--k 0 is not possible; give 1 or more"),
        (("--encoder", "ENCODER", "--num_bank", -1), "--num_bank -1 is not possible"),
        (("--encoder", "ENCODER", "--output", "no/such/folder/x.json"), "--output no/such/folder/x.json: its folder does not exist"),
        (("--encoder", "ENCODER", "--image_size", 30), "30 is no multiple of the patch size 8; give --image_size 32"),
        (("--encoder", "ENCODER", "--image_size", 0), "0 is no multiple of the patch size 8; give --image_size 8"),
        (("--encoder", "no/such/encoder"), "--encoder no/such/encoder cannot be loaded"),
        (("--encoder", "ENCODER", "--bank_dataset", "parquet:IMAGES/bare.parquet"), "k-NN needs labels"),
        (
            ("--encoder", "ENCODER", "--bank_dataset", "parquet:IMAGES/labelled.parquet", "--k", 61),
            "k=61 is not possible with a bank of 60",
        ),
        (("--encoder", "ENCODER", "--banks", "x"), "unknown option 'banks'"),
    ],
)
def test_bad_input(encoder, images, monkeypatch, arguments, message):
    arguments = [str(each).replace("ENCODER", str(encoder)).replace("IMAGES", str(images)) for each in arguments]
    with pytest.raises(UserError) as caught:
        run(monkeypatch, *arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_and_broken_encoders_are_refused(encoder, tmp_path, monkeypatch):
    ViTModel(ViTConfig(**SHAPE)).save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="is a vit; dinov2 and dinov2_with_registers are understood"):
        run(monkeypatch, "--encoder", tmp_path / "vit")
    broken = save_encoder(tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        run(monkeypatch, "--encoder", broken)
    config = json.loads((encoder / "config.json").read_text())
    (broken / "model.safetensors").write_bytes(weights)
    (broken / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"lacks weights, such as encoder\.layer\.2"):
        run(monkeypatch, "--encoder", broken)
