"""Evaluations that are killed, and started again by the same command: the answers and results are
those of a run that was not hurt."""

import json
import shutil

import pytest

from fusion.evaluation.answers import answer_and_score, question_as_asked
from fusion.evaluation.benchmarks import open_task
from fusion.evaluation.kept_answers import KeptAnswers, header_of, model_fingerprint
from fusion.training.models import load_model
from fusion.training.small_default import write_small_default

VLM, ENCODER, COMPARE = (
    "recipes/evaluate_vlm.py",
    "recipes/evaluate_encoder.py",
    "recipes/compare_encoders.py",
)
AUTO = ("--resume_from_checkpoint", "auto")
TEXTS = ["what colour is the largest object?", "tell me yes or no"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_small_default(path, TEXTS, seed=0)
    return path


@pytest.fixture(scope="module")
def model(model_folder):
    model, processor = load_model(str(model_folder))
    return model.eval(), processor


def results(folder):
    """results.json without the name of the folder."""
    report = json.loads((folder / "results.json").read_text())
    del report["arguments"]["output_dir"]
    return report


def kept_lines(folder):
    return [
        line
        for path in sorted((folder / "partial").glob("answers-*.jsonl"))
        for line in path.read_text().splitlines()
    ]


@pytest.mark.timeout(300)
def test_a_killed_evaluation_of_a_vlm_goes_on_and_gives_the_same_bytes(runs, model_folder, tmp_path):
    """Killed after the first lines; killed again, with a torn last line; begun by two processes and
    ended by one."""
    arguments = (
        "--model",
        model_folder,
        "--tasks",
        "scenes?count=9&split=held_out",
        "--batch_size",
        2,
        *AUTO,
    )
    whole, hurt, two = (tmp_path / name for name in ("whole", "hurt", "two"))
    runs.finish(runs.start(VLM, *arguments, "--output_dir", whole))
    for lines in (2, 12):
        run = runs.start(VLM, *arguments, "--output_dir", hurt)
        run.wait_until(lambda lines=lines: len(kept_lines(hurt)) > lines)
        run.kill()
        assert (hurt / "unfinished.json").exists() and not (hurt / "results.json").exists()
        answers = hurt / "partial" / "answers-0000.jsonl"
        answers.write_bytes(answers.read_bytes()[:-9])  # as a power cut leaves it
    pair = runs.start_two(VLM, *arguments, "--output_dir", two)
    pair[0].wait_until(lambda: len(kept_lines(two)) > 8)
    runs.kill(*pair)
    for folder in (hurt, two):
        printed = runs.finish(runs.start(VLM, *arguments, "--output_dir", folder))
        assert "answers of an earlier start are kept" in printed
        assert results(folder) == results(whole)
        for name in ("answers.jsonl", "README.md", "figures/0.png"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()
        assert not (folder / "partial").exists() and not (folder / "unfinished.json").exists()
        assert "all is done" in runs.finish(runs.start(VLM, *arguments, "--output_dir", folder))
    said = runs.error(VLM, *(3 if word == 2 else word for word in arguments), "--output_dir", hurt)
    assert "batch_size 2 there and 3 here" in said


def test_kept_answers_are_those_of_one_model_task_and_image(model, model_folder, tmp_path):
    """Torn at any byte, the file gives the same score; of anything else it gives nothing."""
    task = open_task("scenes?count=5&split=held_out")
    header = header_of(model_fingerprint(model_folder, "cpu"), task, 2, 0)
    score = answer_and_score(*model, task, "images", 2, kept=KeptAnswers(tmp_path, header))
    answers = (tmp_path / "answers-0000.jsonl").read_bytes()
    assert len(answers.splitlines()) == 6 and score == answer_and_score(*model, task, "images", 2)
    for cut in (0, 1, 100, len(answers) // 2, len(answers) - 1, len(answers)):
        (tmp_path / "answers-0000.jsonl").write_bytes(answers[:cut])
        kept = KeptAnswers(tmp_path, header)
        assert len(kept) == max(len(answers[:cut].splitlines()) - 1 - (0 < cut < len(answers) - 1), 0)
        assert answer_and_score(*model, task, "images", 2, kept=kept) == score
    asked = [question_as_asked(task, number, "images") for number in (0, 1)]
    assert KeptAnswers(tmp_path, header).find("images", (0, 1), asked) is not None
    assert KeptAnswers(tmp_path, header).find("images", (0, 1), asked[::-1]) is None  # other images
    assert KeptAnswers(tmp_path, header).find("blind", (0, 1), asked) is None
    for other in (
        header_of("another model", task, 2, 0),
        header_of(header["model"], task, 3, 0),
        header_of(header["model"], task, 2, 8),
    ):
        assert len(KeptAnswers(tmp_path, other)) == 0
    assert (
        len(
            KeptAnswers(
                tmp_path, header_of(header["model"], open_task("scenes?count=4&split=held_out"), 2, 0)
            )
        )
        == 0
    )


def test_a_model_is_known_by_every_byte_of_its_files(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    known = {model_fingerprint(folder, "cpu"), model_fingerprint(folder, "cuda")}
    (folder / "README.md").write_text("changed")
    assert len(known) == 2 and model_fingerprint(folder, "cpu") in known
    for number, name in enumerate(
        ("model.safetensors", "config.json", "tokenizer.json", "processor_config.json"), 3
    ):
        data = bytearray((folder / name).read_bytes())
        data[-2] ^= 1
        (folder / name).write_bytes(data)
        known.add(model_fingerprint(folder, "cpu"))
        assert len(known) == number, name


QUICK = ("--linear_iterations", 20, "--dense_iterations", 20)
TASKS = ("knn", "linear", "segmentation", "depth", "emergent_segmentation")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("script", "options"), [(ENCODER, ("--encoder", "--dataset")), (COMPARE, ("--encoders", "--datasets"))]
)
def test_a_killed_evaluation_of_encoders_runs_only_what_is_missing(
    runs, encoder, colours, tmp_path, script, options
):
    arguments = (
        options[0],
        encoder,
        options[1],
        colours,
        "--tasks",
        *TASKS,
        *QUICK,
        "--cache_dir",
        tmp_path / "cache",
        *AUTO,
    )
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    runs.finish(runs.start(script, *arguments, "--output_dir", whole))
    for number in (1, 3):
        run = runs.start(script, *arguments, "--output_dir", hurt)
        run.wait_until(lambda number=number: len(list(hurt.glob("partial/[a-z]*.json"))) >= number)
        run.kill()
        assert not (hurt / "results.json").exists() and not (hurt / "README.md").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in hurt.glob("partial/[a-z]*.json")}
    (hurt / "partial" / ".tmp-linear.json").write_text('{"half')
    printed = runs.finish(runs.start(script, *arguments, "--output_dir", hurt))
    assert printed.count("kept from an earlier start") == len(kept) >= 3
    assert results(hurt) == results(whole)
    for path in whole.rglob("*"):
        if path.suffix in (".png", ".md", ".jsonl"):
            assert path.read_bytes() == (hurt / path.relative_to(whole)).read_bytes(), path
    assert "all is done" in runs.finish(runs.start(script, *arguments, "--output_dir", hurt))
    said = runs.error(script, *(21 if word == 20 else word for word in arguments), "--output_dir", hurt)
    assert "linear_iterations 20 there and 21 here, dense_iterations 20 there and 21 here" in said
    assert "names a checkpoint, and" in runs.error(script, *arguments[:-1], "true", "--output_dir", hurt)
