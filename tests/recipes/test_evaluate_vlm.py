"""Benchmarks read from files in their published formats, and the command as users run it."""

import base64
import csv
import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from encoders.pictures.sheets import GAP, LINE_HEIGHT, TILE
from fusion.conversations.conversation import BadRow
from fusion.conversations.sources import open_conversations
from fusion.conversations.tokens import tokenise
from fusion.evaluation.answers import answer_and_score, chance, question_as_asked, score_answers
from fusion.evaluation.benchmark_readers import cv_bench_weights
from fusion.evaluation.benchmarks import open_task
from fusion.evaluation.grading import letter
from fusion.evaluation.tasks import BenchmarkQuestion, questions_of
from fusion.training.models import load_model
from fusion.training.small_default import write_small_default
from recipes.evaluate_vlm import example_sheet
from vision_core.errors import UserError
from vision_core.images.decode import decode_image

TEXTS = ["what colour is the largest object?", "tell me yes or no"]

SCRIPT = "recipes/evaluate_vlm.py"


def png(seed=0):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(
        stream, "PNG"
    )
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmarks")
    for number in range(1, 5):
        (path / f"{number}.jpg").write_bytes(png(number))
    return path


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_small_default(path, TEXTS, seed=0)
    return path


def test_cv_bench_and_its_mean(folder):
    struct = {"bytes": png(), "path": None}
    rows = [
        {"type": kind, "task": task, "source": source, "image": struct, "question": "which?", "choices": ["one", "two"], "answer": answer}
        for kind, task, source, answer in [
            ("2D", "Count", "ADE20K", "(A)"), ("2D", "Relation", "COCO", "(B)"), ("2D", "Count", "COCO", "(A)"), ("3D", "Depth", "Omni3D_SUNRGBD", "(B)"),
        ]
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test.parquet")
    task = open_task(f"cv_bench:{folder}/test.parquet")
    assert task.prompt_for(task.questions[0]).splitlines()[1:3] == ["(A) one", "(B) two"] and chance(task) == 50
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


def test_baselines_show_no_image_and_those_of_others(model_folder, monkeypatch):
    import fusion.evaluation.answers as module

    model, processor = load_model(str(model_folder))
    task = open_task("scenes?count=9&split=held_out")
    shown = {}

    def watched(model, processor, conversations, images, **generation):
        remaining = iter(images)
        places = [sum(turn["content"].count("<image>") for turn in turns) for turns in conversations]
        return [str(float(next(remaining).float().mean())) if count else "none" for count in places]

    monkeypatch.setattr(module, "replies", watched)
    for kind in ("images", "blind", "shuffled"):
        shown[kind] = answer_and_score(model, processor, task, kind, batch_size=4).answers
    assert set(shown["blind"]) == {"none"} and sorted(shown["shuffled"]) == sorted(shown["images"])
    assert all(one != other for one, other in zip(shown["images"], shown["shuffled"], strict=True))


def pictures_in_turns(folder):
    """A conversation with a system turn, two images within a question, and a third one behind the
    first answer."""
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    turns = [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "Is <image> or <image> brighter?"},
        {"role": "assistant", "content": "the first\n"},
        {"role": "user", "content": "<image>\nand this?"},
        {"role": "assistant", "content": "no"},
    ]
    rows = [{"messages": turns, "images": [f"{first}.png", "1.png", "2.png"]} for first in (0, 2)]
    (folder / "turns.json").write_text(json.dumps(rows))
    return f"messages:{folder / 'turns.json'}?images={folder}"


def test_a_conversation_is_asked_as_it_was_trained(model_folder, tmp_path, monkeypatch):
    """With its system turn, and its images where they stand: the ids that `generate` gets are the
    beginning of those that training sees."""
    source = pictures_in_turns(tmp_path)
    model, processor = load_model(str(model_folder))
    task = open_task(source)
    trained = tokenise(open_conversations(source)[0], processor, 2**20).input_ids
    seen = []
    monkeypatch.setattr(
        type(model), "generate", lambda self, **inputs: seen.append(inputs) or inputs["input_ids"]
    )
    answer_and_score(model, processor, task, "images", batch_size=1)
    asked = seen[0]["input_ids"][0].tolist()
    assert trained[: len(asked)] == asked and asked.count(
        processor.image_token_id
    ) == 2 * processor.image_processor.num_tokens(40, 48)
    assert "Answer in French." in processor.decode(asked)


def test_baselines_of_a_conversation_keep_its_turns(tmp_path):
    task = open_task(pictures_in_turns(tmp_path))
    right, blind, wrong = (question_as_asked(task, 0, shown) for shown in ("images", "blind", "shuffled"))
    assert [len(each.images) for each in (right, blind, wrong)] == [2, 0, 2]
    assert [turn.text for turn in blind.messages] == ["Answer in French.", "Is  or  brighter?"]
    assert (
        wrong.messages == right.messages
        and torch.equal(wrong.images[0], decode_image(png(2)))
        and task.questions[0].expected == ("the first",)
    )


def test_an_answer_that_is_not_learnt_is_not_graded(tmp_path):
    turns = [("human", "a?"), ("gpt", "shown"), ("human", "b?"), ("gpt", "learnt")]
    row = {
        "conversations": [
            {"from": who, "value": text, **({"weight": 0} if text == "shown" else {})} for who, text in turns
        ]
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (question,) = questions_of(open_conversations(f"llava:{tmp_path / 'rows.jsonl'}"))
    assert question.expected == ("learnt",) and len(question.turns) == 3


def test_batched_answers_are_those_of_one_by_one(model_folder):
    model, processor = load_model(str(model_folder))
    task = open_task("scenes?count=5")
    with torch.no_grad():
        one, several = (
            answer_and_score(model.eval(), processor, task, "images", size).answers for size in (1, 3)
        )
    assert one == several


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
