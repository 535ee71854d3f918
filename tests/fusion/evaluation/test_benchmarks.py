"""Benchmarks read from files in their published formats, scored as they are published."""

import base64
import csv
import json
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fusion.conversations.conversation import BadRow
from fusion.evaluation.answers import chance, score_answers
from fusion.evaluation.benchmark_readers import cv_bench_weights
from fusion.evaluation.benchmarks import open_task
from fusion.evaluation.grading import letter
from fusion.evaluation.tasks import BenchmarkQuestion
from tests.fusion.evaluation.pictures import png
from vision_core.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmarks")
    for number in range(1, 5):
        (path / f"{number}.jpg").write_bytes(png(number))
    return path


def test_cv_bench_and_its_mean(folder):
    struct = {"bytes": png(), "path": None}
    rows = []
    for kind, task, source, answer in [
        ("2D", "Count", "ADE20K", "(A)"),
        ("2D", "Relation", "COCO", "(B)"),
        ("2D", "Count", "COCO", "(A)"),
        ("3D", "Depth", "Omni3D_SUNRGBD", "(B)"),
    ]:
        row = {"type": kind, "task": task, "source": source, "answer": answer}
        rows.append(row | {"image": struct, "question": "which?", "choices": ["one", "two"]})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test.parquet")
    task = open_task(f"cv_bench:{folder}/test.parquet")
    assert (
        task.prompt_for(task.questions[0]).splitlines()[1:3] == ["(A) one", "(B) two"] and chance(task) == 50
    )
    assert tuple(task.questions[3].images()[0].shape) == (3, 40, 48)
    score = score_answers(task, ["A", "A", "A", "(B) two"])
    assert score.groups == {"ADE20K": (100.0, 1), "COCO": (50.0, 2), "Omni3D": (100.0, 1)}
    assert score.score == ((100 + 50) / 2 + 100) / 2
    assert score.error == pytest.approx(
        100 * 0.25 * 0.5 / 2**0.5
    )  # only COCO's two questions, a quarter of the figure, differ


def test_chance_and_error_are_of_the_figure_that_is_weighted(folder):
    """By the published formula, from chances by group; and the error against many sets of answers
    drawn at random."""
    counts = {"ADE20K": (40, 5), "COCO": (10, 4), "Omni3D": (20, 2)}
    questions = [
        BenchmarkQuestion("", "", ("A",), list, tuple("vwxyz"[:choices]), group)
        for group, (count, choices) in counts.items()
        for _ in range(count)
    ]
    task = replace(open_task("scenes?count=1"), questions=questions, grade=letter, weights=cv_bench_weights)
    assert chance(task) == pytest.approx(((20 + 25) / 2 + 50) / 2)
    generator = np.random.default_rng(0)
    scores = [score_answers(task, generator.choice(["A", "B"], len(questions))) for _ in range(400)]
    assert np.mean([each.error for each in scores]) == pytest.approx(
        np.std([each.score for each in scores]), rel=0.1
    )


def test_mmvp_counts_pairs(folder):
    (folder / "mmvp" / "MMVP Images").mkdir(parents=True)
    for number in range(1, 5):
        (folder / "mmvp" / "MMVP Images" / f"{number}.jpg").write_bytes(png(number))
    with (folder / "mmvp" / "Questions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Index", "Question", "Options", "Correct Answer"])
        rows.writerows(
            [
                [number, "open?", "(a) Open (b) Closed", "(a)" if number % 2 else "(b)"]
                for number in range(1, 5)
            ]
        )
    task = open_task(f"mmvp:{folder / 'mmvp'}")
    assert task.questions[0].choices == ("Open", "Closed") and task.questions[1].expected == ("B",)
    score = score_answers(task, ["(a)", "b", "Open", "(a)"])
    assert score.score == 50 and score.groups == {"all": (50.0, 2)} and chance(task) == 25


def test_pope_gqa_vqa_and_captions(folder):
    lines = [
        {"question_id": 1, "image": "1.jpg", "text": "Is there\u2028a dog?", "label": "yes"},
        {"image": "2.jpg", "text": "A cat?", "label": "no"},
    ]
    (folder / "pope.json").write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n"
    )
    task = open_task(f"pope:{folder / 'pope.json'}")
    assert (
        score_answers(task, ["Yes, there is.", "yes"]).score == 50
        and task.questions[0].text == "Is there\u2028a dog?"
    )
    (folder / "gqa.json").write_text(
        json.dumps({"07": {"question": "Colour?", "answer": "red", "imageId": "3"}})
    )
    assert score_answers(open_task(f"gqa:{folder / 'gqa.json'}?images={folder}"), ["Red."]).score == 100
    (folder / "vqa.json").write_text(
        json.dumps(
            [{"question": "Colour?", "image": "1.jpg", "answers": [{"answer": "red"}] * 3 + ["blue"] * 7}]
        )
    )
    assert score_answers(open_task(f"vqa:{folder / 'vqa.json'}"), ["red"]).score == pytest.approx(
        100 * (3 * 2 / 3 + 7) / 10
    )
    notes = [
        {"image_id": 1, "caption": "a dog runs"},
        {"image_id": 1, "caption": "the dog"},
        {"image_id": 2, "caption": "two cars drive by"},
    ]
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2, 3)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    task = open_task(f"captions:{folder / 'captions.json'}")
    assert (
        len(task.questions) == 2
        and score_answers(task, ["a dog runs", "two cars drive by"]).score
        > score_answers(task, ["two cars", "a dog"]).score
    )
    assert chance(task) is None


def test_mmbench_is_circular(folder):
    image = base64.b64encode(png()).decode()
    rows = [["index", "image", "question", "hint", "A", "B", "C", "answer", "category"]]
    rows += [
        ["7", image, "which?", "", "x", "y", "z", "A", "shape"],
        ["1000007", "7", "which?", "", "y", "z", "x", "C", "shape"],
    ]
    rows += [["8", image, "what?", "look\nhere", "x", "y", "", "B", "shape"]]
    with (folder / "mmbench.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    task = open_task(f"mmbench:{folder / 'mmbench.tsv'}")
    assert [question.bundle for question in task.questions] == ["7", "7", "8"] and task.questions[
        2
    ].text == "look\nhere what?"
    assert tuple(task.questions[1].images()[0].shape) == (3, 40, 48)
    assert (
        score_answers(task, ["A", "C", "A"]).score == 50 and score_answers(task, ["A", "A", "B"]).score == 50
    )
    assert chance(task) == pytest.approx(100 * (1 / 9 + 1 / 2) / 2)


def test_bad_files_are_named(folder):
    with pytest.raises(UserError, match="names no task"):
        open_task("tsv:x")
    with pytest.raises(UserError, match="unknown option 'images'; options of mmvp: none"):
        open_task("mmvp:x?images=y")
    with pytest.raises(UserError, match="cannot be read"):
        open_task(f"pope:{folder / 'absent.json'}")
    (folder / "bad.json").write_text('{"image": "1.jpg", "text": "x", "label": "yes"}\n{"image"')
    with pytest.raises(BadRow, match="bad.json, line 2: no JSON"):
        open_task(f"pope:{folder / 'bad.json'}")
    (folder / "bad.json").write_text('{"image": "../x.jpg", "text": "x", "label": "yes"}')
    with pytest.raises(BadRow, match="line 1.*leads out"):
        open_task(f"pope:{folder / 'bad.json'}")
    (folder / "bad.json").write_text(
        '{"image": "9.jpg", "text": "x", "label": "yes"}\n{"image": "1.jpg", "text": "x"}'
    )
    with pytest.raises(BadRow, match="line 2: there is no 'label'"):
        open_task(f"pope:{folder / 'bad.json'}")
