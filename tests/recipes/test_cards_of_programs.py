"""The cards of real runs: what the Hub reads of them, what they say, and that their commands and
their lines of Python run as they stand."""

import re
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from PIL import Image

from encoders.card import SNIPPET
from pretrain.run.args import DINOv2Arguments
from pretrain.run.card import judgement

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ("dinov2", "siglip", "mae", "align", "sft", "lora")
CARDS = (*TRAINED, "fused", "vlm", "saved")


def card(folder) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def section(text: str, name: str) -> str:
    return re.search(rf"## {name}\n(.*?)(?=\n## |\Z)", text, re.DOTALL)[1]


def python_of(text: str, folder: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)).replace(
        "path/to/this/folder", folder
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CARDS)
def test_the_hub_reads_a_card(made, name):
    fields = metadata_load(made / name / "README.md")
    assert (
        fields["library_name"] == ("vision-encoder-fusion" if name == "saved" else "transformers")
        and fields["tags"]
    )
    read = ModelCard.load(made / name / "README.md")
    assert read.data.pipeline_tag == fields["pipeline_tag"] and read.text.lstrip().startswith("# ")


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_what_a_reader_compares_first(made, name):
    text = card(made / name)
    for what in (
        r"\| parameters \| [\d.]+ M \|",
        r"\| made on \| 20\d\d-\d\d-\d\d \|",
        r"\| code \| vision-encoder-fusion.*, Apache-2.0 \|",
    ):
        assert re.search(what, text), what
    for what in (
        "| image sizes | ",
        "| hardware | ",
        "| libraries | torch ",
        "transformers ",
        "Licence of the ",
    ):
        assert what in text, what
    assert len(section(text, "Limits").split()) > 8
    if name in TRAINED:
        step = 4 if name in ("dinov2", "siglip", "mae") else 2
        assert f"{step} a device x 1 accumulated x 1 processes = {step} a step" in text
        assert re.search(r"\| steps \| 2", text) and "for 2 steps" in section(text, "Limits")
        assert "Nothing was measured." not in text  # a loss, however short the run


def test_a_warm_up_of_a_short_run_is_in_its_config(made):
    """--max_steps 2 alone; the main job keeps its 50."""
    assert yaml.safe_load((made / "dinov2" / "config.yaml").read_text())["warmup_steps"] == 0
    assert (DINOv2Arguments().warmup_steps, DINOv2Arguments().max_steps) == (50, 920)


def test_a_model_below_its_references_is_said_to_be(made):
    judged = partial(judgement, "scenes", "bank 40, queries 20")
    references = {"raw_pixels": 33.7, "colour_histogram": 5.0, "untrained": 17.6}
    said = " ".join(judged(references, {"cls": 10.0, "patch_mean": 12.0}))
    assert (
        "Its k-NN of 12.0 % is not above raw pixels (33.7 %) and untrained (17.6 %)" in said
        and "histogram" not in said
    )
    assert "not above" not in " ".join(judged(references, {"cls": 55.0}))
    assert "Nothing was measured" in " ".join(judgement("scenes", "", {}, {}))


def command_of(text: str) -> list[str]:
    return shlex.split(re.search(r"```bash\n(.*?)\n```", section(text, "Training"), re.DOTALL)[1])


@pytest.mark.parametrize("name", TRAINED)
def test_the_command_of_a_card_starts_the_run_again(runs, made, programs, name):
    launcher, script, options = re.fullmatch(
        r"(accelerate launch|python) (\S+) (--config .*)", " ".join(command_of(card(made / name)))
    ).groups()
    assert launcher == ("python" if programs[name][0].startswith("recipes") else "accelerate launch")
    assert Path(script) == ROOT / programs[name][0] or (made / script).resolve() == ROOT / programs[name][0]
    printed = runs.finish(
        runs.start(programs[name][0], *shlex.split(options), "--dry_run", "true", folder=made)
    )
    assert "nothing is trained, nothing is written" in printed and not (made / f"{name}-again").exists()


def test_it_starts_as_it_is_typed(runs, made):
    """Through the launcher, from the folder in which the run was started."""
    launcher, word, script, *options = command_of(card(made / "dinov2"))
    run = runs.launch(
        [str(Path(sys.executable).with_name(launcher)), word],
        script,
        *options,
        "--dry_run",
        environment={"ACCELERATE_USE_CPU": "true"},
        folder=made,
    )
    assert "nothing is trained" in runs.finish(run)


@pytest.mark.parametrize("name", ["fused", "vlm"])
def test_the_command_of_a_fused_model_makes_it_again(runs, made, name):
    python, option, module, *options = command_of(card(made / name))
    assert (python, option, module) == ("python", "-m", "fusion.fuse")
    runs.finish(runs.start("fusion/fuse.py", *options, folder=made))
    weights = [(made / folder / "model.safetensors").read_bytes() for folder in (name, f"{name}-again")]
    shutil.rmtree(made / f"{name}-again")
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", ["dinov2", "siglip", "mae", "fused", "vlm", "sft", "lora", "saved"])
def test_the_lines_of_a_card_run(runs, made, tmp_path, name):
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "image.jpg")
    (tmp_path / "model").symlink_to(made / name)
    lines = python_of(card(made / name), "model")
    printed = runs.finish(runs.start_plain(lines, project=True, folder=tmp_path))
    if name in ("vlm", "sft", "lora"):
        assert (
            lines.count("apply_chat_template(") == 2 and printed.count("['") + printed.count('["') >= 1
        )  # one conversation, and several


def test_the_docs_ask_a_trained_model(runs, made, tmp_path):
    page = (ROOT / "docs" / "fine_tuning.md").read_text(encoding="utf-8")
    (lines,) = [
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "apply_chat_template" in code
    ]
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "image.jpg")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "sft").symlink_to(made / "sft")
    runs.finish(runs.start_plain(lines, project=True, folder=tmp_path))


def test_the_snippet_of_a_saved_encoder_opens_images_as_training_does():
    """`encoder.transform` opens the file itself, with the number of channels that the encoder
    has."""
    assert "encoder.transform(" in SNIPPET and "image_tensor(" not in SNIPPET


LOAD = """
import transformers
for auto in {autos}:
    try:
        loaded = getattr(transformers, auto).from_pretrained("model", trust_remote_code={trust})
        print(auto, "gave", type(loaded).__name__)
    except Exception as error:
        print(auto, "raised", type(error).__name__, " ".join(str(error).split()))
"""
AUTOS = {
    "fused": ("AutoImageProcessor", "AutoModel"),
    "sft": ("AutoProcessor", "AutoModelForImageTextToText"),
}
AUTOS |= {"lora": AUTOS["sft"], "sft/checkpoint-2": AUTOS["sft"]}


@pytest.mark.parametrize("name", AUTOS)
@pytest.mark.parametrize("importable", [True, False], ids=["this package is there", "it is not"])
def test_without_the_import_nothing_is_loaded_in_silence(runs, made, tmp_path, name, importable):
    """In a process that imports transformers alone, in a folder with nothing but the model: never a
    bare tokenizer, never another cure."""
    shutil.copytree(made / name, tmp_path / "model")

    def said(trust):
        code = LOAD.format(autos=AUTOS[name], trust=trust)
        printed = runs.finish(runs.start_plain(code, project=importable, folder=tmp_path))
        return re.findall(
            r"Auto\w+ (?:gave|raised) .*", printed
        )  # behind a question, which nobody is there to answer

    for trust in (False, None):
        lines = said(trust)
        assert len(lines) == 2 and all(
            "raised" in line and "trust_remote_code=True" in line for line in lines
        ), lines
    lines = said(True)
    if importable:
        assert [line.split()[1] for line in lines] == ["gave", "gave"] and all(
            "Fus" in line for line in lines
        ), lines
    else:
        assert all(
            "pip install vision-encoder-fusion, then add the line `import fusion`" in line for line in lines
        ), lines


def test_a_model_that_the_stub_loaded_is_saved_without_copies_of_our_code(runs, made, tmp_path):
    (tmp_path / "model").symlink_to(made / "sft")
    code = (
        "import transformers\n"
        "model = transformers.AutoModelForImageTextToText.from_pretrained('model', trust_remote_code=True)\n"
        "processor = transformers.AutoProcessor.from_pretrained('model', trust_remote_code=True)\n"
        "model.save_pretrained('saved')\nprocessor.save_pretrained('saved')\n"
    )
    runs.finish(runs.start_plain(code, project=True, folder=tmp_path))
    assert not list((tmp_path / "saved").glob("*.py"))


def test_with_the_import_a_pipeline_asks_for_no_trust(runs, made, tmp_path):
    (tmp_path / "model").symlink_to(made / "sft")
    Image.new("RGB", (40, 30), "orange").save(tmp_path / "image.jpg")
    code = (
        "from transformers import pipeline\nimport fusion\nask = pipeline('image-text-to-text', model='model')\n"
        "shown = [{'type': 'image', 'path': 'image.jpg'}, {'type': 'text', 'text': 'What is it?'}]\n"
        "print(ask(text=[{'role': 'user', 'content': shown}], max_new_tokens=2)[0]['generated_text'][-1]['role'])\n"
    )
    assert "assistant" in runs.finish(runs.start_plain(code, project=True, folder=tmp_path))
