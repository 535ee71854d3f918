"""The whole chain from one command, with encoders that are there already and few steps; and what it
says when something is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from encoders.preprocess import PUBLISHED_MARGIN, save_image_processor

SCRIPT = Path(__file__).parents[2] / "recipes" / "everything_on_scenes.sh"


def run(folder, timeout, **environment):
    chosen = os.environ | {"PYTHON": sys.executable, "SEEDS": "0", "STEPS": "2"} | environment
    return subprocess.run(
        ["bash", str(SCRIPT), str(folder)], env=chosen, capture_output=True, text=True, timeout=timeout
    )


def small_siglip(folder):
    torch.manual_seed(0)
    size = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    SiglipVisionModel(SiglipVisionConfig(**size)).save_pretrained(folder)
    save_image_processor(folder, (32, 32), [0.5] * 3, [0.5] * 3, PUBLISHED_MARGIN)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_encoders_to_the_page(save_run, tmp_path):
    """Once whole; a second time nothing is made again but the page."""
    out = tmp_path / "every thing"
    save_run(out / "dinov2")
    small_siglip(out / "siglip")
    done = run(out, 1100)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (out / "report" / "README.md").read_text()
    assert all(
        f"| {name} | 1 |" in page for name in ("dinov2", "siglip", "channel_concat", "sva_connector", "sva")
    )
    assert not list(out.rglob("*.unfinished-*"))
    again = run(out, 60)
    assert again.returncode == 0 and [line.split()[-1] for line in again.stdout.splitlines()[1:-1]] == [
        "report"
    ]


def test_what_fails_is_named(tmp_path):
    """A broken encoder ends the chain with the program's own line and where to read more; what was
    begun keeps its name of something unfinished."""
    for name in ("dinov2", "siglip", "language_model"):
        (tmp_path / name).mkdir()
    for variant in (
        "dinov2-0",
        "channel_concat-0",
        "sva_connector-0",
        "sva-0",
    ):  # as if they were finished, so that one is left
        for step in ("fused", "align", "sft", "judged"):
            (tmp_path / variant / step).mkdir(parents=True)
    done = run(tmp_path, 200)
    program, chain = [line for line in done.stderr.splitlines() if not line.startswith("xargs:")][-2:]
    assert done.returncode != 0 and "Traceback" not in done.stderr and program.startswith("error: ")
    assert chain.startswith("error: siglip-0/fused failed; all that it said is in")
    assert not (tmp_path / "report").exists() and not (tmp_path / "siglip-0" / "fused").exists()


def test_models_of_other_lengths_are_not_mixed(tmp_path):
    (tmp_path / "steps").write_text("600\n")
    done = run(tmp_path, 20, STEPS="601")
    assert (
        done.returncode == 2
        and "go on with STEPS=600" in done.stderr
        and sorted(tmp_path.iterdir()) == [tmp_path / "steps"]
    )


def test_without_an_interpreter_it_says_how_to_name_one(tmp_path):
    done = run(tmp_path / "out", 20, PYTHON="no-such-python")
    assert (
        done.returncode == 2 and "PYTHON=.venv/bin/python" in done.stderr and not (tmp_path / "out").exists()
    )
