"""The command `fuse`, its model cards, the stub, and pictures of attention, as a user meets
them."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from encoders import load_encoder, save_encoder
from fusion.pictures import attention_shares, share_picture
from fusion.save import save_fused
from fusion.tiny import tiny_language_model
from vision_core.errors import UserError

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


@pytest.mark.parametrize("kind", ["vision", "vlm"])
def test_with_the_stub_a_process_that_imports_only_transformers_loads_it(runs, tmp_path, fused, vlm, kind):
    model, processor = fused() if kind == "vision" else vlm()
    save_fused(tmp_path / "model", model, processor, command="a command", stub=True)
    auto = {
        "vision": ("AutoModel", "AutoImageProcessor"),
        "vlm": ("AutoModelForImageTextToText", "AutoProcessor"),
    }[kind]
    script = (
        f"import transformers\nloaded = transformers.{auto[0]}.from_pretrained('model', trust_remote_code=True)\n"
        f"processor = transformers.{auto[1]}.from_pretrained('model', trust_remote_code=True)\nprint(type(loaded).__name__, type(processor).__name__)\n"
    )
    printed = runs.finish(runs.start_plain(script, project=True, folder=tmp_path))
    assert f"{type(model).__name__} {type(processor).__name__}" in printed
    refused = runs.finish(
        runs.start_plain(script.replace("True", "False"), project=True, folder=tmp_path), expect=1
    )
    assert "trust_remote_code" in refused


def test_without_the_stub_the_folder_has_no_code(tmp_path, vlm):
    model, processor = vlm()
    save_fused(tmp_path, model, processor, command="a command")
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in (tmp_path / "config.json").read_text()
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is type(model)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(processor)


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


def test_attention_shares_sum_to_one_and_make_a_picture(vlm, fused, pictures):
    model, processor = vlm()
    inputs = processor(text=["<image> and <image>"], images=pictures[:2], return_tensors="pt")
    shares = attention_shares(model, **inputs)
    assert shares.shape == (4 * 4 + 4 * 2, 2)
    assert torch.allclose(shares.sum(1), torch.ones(len(shares)))
    picture = share_picture(model, pictures[:2], inputs)
    assert picture.width > 2 * 64
    vision, image_processor = fused()
    assert attention_shares(vision, **image_processor(pictures)).shape[1] == 2
    with pytest.raises(UserError, match="connector sva"):
        attention_shares(fused("channel_concat", encoder_grids=[4, 4])[0], **image_processor(pictures))


def test_the_picture_of_shares_shows_an_image_upright(fused, tmp_path):
    """As the encoders saw it, so that a share stands at its place."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.arange(64, dtype=np.uint8).repeat(3).reshape(1, 64, 3).repeat(32, axis=0) * 4)
    image.save(tmp_path / "turned.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    model, image_processor = fused()

    def shown(name):
        inputs = image_processor(tmp_path / name)
        return share_picture(model, [Image.open(tmp_path / name)], inputs)

    assert np.array_equal(np.asarray(shown("turned.png")), np.asarray(shown("upright.png")))


def test_shares_follow_the_attention(fused, pictures):
    """With keys of one encoder made large along the query, all attention goes there."""
    model, image_processor = fused()
    batch = image_processor(pictures[:1])
    for layer in model.connector.vision_sampler[0]:
        layer.attention.k_norms[0].weight.data.zero_()
        layer.attention.k_norms[1].weight.data.zero_()
    even = attention_shares(model, **batch)
    inside = torch.full((len(even),), 1 / 5)  # one key of the first encoder, four of the second
    assert (even[:, 0] >= inside - 1e-5).all()  # more where windows of the second are partly padding
    assert torch.allclose(even.amin(0)[0], torch.tensor(0.2), atol=1e-5)
