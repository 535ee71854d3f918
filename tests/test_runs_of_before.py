"""Folders that an earlier version wrote are resumed and loaded: the course and the weights are
those of its own uninterrupted run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText

import fusion  # noqa: F401  registers the fused models

BEFORE = Path(__file__).with_name("runs_of_before")
PROGRAMS = {"dinov2": "pretrain/dinov2.py", "mae": "pretrain/mae.py", "sft": "recipes/sva_sft.py"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of them, in which programs may write."""
    return shutil.copytree(BEFORE, tmp_path_factory.mktemp("before") / "runs")


def losses(run: Path) -> torch.Tensor:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines if "loss" in line], dtype=torch.float64)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_of_before_goes_on_to_the_same_end(runs, folder, name):
    arguments = ("--config", f"{name}/config.yaml", "--resume_from_checkpoint", "true")
    printed = runs.finish(runs.start(PROGRAMS[name], *arguments, folder=folder))
    assert "changed config" not in printed, "options that were renamed have not changed"
    expected = losses(BEFORE / name)
    assert len(expected) == 6
    torch.testing.assert_close(losses(folder / name), expected, rtol=1e-4, atol=0)
    ours = load_file(folder / name / "model.safetensors")
    theirs = load_file(BEFORE / name / "last_model.safetensors")
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-3, atol=1e-4)
    model_type = AutoModelForImageTextToText if name == "sft" else AutoModel
    assert model_type.from_pretrained(folder / name, trust_remote_code=False)


def test_a_finished_evaluation_of_before_is_known_by_the_new_words(runs, folder):
    task = ("--model", "model", "--tasks", "scenes?count=4&size=32", "--max_samples", 3, "--batch_size", 2)
    again = ("--output_dir", "judged", "--resume_from_checkpoint", "auto")
    printed = runs.finish(runs.start("recipes/evaluate_vlm.py", *task, *again, folder=folder))
    assert "all is done" in printed
