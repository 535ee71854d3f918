"""SigLIP as users run it: the published start, the folder loads everywhere, torchrun, its own
mistakes; the rest is in `test_image_training.py`."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoProcessor

from encoders import load_encoder
from encoders.evaluation.encoder_facts import training_paradigm
from encoders.image_text import load_image_text

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def siglip(trainings):
    return trainings["siglip"]


@pytest.fixture(scope="module")
def whole(siglip):
    return siglip.whole


def test_the_loss_falls_from_the_published_start(whole, logged):
    trained, held_out = logged(whole), logged(whole, "eval_loss")
    assert len(trained) == 14 and abs(trained[0] - 10) < 2, "temperature 10 and bias -10"
    assert trained[-1] < 0.6 * trained[0] and held_out[-1] < held_out[0]
    assert logged(whole, "learning_rate").max().item() == pytest.approx(1e-3)


def test_the_folder_is_what_was_promised(whole):
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "config.yaml",
        "metrics.jsonl",
    ):
        assert (whole / name).is_file(), name
    assert not list(whole.glob("*.bin"))
    assert sorted(int(path.name.split("-")[1]) for path in whole.glob("checkpoint-*")) == [4, 8, 12, 14]


def test_it_loads_everywhere_and_means_the_same(whole, picture):
    """transformers' classes on their own, and this project's on top of them: the same vectors of
    the same image and texts."""
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
        pixels,
        AutoImageProcessor.from_pretrained(whole)(image, return_tensors="pt")["pixel_values"],
        atol=2e-2,
        rtol=0,
    )
    torch.testing.assert_close(
        both.encode_images(inputs["pixel_values"]), outputs.image_embeds.detach(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(both.encode_texts(texts), outputs.text_embeds.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        encoder(pixels).pooled, model.get_image_features(pixel_values=pixels).pooler_output.detach()
    )
    assert training_paradigm(encoder) == "image-text"


def test_the_cards_code_runs(whole, picture, snippet):
    matches = snippet(whole / "README.md", picture)["matches"]
    assert matches.shape == (1, 2) and (matches > 0).all()
    card = (whole / "README.md").read_text()
    assert "loss of held-out images" in card and "zero-shot-image-classification" in card


def test_the_temperature_does_not_decay(siglip, tmp_path):
    """Without a gradient step, weight decay alone would move it: a tremendous one at a learning
    rate that moves little else."""
    folder = tmp_path / "run"
    siglip.finish(
        folder, "--weight_decay", 1000, "--learning_rate", 1e-4, "--max_steps", 3, "--eval_dataset", "none"
    )
    model = AutoModel.from_pretrained(folder)
    assert model.logit_scale.item() == pytest.approx(np.log(10), abs=1e-3)
    assert model.logit_bias.item() == pytest.approx(-10, abs=1e-3)


@pytest.mark.timeout(200)
def test_two_processes_are_one_with_twice_the_batch(runs, siglip, whole, logged):
    """Through torchrun, uninstalled, from another folder."""
    torchrun = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    environment = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": ""}
    arguments = (siglip.config, "--output_dir", "siglip", "--per_device_train_batch_size", 4)
    runs.finish(runs.launch(torchrun, siglip.script, *arguments, environment=environment))
    for name in ("loss", "eval_loss", "grad_norm"):
        torch.testing.assert_close(
            logged(runs.folder / "siglip", name), logged(whole, name), rtol=1e-4, atol=0
        )


@pytest.fixture(scope="module")
def rows(tmp_path_factory, picture):
    """rows(captions) -> a parquet file with the picture and each of the captions, or without a
    column of them."""
    folder = tmp_path_factory.mktemp("rows")

    def rows(captions):
        columns = {"image": [{"bytes": picture.read_bytes(), "path": f"{number}.png"} for number in range(8)]}
        if captions is not None:
            columns["caption"] = pa.array(captions, type=pa.list_(pa.string()))
        path = folder / f"{len(list(folder.iterdir()))}.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return rows


def test_captions_come_from_columns(siglip, rows, tmp_path):
    path = rows([[f"picture {number}", "a picture"] for number in range(8)])
    siglip.finish(
        tmp_path / "run", "--dataset", f"parquet:{path}", "--eval_dataset", "none", "--max_steps", 2
    )
    assert "8 images in 1 parquet files" in (tmp_path / "run" / "README.md").read_text()
    assert "eval_loss" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_captions_come_from_json_in_shards(siglip, picture, tmp_path):
    """They reach the tokenizer of a new model, and so the training; braces name the shards."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"shard-{shard:03d}.tar", "w") as tar:
            for number in range(4):
                caption = json.dumps({"caption": [f"zebra {shard}", "a picture"]}).encode()
                for field, data in (("png", picture.read_bytes()), ("json", caption)):
                    info = tarfile.TarInfo(f"{number}.{field}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    shards = f"wds:{tmp_path}/shard-{{000..001}}.tar"
    siglip.finish(tmp_path / "run", "--dataset", shards, "--eval_dataset", "none", "--max_steps", 2)
    assert "8 images in 2 tar shards" in (tmp_path / "run" / "README.md").read_text()
    assert "zebra" in AutoProcessor.from_pretrained(tmp_path / "run").tokenizer.get_vocab()


def test_mistakes_are_one_line(siglip, rows, tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "stream").mkdir()
    shutil.copy(rows([["a picture"]] * 8), tmp_path / "stream" / "train.parquet")
    assert "has no captions; name the column" in siglip.error(folder, "--dataset", f"parquet:{rows(None)}")
    assert "has no captions" in siglip.error(folder, "--eval_dataset", f"parquet:{rows(None)}")
    stream = f"hf:{tmp_path / 'stream'}?streaming=true&image=image"
    assert "is a stream; give images that can be read in any order" in siglip.error(
        folder, "--dataset", stream
    )
    assert "--hidden_size 33 is not a multiple of --num_attention_heads 2" in siglip.error(
        folder, "--hidden_size", 33
    )
    assert not folder.exists(), "nothing is written before a run can start"
    some = rows([[] if number == 5 else ["a picture"] for number in range(8)])
    options = ("--dataset", f"parquet:{some}", "--eval_dataset", "none")
    assert "has no caption; give it one or take it out of the data" in siglip.error(folder, *options)


def test_what_is_no_siglip_is_no_start(siglip, whole, tmp_path):
    def error(folder):
        return siglip.error(tmp_path / "run", "--init_from", folder)

    def copy(name, without=()):
        return shutil.copytree(
            whole, tmp_path / name, ignore=shutil.ignore_patterns("checkpoint-*", *without)
        )

    assert "cannot be loaded" in error(copy("no weights", ["*.safetensors"]))
    assert "has no processor of images and texts" in error(copy("no tokenizer", ["tokenizer*", "processor*"]))
    part = copy("part")
    tensors = load_file(part / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "head.probe" not in name},
        part / "model.safetensors",
        {"format": "pt"},
    )
    assert "lacks 1 weights of a siglip of this size, such as vision_model.head.probe" in error(part)
    assert not (tmp_path / "run").exists()
