"""The command that evaluates answers, as users run it, and its sheet of examples."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from encoders.pictures.sheets import GAP, LINE_HEIGHT, TILE
from fusion.evaluation.answers import score_answers
from fusion.evaluation.benchmarks import open_task
from fusion.training.small_default import write_small_default
from recipes.evaluate_vlm import example_sheet
from tests.fusion.evaluation.pictures import png

TEXTS = ["what colour is the largest object?", "tell me yes or no"]

SCRIPT = "recipes/evaluate_vlm.py"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_small_default(path, TEXTS, seed=0)
    return path


def test_the_sheet_shows_the_images():
    task = open_task("scenes?count=3&split=held_out")
    picture = np.asarray(example_sheet(task, score_answers(task, ["red"] * 3), count=3))
    for number, question in enumerate(task.questions):
        left, top = number * (2 * TILE + GAP), 5 * LINE_HEIGHT
        shown = picture[top : top + TILE, left : left + TILE].mean((0, 1))
        np.testing.assert_allclose(shown, question.images()[0].float().mean((1, 2)).numpy(), atol=3)


@pytest.mark.timeout(200)
def test_command_alone_and_in_two_processes(runs, model_folder, tmp_path):
    torchrun = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    for name, start in (("one", runs.start), ("two", partial(runs.launch, torchrun))):
        arguments = ("--model", model_folder, "--tasks", "scenes?count=7&split=held_out", "--batch_size", 2)
        printed = runs.finish(start(SCRIPT, *arguments, "--output_dir", tmp_path / name))
        assert "wrong images" in printed and "grader last_word" in printed
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "answers.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert one == two and len(one) == 7 and {"blind", "shuffled", "images"} <= one[0].keys()
    assert json.loads((tmp_path / "one" / "results.json").read_text())["tasks"]
    assert Image.open(tmp_path / "one" / "figures" / "0.png").width > 300


def test_mistakes_are_said_before_anything_is_loaded(runs, model_folder):
    assert "sva_sft.py" in runs.error(SCRIPT)
    assert "holds no model" in runs.error(SCRIPT, "--model", "absent")
    assert "each once" in runs.error(
        SCRIPT, "--model", model_folder, "--tasks", "scenes?count=2", "scenes?count=2"
    )
    assert "--max_samples 0 is not possible" in runs.error(
        SCRIPT, "--model", model_folder, "--max_samples", 0
    )


def test_tasks_of_one_benchmark_are_kept_apart(runs, model_folder, tmp_path):
    """As POPE's three parts are."""
    lines = [{"image": "1.jpg", "text": "Is there a dog?", "label": label} for label in ("yes", "no")]
    (tmp_path / "1.jpg").write_bytes(png())
    texts = [f"pope:{tmp_path / name}.json" for name in ("random", "popular")]
    for name, line in zip(("random", "popular"), lines, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(line))
    runs.finish(
        runs.start(SCRIPT, "--model", model_folder, "--tasks", *texts, "--output_dir", tmp_path / "judged")
    )
    assert list(json.loads((tmp_path / "judged" / "results.json").read_text())["tasks"]) == texts
