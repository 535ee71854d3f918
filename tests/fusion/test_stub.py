"""A folder with the stub, and one without it."""

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion.save import save_fused


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
        f"processor = transformers.{auto[1]}.from_pretrained('model', trust_remote_code=True)\n"
        "print(type(loaded).__name__, type(processor).__name__)\n"
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
