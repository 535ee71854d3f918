"""The page about fused models on scenes, from folders as the programs leave them."""

import json
import re
import statistics
import sys

import pytest

from fusion.evaluation.benchmarks import open_task
from recipes.scenes_report import QUESTION_KINDS, with_means

SCRIPT = "recipes/scenes_report.py"
TASK = "scenes?count=24&split=held_out"
KINDS = [*QUESTION_KINDS["what"], *QUESTION_KINDS["where"]]


def write_judged_model(folder, variant, seed, right):
    """What fine-tuning and judging leave of a model that answers `right` percent of each kind."""
    judged = folder / f"{variant}-{seed}" / "judged"
    sft = folder / f"{variant}-{seed}" / "sft"
    judged.mkdir(parents=True)
    sft.mkdir()
    groups = {kind: [right, 3] for kind in KINDS}
    blind = {kind: [10.0, 3] for kind in groups}
    task = {"images": {"groups": groups}, "blind": {"groups": blind}, "shuffled": {"groups": blind}}
    (judged / "results.json").write_text(json.dumps({"tasks": {TASK: task}}))
    rows = [{"images": "red" if at % 2 else "", "points": float(at % 2)} for at in range(24)]
    (judged / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    metrics = [{"step": step, "loss": 3.0 / step} for step in range(1, 6)] + [
        {"step": 5, "train_runtime": 9.0}
    ]
    (sft / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)) + "\n")


def test_the_page(runs, tmp_path):
    for seed, right in enumerate((50.0, 60.0, 70.0)):
        write_judged_model(tmp_path, "sva", seed, right)
        write_judged_model(tmp_path, "siglip", seed, right / 2)
    arguments = ("--models", tmp_path, "--output_dir", tmp_path / "report")
    printed = runs.finish(runs.launch([sys.executable], SCRIPT, *arguments))
    page = (tmp_path / "report" / "README.md").read_text()
    spread = f"60.0 ± {statistics.stdev((50.0, 60.0, 70.0)):.1f}"
    assert re.search(rf"\| sva \| 3 \| {re.escape(spread)} \|", page) and re.search(
        r"\| siglip \| 3 \| 30\.0 ± 5\.0 \|", page
    )
    assert "sva blind | 3 | 10.0 ± 0.0" in page and "| sva | 3 |" in printed
    question = open_task(TASK).questions[2]
    assert f"| 2 | {question.text} | {question.expected[0]} | ~~(nothing)~~ | ~~(nothing)~~ |" in page
    for picture in re.findall(r"\]\((figures/\w+\.png)\)", page):
        assert (tmp_path / "report" / picture).stat().st_size > 2000
    assert page.count("![") == 3


def test_means_are_over_kinds():
    groups = {kind: float(number) for number, kind in enumerate(KINDS)}
    assert with_means(groups) == groups | {"what": 1.0, "where": 5.0, "all": 3.5}


@pytest.mark.parametrize("given", [[], ["--models", "nowhere"]])
def test_nothing_to_show(given, runs):
    assert "run recipes/everything_on_scenes.sh first" in runs.error(SCRIPT, *given)
