"""Rows, lines and entries of data that somebody made to hurt: each is named in one line, and no
path of theirs leads out of the data's folder."""

import json
from collections.abc import Callable

import pytest

from encoders.evaluation.retrieval import read_ground_truth
from fusion.conversations import sources as conversation_sources
from fusion.conversations.sources import open_conversations
from fusion.evaluation.benchmarks import open_task
from tests.hostile import DEEP, ESCAPE, LONG, OVERRIDE, TURNS, UNREADABLE, Cases, Place, of_dataset

CASES = Cases()


def row_case(name: str, row: object, *said: str) -> None:
    """A row of conversations behind a good one, one row to a line."""

    @CASES.add(f"row: {name}", "rows.jsonl, line 2", "; ", *said)
    def _(place: Place) -> Callable[[], object]:
        line = row if isinstance(row, str) else json.dumps(row)
        path = place.write("rows.jsonl", json.dumps({"conversations": TURNS}) + "\n" + line + "\n")
        for kind in UNREADABLE:
            place.of_kind(kind, ".png")
        (place.data / "out").symlink_to(place.outside)
        return lambda: open_conversations(f"llava:{path}")[1]


def with_image(image: object) -> dict:
    return {"image": image, "conversations": TURNS}


for kind in UNREADABLE:
    row_case(f"its image is a {kind}", with_image(f"{kind}.png"), f"{kind}.png")
row_case("NUL in the image's path", with_image("a\0b.png"), r"a\x00b.png")
row_case("a path of 5,000 characters", with_image("a " * 2500 + ".png"))
row_case("a path of 5,000 folders", with_image("a/" * 5000 + "b.png"))
row_case("escape codes in a path", with_image(f"{ESCAPE}.png"), r"\x1b[31mred")
row_case("a line break in a path", with_image("a.png\nerror: all is well"), r"a.png\nerror")
row_case("another direction of writing", with_image(OVERRIDE), r"gpj.\u202eexe")
row_case(
    "half a character", '{"image": "\\ud800.png", "conversations": ' + json.dumps(TURNS) + "}", r"\ud800.png"
)
row_case("up and out", with_image("../outside/secret.png"), "leads out")
row_case("out by a link of a folder", with_image("out/secret.png"), "leads out")
row_case("out by a file URL", with_image("file:///etc/hostname"), "leads out")
row_case("an absolute path", with_image("/etc/hostname"), "leads out")
row_case("an image that is a list, 90 deep", with_image(json.loads("[" * 90 + "]" * 90)))
row_case("150 brackets", '{"image": ' + "[" * 150 + "]" * 150 + "}", "nested too deeply")
row_case("100,000 brackets", '{"conversations": ' + DEEP, "nested too deeply")
row_case("turns that are a text of 5 MB", {"conversations": "x" * 5_000_000})
row_case("a key of 1 MB with escape codes", {ESCAPE + "k" * 1_000_000: 1})
row_case("a role of 1 MB", {"messages": [{"role": ESCAPE + "r" * 1_000_000, "content": "?"}]})
row_case("a weight that is no number", {"conversations": TURNS, "weight": float("nan")}, "nan")
row_case("a weight of 4,000 digits", {"conversations": TURNS, "weight": 10**4000})
row_case("a weight without end", {"conversations": TURNS, "weight": float("inf")}, "inf")
row_case(
    "bytes that are no text",
    '{"conversations": "\udcff"}'.encode("utf-8", "surrogateescape").decode("latin-1"),
)
row_case("a data URL of 2 MB that is none", with_image("data:image/png;base64," + "\x1b" * 2_000_000))


@CASES.add("row: a line that is longer than a row may be", "rows.jsonl, line 2", "more than 1,000 bytes; ")
def _(place: Place) -> Callable[[], object]:
    lines = [json.dumps({"conversations": TURNS, "note": "x" * count}) for count in (1, 5000, 2)]
    path = place.write("rows.jsonl", "\n".join(lines) + "\n")

    def read() -> None:
        before, conversation_sources.MAX_LINE_BYTES = conversation_sources.MAX_LINE_BYTES, 1000
        try:
            source = open_conversations(f"llava:{path}")
            assert len(source) == 3 and source[2].where.endswith("line 3")
            _ = source[1]
        finally:
            conversation_sources.MAX_LINE_BYTES = before

    return read


def list_case(name: str, line: str, *said: str) -> None:
    @CASES.add(f"line of a list: {name}", "images.txt:2", "; ", *said)
    def _(place: Place) -> Callable[[], object]:
        return of_dataset(f"list:{place.write('images.txt', f'good.png{chr(10)}{line}{chr(10)}')}")


list_case("NUL", "a\0b.png", "NUL")
list_case("up and out", "../outside/secret.png", "leads out")
list_case("up and out, 5,000 times", "../" * 5000 + "etc/hostname", "leads out")
list_case("an absolute path with escape codes", f"/etc/{ESCAPE}", "leads out")
list_case("a label of 1 MB", "good.png\t" + "9" * 1_000_000 + "x", "label")
list_case("a label with escape codes", f"good.png\t{ESCAPE}", r"\x1b[31mred")
list_case("another direction of writing", f"../{OVERRIDE}", r"\u202e")


def first_image(text: str) -> Callable[[], object]:
    return lambda: open_task(text).questions[0].images()


def task_case(name: str, kind: str, file: str, content: object, *said: str) -> None:
    """The first row, or its image, of a benchmark's file; beside it lie files of the unreadable
    kinds."""

    @CASES.add(f"{kind}: {name}", file, "; ", *said)
    def _(place: Place) -> Callable[[], object]:
        for each in UNREADABLE:
            place.of_kind(each, ".jpg")
        path = place.write(file, content if isinstance(content, str) else json.dumps(content))
        return first_image(f"{kind}:{path.parent if kind == 'mmvp' else path}")


def pope_row(image: object, label: object = "no") -> dict:
    return {"image": image, "text": "?", "label": label}


for kind in ("pipe", "socket", "folder", "circle"):
    task_case(f"its image is a {kind}", "pope", "p.jsonl", pope_row(f"{kind}.jpg"), "line 1", f"{kind}.jpg")
task_case("NUL in a path", "pope", "p.jsonl", pope_row("a\0b.jpg"), "line 1", r"a\x00b.jpg")
task_case("a path of 5,000 characters", "pope", "p.jsonl", pope_row(LONG), "line 1")
task_case("escape codes in a path", "pope", "p.jsonl", pope_row(ESCAPE), "line 1", r"\x1b")
task_case("half a character", "pope", "p.jsonl", pope_row("\ud800.jpg"), "line 1", r"\ud800.jpg")
task_case("up and out", "pope", "p.jsonl", pope_row("../outside/secret.png"), "line 1", "leads out")
task_case("an image that is a list", "pope", "p.jsonl", pope_row([["a"] * 100_000]), "line 1")
task_case("a label with escape codes", "pope", "p.jsonl", pope_row("good.png", ESCAPE * 1000), "line 1")
task_case(
    "NaN as an image's number",
    "textvqa",
    "t.json",
    {"data": [{"image_id": float("nan"), "question": "?"}]},
    "row 1",
)
task_case(
    "NaN as a number",
    "captions",
    "c.json",
    {"annotations": [{"image_id": float("nan"), "caption": "x"}], "images": []},
    "annotation 1",
)
task_case(
    "a number of 4,000 digits",
    "mmvp",
    "Questions.csv",
    f"Index,Question,Options,Correct Answer\n{'9' * 4000},?,(a) x (b) y,(a)\n",
    "row 1",
)
task_case(
    "a column of 1 MB",
    "mmbench",
    "m.tsv",
    "index\tquestion\tA\tanswer\n1\t?\tx\tA\n" + "y" * 1_000_000,
    "image",
)
task_case("columns with escape codes", "mmbench", "m.tsv", f"{ESCAPE}\t{'c' * 100_000}\n1\t2\n", r"\x1b")
task_case(
    "people whose answers are numbers without end",
    "vqa",
    "v.json",
    [{"image": "good.png", "question": "?", "answers": [[], {}]}],
    "row 1",
)


def truth_case(name: str, values: dict, *said: str) -> None:
    @CASES.add(f"ground truth: {name}", "gnd.json", "; ", *said)
    def _(place: Place) -> Callable[[], object]:
        entry = {"easy": [0], "hard": [], "junk": []}
        path = place.write(
            "gnd.json", json.dumps({"imlist": ["a"], "qimlist": ["q"], "gnd": [entry]} | values)
        )
        return lambda: read_ground_truth(path)


truth_case("NaN as a number", {"gnd": [{"easy": [float("nan")], "hard": [], "junk": []}]}, "NaN")
truth_case("a number of 4,000 digits", {"gnd": [{"easy": [10**4000], "hard": [], "junk": []}]}, "63 bits")
truth_case("names that are lists", {"imlist": [[["a"] * 100_000]]}, "imlist")
truth_case("a query with escape codes", {"qimlist": [ESCAPE + LONG], "gnd": [{}]}, r"\x1b")


@pytest.mark.parametrize("name", CASES)
def test_one_line(name, tmp_path, capsys, monkeypatch):
    CASES.end_in_one_line(name, tmp_path, capsys, monkeypatch)


def test_there_are_enough():
    assert len(CASES) >= 50, len(CASES)
