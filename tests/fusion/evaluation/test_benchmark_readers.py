"""Benchmarks' files as they are published, with the marks, spellings and gaps that they have; and
broken files."""

import base64
import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from fusion.conversations.conversation import BadRow
from fusion.evaluation.answers import chance, score_answers
from fusion.evaluation.benchmarks import open_task
from tests.fusion.evaluation.pictures import png
from vision_core.errors import UserError

SCRIPT = "recipes/evaluate_vlm.py"


IMAGE = base64.b64encode(png(size=(9, 8))).decode()
LABELS = ("yes", "no", "yes", "no")
POPE = [
    {"question_id": n, "image": "1.jpg", "text": f"A {n}?", "label": label} for n, label in enumerate(LABELS)
]


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def write_table(path, delimiter, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def mmvp(folder, header=("lndex", "Question", "Options", "Correct Answer"), rows=None):
    rows = rows or [
        [number, "Open?", "(a) Open (b) Closed", "(a)" if number % 2 else "(b)"] for number in range(1, 5)
    ]
    write_table(folder / "Questions.csv", ",", header, *rows)
    return f"mmvp:{folder}"


def mmbench(folder, *rows, header=("index", "image", "question", "A", "B", "C", "D", "E", "F", "answer")):
    return f"mmbench:{write_table(folder / 'dev.tsv', chr(9), header, *rows)}"


def test_the_header_of_mmvps_released_file(tmp_path):
    (tmp_path / "MMVP Images").mkdir()
    (tmp_path / "MMVP Images" / "3.jpg").write_bytes(png(size=(9, 8)))
    for header in ("lndex", "Index"):
        task = open_task(mmvp(tmp_path, (header, "Question", "Options", "Correct Answer")))
        assert score_answers(task, ["A", "B", "(a)", "a"]).score == 50 and chance(task) == 25
        assert tuple(task.questions[2].images()[0].shape) == (3, 8, 9)


def test_pairs_of_mmvp_are_those_of_the_index(tmp_path):
    rows = [[number, "Open?", "(a) Open (b) Closed", "(a)"] for number in (3, 1, 2, 4)]
    assert score_answers(open_task(mmvp(tmp_path, rows=rows)), ["A", "B", "B", "A"]).score == 50


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_of_the_byte_order_are_no_text(tmp_path, encoding):
    """As Excel and PowerShell write them."""
    mmvp(tmp_path)
    row = ["7", IMAGE, "which?", "x", "y", "", "", "", "", "A"]
    question = {"question": "?", "answer": "é", "imageId": "1"}
    texts = [
        (f"mmvp:{tmp_path}", tmp_path / "Questions.csv"),
        (mmbench(tmp_path, row), tmp_path / "dev.tsv"),
        (f"pope:{tmp_path / 'pope.json'}", write(tmp_path / "pope.json", "\n".join(map(json.dumps, POPE)))),
        (f"gqa:{tmp_path / 'gqa.json'}", write(tmp_path / "gqa.json", {"1": question})),
    ]

    def read(task):
        return [(each.text, each.expected) for each in open_task(task).questions]

    for task, file in texts:
        before = read(task)
        file.write_bytes(file.read_text(encoding="utf-8").encode(encoding))
        assert read(task) == before


def test_gqa_is_called_as_it_was_asked_for(tmp_path):
    questions = {number: {"question": "Colour?", "answer": "red", "imageId": "3"} for number in ("07", "08")}
    text = f"gqa:{write(tmp_path / 'gqa.json', questions)}"
    assert open_task(text).name == text


def test_mmbench_has_as_many_choices_as_it_has_and_empty_ones_keep_their_letter(tmp_path):
    task = open_task(
        mmbench(
            tmp_path,
            ["1", IMAGE, "which?", "a", "b", "c", "d", "e", "f", "F"],
            ["2", IMAGE, "which?", "x", "", "z", "", "", "", "C"],
            ["3", IMAGE, "which?", "x", "y", "", "", "", "", "B"],
        )
    )
    assert [len(each.choices) for each in task.questions] == [6, 3, 2]
    assert task.prompt_for(task.questions[1]).splitlines()[1:-1] == ["(A) x", "(C) z"]
    assert (
        score_answers(task, ["F", "C", "y"]).score == 100 and score_answers(task, ["E", "B", "A"]).score == 0
    )
    assert chance(task) == pytest.approx(100 * (1 / 6 + 1 / 2 + 1 / 2) / 3)


def test_textvqas_own_file(tmp_path):
    answers = ["nokia"] * 7 + ["McDonald's"] * 3
    row = {"question": "what brand?", "image_id": "0054c91397f2fe05", "question_id": 1, "answers": answers}
    file = write(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [row]})
    text = f"textvqa:{file}?images={tmp_path}"
    (tmp_path / "0054c91397f2fe05.jpg").write_bytes(png(size=(9, 8)))
    task = open_task(text)
    assert task.grader == "textvqa" and tuple(task.questions[0].images()[0].shape) == (3, 8, 9)
    assert score_answers(task, ["Nokia."]).score == 100
    assert score_answers(task, ["mcdonald 's"]).score == pytest.approx(100 * (3 * 2 / 3 + 7) / 10)
    with pytest.raises(UserError, match="TextVQA's file is textvqa:"):
        open_task(text.replace("textvqa:", "vqa:", 1))


def test_vqav2s_own_two_files(tmp_path):
    question = {"question_id": 262148000, "image_id": 262148, "question": "Where?"}
    questions = {"data_subtype": "val2014", "questions": [question]}
    answers = [
        {"answer": answer, "answer_id": number} for number, answer in enumerate(["down"] * 9 + [""], start=1)
    ]
    notes = {"annotations": [{"question_id": 262148000, "answers": answers}]}
    files = (write(tmp_path / "questions.json", questions), write(tmp_path / "annotations.json", notes))
    (tmp_path / "COCO_val2014_000000262148.jpg").write_bytes(png(size=(9, 8)))
    task = open_task(f"vqa:{files[0]}?annotations={files[1]}&images={tmp_path}")
    assert score_answers(task, ["Down."]).score == 100 and tuple(task.questions[0].images()[0].shape) == (
        3,
        8,
        9,
    )
    write(files[1], {"annotations": [{"question_id": 1, "answers": answers}]})
    with pytest.raises(
        BadRow, match="question 1: .*annotations.json has no answers to question 262148000; name the"
    ):
        open_task(f"vqa:{files[0]}?annotations={files[1]}")


def test_pope_prints_its_figures(runs, small_model, tmp_path):
    """In the table, the JSON and the page; they are those of the answers that were written down."""
    (tmp_path / "1.jpg").write_bytes(png(size=(9, 8)))
    file = write(tmp_path / "pope.json", "\n".join(map(json.dumps, POPE)) + "\n\n")
    arguments = ("--model", small_model, "--tasks", f"pope:{file}", "--output_dir", tmp_path / "out")
    printed = runs.finish(runs.start(SCRIPT, *arguments))
    given = [
        json.loads(line)["images"] for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    ]
    expected = score_answers(open_task(f"pope:{file}"), given)
    report = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"][f"pope:{file}"]
    assert list(expected.figures) == ["F1", "precision", "recall", "yes ratio"]
    for shown in ("images", "blind", "shuffled"):
        assert report[shown]["figures"].keys() == expected.figures.keys()
    assert report["images"]["figures"] == pytest.approx(expected.figures)
    for name, value in expected.figures.items():
        row = f"| {name} | {value:.1f} |"
        assert row in printed and row in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("pope", "[1, 2]", "line 1: the JSON should be an object, not a list"),
        (
            "pope",
            '{"image": "1.jpg", "text": "?", "label": "maybe"}',
            "line 1: the label 'maybe' is neither yes nor no",
        ),
        (
            "pope",
            '{"image": {"a": 1}, "text": "?", "label": "no"}',
            "line 1: 'image' is not a text but {'a': 1}",
        ),
        (
            "pope",
            '{"image": "\\u0000/../../x", "text": "?", "label": "no"}',
            "line 1: .* leads out of the image folder",
        ),
        ("pope", "", "line 1: no JSON"),
        ("gqa", "[]", "the JSON should be an object"),
        (
            "gqa",
            '{"07": {"question": "?", "answer": ["red"], "imageId": "3"}}',
            "question 07: 'answer' is not a text",
        ),
        ("gqa", '{"07": null}', "question 07: there is no 'imageId'"),
        ("gqa", "[" * 100_000, "no JSON"),
        ("captions", '{"images": []}', "there is no list 'annotations'"),
        (
            "captions",
            '{"images": [{}], "annotations": [{"image_id": 1, "caption": "x"}]}',
            "image 1: there is no 'id'",
        ),
        ("captions", '{"images": [{"id": 1}], "annotations": ["x"]}', "annotation 1: there is no 'image_id'"),
        ("vqa", '[{"question": "?", "image": "1.jpg", "answers": []}]', "row 1: there is no list 'answers'"),
        ("vqa", '[{"question": "?", "image": "1.jpg", "answers": ["x"]}]', "row 1: there is one answer"),
        (
            "vqa",
            '[{"question": "?", "image": "1.jpg", "answers": [{"a": 1}, "x"]}]',
            "row 1: an answer is not a text",
        ),
        ("vqa", "{}", "is not a list of questions; VQAv2's questions need annotations=FILE"),
        ("textvqa", '{"data": [{"question": "?", "image_id": "1"}]}', "row 1: there is no list 'answers'"),
        ("textvqa", '{"data": [7]}', "row 1: there is no 'image_id'"),
        ("mmbench", "index\tquestion\n1\tx\n", "has the columns index, question, and no 'A'"),
        (
            "mmbench",
            "index\timage\tquestion\tA\tanswer\nx\t7\t?\tone\tA\n",
            "row 1: 'index' is not a whole number but 'x'",
        ),
        ("mmbench", "index\timage\tquestion\tA\tanswer\n7\n", "row 1: there is no image"),
        (
            "mmbench",
            "index\timage\tquestion\tA\tanswer\n7\t7\t?\tone\tA\tB\n",
            "row 1: there are more fields than the 5 columns",
        ),
        (
            "mmbench",
            f"index\timage\tquestion\tA\tanswer\n7\t{IMAGE}\t?\tone\tB\n",
            "row 1: the answer 'B' is none of the letters A",
        ),
        (
            "mmbench",
            f"index\timage\tquestion\tA\tanswer\n7\t{IMAGE}\t?\tone\t\n",
            "row 1: there is no 'answer'; take the file",
        ),
        ("mmbench", "", "has the columns none"),
    ],
)
def test_a_broken_file_is_told_by_place_and_cure(tmp_path, kind, content, message):
    file = write(tmp_path / "file", content)
    with pytest.raises(UserError, match=message) as told:
        open_task(f"{kind}:{file}")
    assert str(file) in str(told.value) and "\n" not in str(told.value) and "; " in str(told.value)


def test_a_broken_mmvp_is_told_by_place_and_cure(tmp_path):
    with pytest.raises(BadRow, match="row 1: 'lndex' is not a whole number but 'one'"):
        open_task(mmvp(tmp_path, rows=[["one", "?", "(a) x (b) y", "(a)"]]))
    with pytest.raises(BadRow, match=r"row 1: the answer '\(c\)' is none of the letters AB of its choices"):
        open_task(mmvp(tmp_path, rows=[["1", "?", "(a) x (b) y", "(c)"]]))
    with pytest.raises(UserError, match="has the columns lndex, Question, and no 'Options'"):
        open_task(mmvp(tmp_path, ("lndex", "Question"), [["1", "?"]]))
    with pytest.raises(BadRow, match="row 1: there is no 'lndex'"):
        open_task(
            mmvp(
                tmp_path,
                ("number", "Question", "Options", "Correct Answer"),
                [["1", "?", "(a) x (b) y", "(a)"]],
            )
        )


def test_a_broken_image_is_told_when_it_is_asked_for(tmp_path):
    row = ["7", "?" * 65, "which?", "x", "y", "", "", "", "", "A"]
    with pytest.raises(BadRow, match="row 1.*(not base64|cannot be decoded)"):
        open_task(mmbench(tmp_path, row)).questions[0].images()
    task = open_task(f"pope:{write(tmp_path / 'pope.json', json.dumps(POPE[0]))}")
    with pytest.raises(
        BadRow, match="line 1: .*1.jpg cannot be read .*name the folder of the images by images="
    ):
        task.questions[0].images()


def test_a_broken_cv_bench_is_told_by_place_and_cure(tmp_path):
    row = {"type": "2D", "source": "COCO", "question": "?", "choices": ["x", "y"], "answer": "(B)"}

    def opened(number, **changes):
        file = tmp_path / f"{number}.parquet"
        columns = {name: [value] for name, value in (row | changes).items() if value is not ...}
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        image = pyarrow.array([{"bytes": None, "path": None}], kind)
        pyarrow.parquet.write_table(pyarrow.table({**columns, "image": image}), file)
        return open_task(f"cv_bench:{file}")

    with pytest.raises(BadRow, match="row 1: there is no image"):
        opened(1).questions[0].images()
    with pytest.raises(BadRow, match=r"row 1: the answer '\(C\)' is none of the letters AB"):
        opened(2, answer="(C)")
    with pytest.raises(UserError, match="has no column 'choices'"):
        opened(3, choices=...)
    with pytest.raises(BadRow, match="row 1: there is no list 'choices'"):
        opened(4, choices=[])
    write(tmp_path / "5.parquet", "nothing of the kind")
    with pytest.raises(UserError, match="5.parquet is not a readable parquet file"):
        open_task(f"cv_bench:{tmp_path / '5.parquet'}")
    with pytest.raises(UserError, match="6.parquet cannot be opened"):
        open_task(f"cv_bench:{tmp_path / '6.parquet'}")


def test_a_question_of_mmvp_without_its_other_half(tmp_path):
    lines = [
        "Index,Question,Options,Correct Answer",
        *(f"{number},open?,(a) Open (b) Closed,(a)" for number in (1, 2, 3)),
    ]
    (tmp_path / "Questions.csv").write_text("\n".join(lines))
    with pytest.raises(BadRow, match="row 3: the question has no other to be a pair with"):
        open_task(f"mmvp:{tmp_path}")
