"""SigLIP and MAE with tiny options, as users start them, and what their runs leave behind."""

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

TINY = """
dataset: scenes?size=32&count=40
eval_dataset: scenes?size=32&count=20&split=held_out
image_size: 32
patch_size: 8
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
OWN = {"mae": "learning_rate: 0.005\n", "siglip": ""}
CLOCKS = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
EVAL_CLOCKS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


class Training:
    """A script with tiny options, in processes of its own."""

    def __init__(self, runs, name: str, folder: Path) -> None:
        self.runs, self.name, self.script, self.folder = runs, name, f"pretrain/{name}.py", folder
        self.config = folder / "tiny.yaml"
        self.config.write_text(TINY + OWN[name])

    def start(self, folder: Path, *options):
        return self.runs.start(self.script, self.config, "--output_dir", folder, *options)

    def start_two(self, folder: Path, *options) -> list:
        return self.runs.start_two(self.script, self.config, "--output_dir", folder, *options)

    def finish(self, folder: Path, *options) -> str:
        """What a whole run printed."""
        return self.runs.finish(self.start(folder, *options))

    def error(self, folder: Path, *options) -> str:
        return self.runs.error(self.script, self.config, "--output_dir", folder, *options)

    @cached_property
    def whole(self) -> Path:
        """The folder of a run that nothing happened to."""
        folder = self.folder / "whole"
        assert f"saved {folder}" in self.finish(folder)
        return folder


@pytest.fixture(scope="session")
def trainings(runs, tmp_path_factory):
    return {name: Training(runs, name, tmp_path_factory.mktemp(name)) for name in OWN}


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 52, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="session", name="metrics")
def _metrics():
    return metrics


def metrics(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock. JSON holds every float exactly."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [
        {name: value for name, value in line.items() if name not in (*CLOCKS, *EVAL_CLOCKS)} for line in lines
    ]
    return [line for line in lines if "train_loss" not in line]  # the mean since the last start


@pytest.fixture(scope="session")
def same():
    def same(ours: Path, theirs: Path) -> None:
        """Every logged number and every byte of the weights are equal."""
        assert metrics(ours) == metrics(theirs)
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        assert all(torch.isfinite(tensor).all() for tensor in load_file(ours / "model.safetensors").values())

    return same


@pytest.fixture(scope="session")
def snippet():
    def snippet(card: Path, picture: Path) -> dict:
        """The names that the card's code leaves behind when it is run on its folder and a
        picture."""
        text = card.read_text()
        code = text[text.index("```python\n") + 10 :].partition("```")[0]
        names: dict = {}
        exec(code.replace("path/to/this/folder", str(card.parent)).replace("image.jpg", str(picture)), names)
        return names

    return snippet
