import ast
import re

import pytest
import yaml

from vision_core.model_card import LOADING_SNIPPET, write_model_card

CARD = {
    "title": "A small encoder",
    "summary": "A ViT trained without labels.",
    "training_command": "accelerate launch pretrain/dinov2.py --max_steps 10",
    "data": "Drawn scenes.",
    "results": [{"features": "CLS | mean", "k-NN": 0.123456, "k": 20}, {"features": "raw\npixels", "k-NN": 0.3}],
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
    assert "| learning_rate | 0.0005 |" in lines and "| crop_scale | [0.32, 1.0] |" in lines and "| max_steps | None |" in lines
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert cells == [4] * 4 + [3] * 5


def test_everything_that_was_given_is_in_the_card(tmp_path):
    text = card(tmp_path, results_command="python -m recipes.evaluate_encoder X", pictures={"Loss": "figures/loss.png"})
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
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == {"Image", "AutoImageProcessor", "AutoModel"}


def test_the_loading_snippet_runs(tmp_path, monkeypatch):
    """In the folder of a tiny saved model, as a reader would."""
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    folder = tmp_path / "path/to/this/folder"
    transformers.Dinov2Model(config).save_pretrained(folder)
    processor = transformers.BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(folder)
    Image.new("RGB", (40, 30)).save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec(LOADING_SNIPPET.removeprefix("```python\n").removesuffix("```"), variables)
    assert variables["tokens"].shape == (1, 1 + 4, 16)
