import ast
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from transformers.image_utils import load_image

from vision_core.images.decode import decode_image
from vision_core.model_card import LOADING_SNIPPET, write_model_card

CARD = {
    "title": "A small encoder",
    "summary": "A ViT trained without labels.",
    "training_command": "accelerate launch pretrain/dinov2.py --max_steps 10",
    "data": "Drawn scenes.",
    "results": [
        {"features": "CLS | mean", "k-NN": 0.123456, "k": 20},
        {"features": "raw\npixels", "k-NN": 0.3},
    ],
    "settings": {"learning_rate": 5e-4, "crop_scale": [0.32, 1.0], "max_steps": None},
    "note": "Not run at scale.",
}


def card(tmp_path, **changes) -> str:
    write_model_card(tmp_path / "README.md", **(CARD | changes))
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    return (tmp_path / "README.md").read_text()


def test_front_matter_is_what_the_hub_reads(tmp_path):
    text = card(tmp_path, tags=["dinov2", "yes: no"])
    assert text.startswith("---\n")
    fields = yaml.safe_load(text.split("---\n")[1])
    expected = {
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["dinov2", "yes: no"],
    }
    assert fields == expected
    assert text.split("---\n", 2)[2].startswith("\n# A small encoder\n\nA ViT trained without labels.\n")


def test_tables(tmp_path):
    lines = card(tmp_path).splitlines()
    start = lines.index("| features | k-NN | k |")
    assert lines[start + 1 : start + 4] == [
        "| --- | --- | --- |",
        "| CLS \\| mean | 0.1235 | 20 |",
        "| raw pixels | 0.3 |  |",
    ]
    assert (
        "| learning_rate | 0.0005 |" in lines
        and "| crop_scale | [0.32, 1.0] |" in lines
        and "| max_steps | None |" in lines
    )
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert cells == [4] * 4 + [3] * 5


def test_everything_that_was_given_is_in_the_card(tmp_path):
    text = card(
        tmp_path,
        results_command="python -m recipes.evaluate_encoder X",
        pictures={"Loss": "figures/loss.png"},
    )
    for part in (
        "```bash\naccelerate launch",
        "Drawn scenes.",
        "Not run at scale.",
        "recipes.evaluate_encoder X",
        "![Loss](figures/loss.png)",
    ):
        assert part in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## Use", "## Results", "## Training", "## Data", "## Limits"]


def test_a_card_without_measurements_says_so(tmp_path):
    text = card(tmp_path, results=[], results_command="never run")
    assert "Nothing was measured." in text and "never run" not in text


def test_the_loading_snippet_is_python_that_names_the_auto_classes():
    tree = ast.parse(LOADING_SNIPPET.removeprefix("```python\n").removesuffix("```"))
    names = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert names == {"load_image", "AutoImageProcessor", "AutoModel"}


def test_the_loading_snippet_runs(tmp_path, monkeypatch):
    """In the folder of a tiny saved model, as a reader would."""
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    folder = tmp_path / "path/to/this/folder"
    transformers.Dinov2Model(config).save_pretrained(folder)
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    processor.save_pretrained(folder)
    Image.new("RGB", (40, 30)).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec(LOADING_SNIPPET.removeprefix("```python\n").removesuffix("```"), variables)
    assert variables["tokens"].shape == (1, 1 + 4, 16)


def test_the_snippet_opens_an_image_as_training_does(tmp_path):
    """A photograph that its camera took upright and stored lying down; transformers' processors
    leave that to whoever opens it."""
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg", exif=turned)
    opened = re.search(r"processor\((load_image\(.*?\)), return_tensors", LOADING_SNIPPET)[1]
    image = eval(opened.replace("image.jpg", str(tmp_path / "image.jpg")), {"load_image": load_image})
    assert torch.equal(pil_to_tensor(image), decode_image((tmp_path / "image.jpg").read_bytes()))
