"""A small encoder, small data sets, and a real run of every program."""

import importlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from encoders.load import load_encoder, save_encoder
from encoders.preprocess import PUBLISHED_MARGIN, save_image_processor
from fusion.tiny import tiny_tokenizer
from fusion.training.small_default import write_small_default

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "patch_size": 8,
    "image_size": 32,
}


@pytest.fixture(scope="session")
def save_run():
    def save(folder, channels=3):
        """What a run of pretraining leaves."""
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(**SHAPE, num_channels=channels, layerscale_value=0.5)).save_pretrained(
            folder
        )
        save_image_processor(folder, (32, 32), [0.5] * channels, [0.25] * channels, PUBLISHED_MARGIN)
        return folder

    return save


@pytest.fixture(scope="session")
def encoder(save_run, tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("encoder"))


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """Parquet files with images whose hue tells which of 3 classes, their masks (the right half is
    class 1) and depths; one training image is cut short."""
    folder, generator = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 21)):
        rows = []
        for index in range(count):
            pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
            pixels[..., index % 3] += 100
            pixels[:, 24:] += 60
            mask = np.zeros((40, 48), np.uint8)
            mask[:, 24:] = 1
            row = {
                "image": png(pixels),
                "mask": png(mask),
                "depth": png((1000 + 2000 * mask.astype(np.uint16)).astype(np.uint16)),
            }
            rows.append(
                row
                | {
                    "label": index % 3,
                    "image_id": f"{part}{index}",
                    "target_image_id": f"train{index}" if part == "test" else "",
                }
            )
        if part == "train":
            rows[11]["image"]["bytes"] = rows[11]["image"]["bytes"][:300]
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), folder / f"{part}-00000-of-00001.parquet"
        )
    return folder


@pytest.fixture(scope="session")
def text_given(tmp_path_factory):
    """A folder with an untrained `model`, and `text.jsonl`: rows without images whose answers have
    40 and 6 learnt tokens in turn."""
    folder = tmp_path_factory.mktemp("text")
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"question {n}"},
                {"from": "gpt", "value": "yes " * [39, 5][n % 2]},
            ]
        }
        for n in range(16)
    ]
    (folder / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_small_default(folder / "model", ["question word answer yes 0 1 2 3 4 5 6 7 8 9"] * 9, seed=0)
    return folder


@pytest.fixture(scope="session")
def text_run_options(text_given):
    """text_run_options(run's folder, **more): the words of a short run on `text_given`."""

    def text_run_options(folder, **others):
        chosen = {
            "init_from": text_given / "model",
            "conversations": f"llava:{text_given / 'text.jsonl'}",
            "eval_conversations": "[]",
            "max_steps": 4,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "output_dir": folder,
            **others,
        }
        return [text for name, value in chosen.items() for text in (f"--{name}", str(value))]

    return text_run_options


@dataclass(frozen=True)
class Given:
    """What a run starts from."""

    source: str
    model: Path


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """A small untrained model; conversations with none, one and three images of several sizes;
    whole batches have none."""
    folder, generator = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    rows = []
    for number in range(48):
        names = []
        for each in range([1, 0, 3, 1, 0, 0, 1, 3, 1, 1, 0, 0][number % 12]):
            names.append(f"{number}_{each}.png")
            size = [(40, 64), (64, 64), (80, 32)][(number + each) % 3]
            Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / names[-1])
        question = "<image>\n" * len(names) + f"question {number} " + "word " * int(generator.integers(1, 12))
        answer = f"answer {number} " + "yes " * int(generator.integers(1, 5))
        row = {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
        rows.append(row | ({"image": names} if names else {}))
    (folder / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_small_default(folder / "model", ["question word answer yes 0 1 2 3 4 5 6 7 8 9"] * 9, seed=0)
    return Given(f"llava:{folder / 'mixed.jsonl'}", folder / "model")


@pytest.fixture(scope="session")
def stage_options():
    """stage_options(given, run's folder, **more): the words of a short run on what is given."""

    def stage_options(given, folder, **others):
        chosen = {
            "init_from": given.model,
            "conversations": given.source,
            "eval_conversations": "[]",
            "max_steps": 20,
            "logging_steps": 1,
            "save_steps": 1000,
            "lr_scheduler_type": "constant",
            "learning_rate": 1e-3,
            "output_dir": folder,
            **others,
        }
        return [text for name, value in chosen.items() for text in (f"--{name}", str(value))]

    return stage_options


def load_states(path):
    """A file of DeepSpeed's, of a run of this test: the classes that it names are let through one
    by one."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    classes = [
        getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names
    ]
    with torch.serialization.safe_globals(classes):
        return torch.load(path, weights_only=True, map_location="cpu")


def check_zero_states(checkpoint, stage, processes):
    """What DeepSpeed left: optimizer states of this stage, a part of them for each of so many
    processes, and each part a part only."""
    (folder,) = checkpoint.glob("global_step*")
    names = sorted(path.name for path in folder.iterdir())
    sharded = {name for name in names if re.fullmatch(r"zero_pp_rank_\d+_mp_rank_00_model_states.pt", name)}
    assert len(sharded) == (processes if stage == 3 else 0), names
    states = [name for name in names if name.endswith("_optim_states.pt")]
    if stage == 0:
        assert not states and "mp_rank_00_model_states.pt" in names, names
        return
    assert [
        re.fullmatch(r"(bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states.pt", name).group(2)
        for name in states
    ] == [str(rank) for rank in range(processes)], names
    parts = []
    for name in states:
        held = load_states(folder / name)["optimizer_state_dict"]
        assert int(held["zero_stage"]) == stage, held["zero_stage"]
        groups = held["fp32_flat_groups"] if stage == 3 else held["single_partition_of_fp32_groups"]
        parts.append(sum(group.numel() for group in groups))
    assert min(parts) > 0 and max(parts) < 1.2 * sum(parts) / processes, parts


@pytest.fixture(scope="session")
def zero_left():
    """zero_left(run, stage, processes): its newest checkpoint is one of DeepSpeed's, of this stage
    and so many processes."""

    def zero_left(run, stage, processes):
        newest = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        check_zero_states(newest, stage, processes)

    return zero_left


SCENES = "scenes?size=64&count=24"
SMALL_STEP = ("--max_steps", 2, "--per_device_train_batch_size", 4)
FEW_CONVERSATIONS = (
    "--conversations",
    "scenes?count=8",
    "--eval_conversations",
    "[]",
    "--max_steps",
    2,
    "--per_device_train_batch_size",
    2,
)
JUDGE = (
    "--dataset",
    "scenes?count=40",
    "--max_train_samples",
    16,
    "--max_test_samples",
    8,
    "--tasks",
    "knn",
    "--cache_dir",
    "cache",
)
SMALL_SVA = ("--grid", 4, "--connector_width", 16, "--connector_heads", 4, "--connector_depth", 1)
JUDGED_AT_THE_END = (
    "--eval_dataset",
    "scenes?size=64&split=held_out&count=60",
    "--knn_bank_size",
    40,
    "--knn_num_queries",
    20,
    "--knn_k",
    3,
)
# folder -> script and options, each as short as it can be, with defaults for all that a short run
# could trip over
PROGRAMS = {
    "dinov2": (
        "pretrain/dinov2.py",
        ("--dataset", SCENES, *JUDGED_AT_THE_END, "--dataloader_num_workers", 0, *SMALL_STEP),
    ),
    "siglip": (
        "pretrain/siglip.py",
        ("--dataset", SCENES, "--eval_dataset", "scenes?count=8&split=held_out", *SMALL_STEP),
    ),
    "mae": ("pretrain/mae.py", ("--dataset", SCENES, "--eval_dataset", "none", *SMALL_STEP)),
    "fused": ("fusion/fuse.py", ("--hidden_size", 64, *SMALL_SVA)),
    "vlm": ("fusion/fuse.py", ("--language_model", "tiny:llama", "--num_sva_layers", 1, *SMALL_SVA)),
    "align": ("recipes/sva_align.py", ("--init_from", "vlm", *FEW_CONVERSATIONS)),
    "sft": ("recipes/sva_sft.py", ("--init_from", "align", *FEW_CONVERSATIONS)),
    "lora": ("recipes/sva_sft.py", ("--init_from", "align", "--lora_rank", 2, *FEW_CONVERSATIONS)),
    "evaluation": ("recipes/evaluate_encoder.py", ("--encoder", "dinov2", *JUDGE)),
    "comparison": ("recipes/compare_encoders.py", ("--encoders", "dinov2", "--datasets", *JUDGE[1:])),
    "vlm_evaluation": (
        "recipes/evaluate_vlm.py",
        ("--model", "sft", "--tasks", "scenes?count=4", "--max_samples", 2),
    ),
    "language_model": ("recipes/small_language_model.py", ("--conversations", "scenes?count=8")),
}


@pytest.fixture(scope="session")
def programs():
    """Of each program, by the name of its folder in `made`: its script and options."""
    return PROGRAMS


@pytest.fixture(scope="session")
def made(runs, tmp_path_factory):
    """A folder with a real run of every program, by the names of `programs`; and with `saved` (of
    save_encoder), `images`, `empty` and `tokenizer`."""
    root = tmp_path_factory.mktemp("made")
    for name, (script, options) in PROGRAMS.items():
        runs.finish(
            runs.start(
                script, *options, "--output_dir", name, folder=root, environment={"XDG_CACHE_HOME": str(root)}
            )
        )
    save_encoder(load_encoder("tiny:siglip"), root / "saved")
    (root / "empty").mkdir()
    (root / "images" / "cats").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(root / "images" / "cats" / "1.png")
    tiny_tokenizer().save_pretrained(root / "tokenizer")
    return root
