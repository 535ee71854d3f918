"""SigLIP as users run it: the loss falls, the folder loads everywhere, kills, two processes, and one line for every mistake."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, ViTMAEConfig

from encoders import load_encoder
from encoders.image_text import load_image_text
from recipes.judging import paradigm

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "pretrain/siglip.py"
TINY = """
dataset: scenes?size=32&count=40
eval_dataset: scenes?size=32&count=20&split=held_out
image_size: 32
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 2
per_device_train_batch_size: 8
max_steps: 14
logging_steps: 1
eval_steps: 7
save_steps: 4
save_total_limit: 10
"""
STEPS, KILLED_AT = 14, 8  # epochs have 5 steps: the kill comes in the middle of the second


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def whole(runs, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert f"saved {folder}" in runs.finish(runs.start(SCRIPT, config, "--output_dir", folder))
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 52, 3), dtype=np.uint8)).save(path)
    return path


def losses(lines, name="loss"):
    return torch.tensor([line[name] for line in lines if name in line], dtype=torch.float64)


def test_the_loss_falls_from_the_published_start(whole, metrics):
    trained, held_out = losses(metrics(whole)), losses(metrics(whole), "eval_loss")
    assert len(trained) == STEPS and abs(trained[0] - 10) < 2, "temperature 10 and bias -10"
    assert trained[-1] < 0.6 * trained[0] and held_out[-1] < held_out[0]
    rates = [line["learning_rate"] for line in metrics(whole) if "learning_rate" in line]
    assert max(rates) == pytest.approx(1e-3)


def test_the_folder_is_what_was_promised(whole):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "config.yaml", "metrics.jsonl"):
        assert (whole / name).is_file(), name
    assert not list(whole.glob("*.bin"))
    assert sorted(int(path.name.split("-")[1]) for path in whole.glob("checkpoint-*")) == [4, 8, 12, 14]


def test_it_loads_everywhere_and_means_the_same(whole, picture):
    """transformers' classes on their own, and this project's on top of them: the same vectors of the same image and texts."""
    model, processor = AutoModel.from_pretrained(whole).eval(), AutoProcessor.from_pretrained(whole)
    image, texts = Image.open(picture).convert("RGB"), ["A RED cup", "two green fish " * 40]
    inputs = processor(text=texts, images=image, padding="max_length", truncation=True, return_tensors="pt")
    assert inputs.keys() == {"pixel_values", "input_ids"}, "a mask would hide the padding that training reads"
    assert inputs["input_ids"].shape == (2, model.config.text_config.max_position_embeddings)
    assert inputs["input_ids"][1, -1] == processor.tokenizer.eos_token_id, "the tower pools the last place"
    outputs = model(**inputs)
    both, encoder = load_image_text(whole), load_encoder(whole)
    pixels = both.transform([torch.from_numpy(np.array(image)).permute(2, 0, 1)])
    torch.testing.assert_close(
        pixels, AutoImageProcessor.from_pretrained(whole)(image, return_tensors="pt")["pixel_values"], atol=2e-2, rtol=0
    )
    torch.testing.assert_close(both.encode_images(inputs["pixel_values"]), outputs.image_embeds.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(both.encode_texts(texts), outputs.text_embeds.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(pixels).pooled, model.get_image_features(pixel_values=pixels).pooler_output.detach())
    assert paradigm(encoder) == "image-text"


def test_the_cards_code_runs(whole, picture, snippet):
    matches = snippet(whole / "README.md", picture)["matches"]
    assert matches.shape == (1, 2) and (matches > 0).all()
    card = (whole / "README.md").read_text()
    assert "loss of held-out images" in card and "zero-shot-image-classification" in card


def test_the_temperature_does_not_decay(runs, config, tmp_path):
    """Without a gradient step, weight decay alone would move it: a tremendous one at a learning rate that moves little else."""
    folder = tmp_path / "run"
    arguments = ("--weight_decay", 1000, "--learning_rate", 1e-4, "--max_steps", 3, "--eval_dataset", "none")
    runs.finish(runs.start(SCRIPT, config, "--output_dir", folder, *arguments))
    model = AutoModel.from_pretrained(folder)
    assert model.logit_scale.item() == pytest.approx(np.log(10), abs=1e-3)
    assert model.logit_bias.item() == pytest.approx(-10, abs=1e-3)


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(runs, config, whole, same, tmp_path):
    folder = tmp_path / "run"
    killed = runs.start(SCRIPT, config, "--output_dir", folder)
    killed.wait_until((folder / f"checkpoint-{KILLED_AT}" / "MANIFEST.json").exists)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    runs.finish(runs.start(SCRIPT, config, "--output_dir", folder, "--resume_from_checkpoint", "true"))
    same(folder, whole)


@pytest.mark.timeout(200)
def test_two_processes_are_one_with_twice_the_batch(config, whole, metrics, tmp_path):
    """Through torchrun, uninstalled, from another folder."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    arguments = [config, "--output_dir", "run", "--per_device_train_batch_size", "4"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "pretrain" / "siglip.py"), *map(str, arguments)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    ours, theirs = metrics(tmp_path / "run"), metrics(whole)
    for name in ("loss", "eval_loss", "grad_norm"):
        torch.testing.assert_close(losses(ours, name), losses(theirs, name), rtol=1e-4, atol=0)


def test_two_processes_resume_in_the_second_epoch(runs, config, whole, metrics, same, tmp_path):
    straight, folder = tmp_path / "straight", tmp_path / "run"
    arguments = ("--per_device_train_batch_size", 4)
    runs.finish(*runs.start_two(SCRIPT, config, "--output_dir", straight, *arguments))
    killed = runs.start_two(SCRIPT, config, "--output_dir", folder, *arguments)
    killed[0].wait_until((folder / f"checkpoint-{KILLED_AT}" / "MANIFEST.json").exists)
    for each in killed:
        each.kill()
    runs.finish(*runs.start_two(SCRIPT, config, "--output_dir", folder, *arguments, "--resume_from_checkpoint", "true"))
    same(folder, straight)


def test_it_goes_on_from_a_model_of_transformers(runs, config, whole, tmp_path):
    """With its weights, its sizes and its tokenizer."""
    arguments = ("--max_steps", 2, "--hidden_size", 64, "--learning_rate", 1e-9)
    runs.finish(runs.start(SCRIPT, config, "--init_from", whole, "--output_dir", tmp_path / "run", *arguments))
    before, after = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "run"))
    assert before.keys() == after.keys() and all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (whole / "tokenizer.json").read_text()


@pytest.fixture(scope="module")
def rows(tmp_path_factory, picture):
    """rows(captions) -> a parquet file with the picture and each of the captions, or without a column of them."""
    folder = tmp_path_factory.mktemp("rows")

    def rows(captions):
        columns = {"image": [{"bytes": picture.read_bytes(), "path": f"{number}.png"} for number in range(8)]}
        if captions is not None:
            columns["caption"] = pa.array(captions, type=pa.list_(pa.string()))
        path = folder / f"{len(list(folder.iterdir()))}.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return rows


def test_captions_come_from_columns(runs, config, rows, tmp_path):
    path = rows([[f"picture {number}", "a picture"] for number in range(8)])
    runs.finish(
        runs.start(
            SCRIPT, config, "--dataset", f"parquet:{path}", "--eval_dataset", "none", "--output_dir", tmp_path / "run", "--max_steps", 2
        )
    )
    assert "8 images in 1 parquet files" in (tmp_path / "run" / "README.md").read_text()
    assert "eval_loss" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_mistakes_are_one_line(runs, config, rows, tmp_path):
    def error(*arguments):
        return runs.error(SCRIPT, config, "--output_dir", tmp_path / "run", *arguments)

    (tmp_path / "stream").mkdir()
    shutil.copy(rows([["a picture"]] * 8), tmp_path / "stream" / "train.parquet")
    assert "has no captions; name the column" in error("--dataset", f"parquet:{rows(None)}")
    assert "has no captions" in error("--eval_dataset", f"parquet:{rows(None)}")
    assert "is a stream; give images that can be read in any order" in error(
        "--dataset", f"hf:{tmp_path / 'stream'}?streaming=true&image=image"
    )
    assert "--dataset has 40 images, fewer than a step's 48; lower --per_device_train_batch_size" in error(
        "--per_device_train_batch_size", 48
    )
    assert "fewer than a step's 64" in error("--gradient_accumulation_steps", 8)
    assert "--eval_dataset has 4 images, fewer than a step's 8" in error("--eval_dataset", "scenes?size=32&count=4")
    assert "--image_size 33 is no multiple of --patch_size 8" in error("--image_size", 33)
    assert "--hidden_size 33 is no multiple of --num_attention_heads 2" in error("--hidden_size", 33)
    assert "must be above 0" in error("--patch_size", 0)
    assert not (tmp_path / "run").exists(), "nothing is written before a run can start"
    some = rows([[] if number == 5 else ["a picture"] for number in range(8)])
    assert "has no caption; give it one or take it out of the data" in error("--dataset", f"parquet:{some}", "--eval_dataset", "none")


def test_what_is_no_siglip_is_no_start(runs, config, whole, tmp_path):
    def error(folder):
        return runs.error(SCRIPT, config, "--output_dir", tmp_path / "run", "--init_from", folder)

    def copy(name, without=()):
        return shutil.copytree(whole, tmp_path / name, ignore=shutil.ignore_patterns("checkpoint-*", *without))

    ViTMAEConfig(hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path / "mae")
    assert "is a vit_mae; give a siglip" in error(tmp_path / "mae")
    assert "cannot be loaded" in error(tmp_path / "nowhere")
    assert "cannot be loaded" in error(copy("no weights", ["*.safetensors"]))
    assert "has no processor of images and texts" in error(copy("no tokenizer", ["tokenizer*", "processor*"]))
    part = copy("part")
    tensors = load_file(part / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "head.probe" not in name}, part / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weights of a siglip of this size, such as vision_model.head.probe" in error(part)
    assert not (tmp_path / "run").exists()
