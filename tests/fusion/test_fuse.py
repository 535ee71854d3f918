"""The command `fuse`, its model cards, the stub, and pictures of attention, as a user meets
them."""

import re
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

from encoders import load_encoder, save_encoder
from fusion.tiny import tiny_language_model

ROOT = Path(__file__).resolve().parents[2]


FUSE = "fusion/fuse.py"
SMALL = ("--connector_width", 16, "--connector_heads", 4, "--connector_depth", 1)


def test_without_arguments_it_fuses_tiny_encoders(runs, tmp_path):
    """By the command as users type it."""
    run = runs.launch(
        [sys.executable, "-m"], "fusion.fuse", *SMALL, environment={"PYTHONPATH": str(ROOT)}, folder=tmp_path
    )
    printed = runs.finish(run)
    assert "tiny:siglip: 64 x 64 pixels -> 8 x 8, 1 x 1 under each token" in printed
    assert "sva: 72 tokens of 1024 for a square image" in printed
    assert AutoModel.from_pretrained(tmp_path / "outputs" / "fused-1").config.connector == "sva"
    assert "outputs/fused-1" in runs.error(FUSE, "--output_dir", "outputs/fused-1", *SMALL, folder=tmp_path)


def test_two_folders_and_a_language_model_become_one_and_its_card_works(runs, tmp_path, pictures):
    """Encoders and language model come from folders, as users have them; the card's snippet is run
    as it stands."""
    save_encoder(load_encoder("tiny:dinov2"), tmp_path / "one")
    save_encoder(load_encoder("tiny:clip"), tmp_path / "two")
    for part in tiny_language_model("qwen3"):
        part.save_pretrained(tmp_path / "llm")
    pictures[0].save(tmp_path / "image.jpg")
    two = ("--encoders", "one", "two?layers=-2&norm=false&grid=8", "--grid", 4)
    stubbed = (
        "--encoders",
        "one",
        "two",
        "--language_model",
        "llm",
        "--num_sva_layers",
        2,
        "--sva_stride",
        2,
        "--stub",
        "true",
    )
    for folder, options in (("vision", two), ("vlm", stubbed)):
        runs.finish(runs.start(FUSE, *options, "--output_dir", folder, *SMALL, folder=tmp_path))
        card = (tmp_path / folder / "README.md").read_text()
        snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("path/to/this/folder", folder)
        runs.finish(runs.start_plain(snippet, project=True, folder=tmp_path))
        assert f"--output_dir {folder}" in card


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--connector", "svaa"), "there is no connector 'svaa'; did you mean sva?"),
        (("--connector", "mlp"), "needs one encoder"),
        (("--connector", "mlp", "--num_queries", 4), "the connector mlp has no num_queries"),
        (
            ("--encoders", "tiny:dinov2?grid=7", "--grid", 4),
            "a grid of 7 x 7, which the connector's 4 x 4 does not divide; hand on 8",
        ),
        (
            ("--encoders", "tiny:dinov2?size=7"),
            "unknown option 'size'; options of an encoder: layers, norm, image_size, grid",
        ),
        (("--encoders", "tiny:dinov2?grid=x"), "grid=x is no whole number"),
        (("--encoders", "nowhere"), "'nowhere' is no folder and names no encoder"),
        (("--num_sva_layers", 2), "--num_sva_layers goes with --language_model"),
        (("--language_model", "tiny:nothing"), "tiny:nothing does not exist; the families are llama"),
        (("--language_model", "nowhere"), "the language model nowhere cannot be loaded"),
    ],
)
def test_mistakes_are_one_line(runs, tmp_path, args, message):
    assert message in runs.error(FUSE, *args, folder=tmp_path)
    assert not (tmp_path / "outputs").exists()
