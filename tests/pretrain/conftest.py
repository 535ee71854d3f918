"""What runs of SigLIP and MAE leave behind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CLOCKS = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
EVAL_CLOCKS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


@pytest.fixture(scope="session")
def metrics():
    def metrics(folder: Path) -> list[dict]:
        """metrics.jsonl without what depends on the clock. JSON holds every float exactly."""
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines = [{name: value for name, value in line.items() if name not in (*CLOCKS, *EVAL_CLOCKS)} for line in lines]
        return [line for line in lines if "train_loss" not in line]  # the mean since the last start

    return metrics


@pytest.fixture(scope="session")
def same(metrics):
    def same(ours: Path, theirs: Path) -> None:
        """Every logged number and every byte of the weights are equal."""
        assert metrics(ours) == metrics(theirs)
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        assert all(torch.isfinite(tensor).all() for tensor in load_file(ours / "model.safetensors").values())

    return same


@pytest.fixture(scope="session")
def snippet():
    def snippet(card: Path, picture: Path) -> dict:
        """The names that the card's code leaves behind when it is run on its folder and a picture."""
        text = card.read_text()
        code = text[text.index("```python\n") + 10 :].partition("```")[0]
        names: dict = {}
        exec(code.replace("path/to/this/folder", str(card.parent)).replace("image.jpg", str(picture)), names)
        return names

    return snippet
