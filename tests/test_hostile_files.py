"""Files, paths, names and texts that somebody made to hurt: each ends in one line, soon, and nothing outside the data's folder is read.

The inputs are harmless to everything but the reader that is not careful: where a library itself would crash on deeper or larger ones, the guard in
front of it is shown with small ones.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets  # noqa: F401  here, so that no case is charged with the time of an import
import open_clip  # noqa: F401
import pytest
from PIL import Image

from encoders.evaluation.retrieval import read_ground_truth
from encoders.load import check_source, load_encoder, save_encoder
from fusion.chat_templates import named_template
from fusion.convert_cambrian import read_config as read_cambrian
from recipes import conversation_sources
from recipes.conversation_sources import open_conversations
from recipes.vlm_benchmarks import open_task
from recipes.vlm_models import check_model_folder
from recipes.zero_config import zero_config
from vision_core.arguments import option, parse_arguments
from vision_core.checkpoints import write_checkpoint
from vision_core.errors import run_script
from vision_core.folder_checks import check_folder
from vision_core.images.any_image import image_tensor
from vision_core.images.sources import open_source
from vision_core.run_folder import RunFolder

SECONDS = 5
MOST_CHARACTERS = 300
SECRET = "what lies outside of the data's folder"
ESCAPE = "\x1b[31mred\x1b]0;title\x07"
OVERRIDE = "gpj.\u202eexe"
LONG = "n" * 5000
DEEP = "[" * 100_000
UNREADABLE = ("pipe", "socket", "device", "endless", "folder", "dangling", "circle", "absent")
TURNS = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "yes"}]
OPTIONS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "bf16": False}


@dataclass
class Options:
    """Those of a program, as far as it matters here."""

    dataset: str = option("scenes", "data")
    widths: list[int] = option([1], "numbers")
    learning_rate: float = option(1.0, "a number")


class Place:
    """A folder with data, something secret beside it, and files of every unreadable kind, whatever ending they are asked to have."""

    def __init__(self, root: Path) -> None:
        self.data, self.outside = root / "data", root / "outside"
        self.data.mkdir()
        self.outside.mkdir()
        (self.outside / "secret.txt").write_text(SECRET)
        Image.new("RGB", (16, 16), "red").save(self.outside / "secret.png")
        Image.new("RGB", (16, 16)).save(self.data / "good.png")

    def of_kind(self, kind: str, ending: str) -> Path:
        path = self.data / f"{kind}{ending}"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            self._socket(path)
        elif kind == "device":
            path.symlink_to("/dev/null")
        elif kind == "endless":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        elif kind == "dangling":
            path.symlink_to(self.data / "nothing")
        elif kind == "circle":
            path.symlink_to(path)
        return path

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.data / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def _socket(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as opened:
            here = os.getcwd()
            os.chdir(path.parent)  # a socket's name has at most 107 characters
            opened.bind(path.name)
            os.chdir(here)


Case = Callable[[Place], Callable[[], object]]
CASES: dict[str, tuple[Case, tuple[str, ...]]] = {}


def case(name: str, *said: str) -> Callable[[Case], Case]:
    """A case by its name: given a place, it gives what is to be called; `said` stands in its line."""

    def add(make: Case) -> Case:
        assert name not in CASES
        CASES[name] = make, said
        return make

    return add


def config_file(path: Path) -> Callable[[], object]:
    return lambda: parse_arguments(Options, ["--config", str(path)])


def first_row(text: str) -> Callable[[], object]:
    return lambda: open_conversations(text)[0]


def first_image(text: str) -> Callable[[], object]:
    return lambda: open_task(text).questions[0].images()


def of_dataset(text: str) -> Callable[[], object]:
    return lambda: open_source(text)


def opened(place: Place, reader: str, path: Path) -> Callable[[], object]:
    """`path` given to one of the readers of whole files."""
    readers: dict[str, Callable[[], object]] = {
        "image": lambda: image_tensor(str(path)),
        "list": of_dataset(f"list:{path}?root={place.data}"),
        "llava": first_row(f"llava:{path}"),
        "messages": first_row(f"messages:{path}"),
        "pope": lambda: open_task(f"pope:{path}"),
        "mmbench": lambda: open_task(f"mmbench:{path}"),
        "gqa": lambda: open_task(f"gqa:{path}"),
        "ground truth": lambda: read_ground_truth(path),
        "template": lambda: named_template(str(path)),
        "yaml": config_file(path),
        "zero": lambda: zero_config(path, OPTIONS, 1),
        "weights": lambda: check_source(f"open_clip:ViT-B-32/{path}"),
    }
    return readers[reader]


ENDINGS = {
    "image": ".png", "list": ".txt", "llava": ".json", "messages": ".jsonl", "pope": ".jsonl", "mmbench": ".tsv", "gqa": ".json",
    "ground truth": ".json", "template": ".jinja", "yaml": ".yaml", "zero": ".json", "weights": ".pt",
}  # fmt: skip

for reader, ending in ENDINGS.items():
    for kind in UNREADABLE:
        if (reader, kind) != ("weights", "absent"):  # then it is the name of published weights

            @case(f"{reader}: {kind}", f"{kind}{ending}", "; ")
            def _(place: Place, reader: str = reader, kind: str = kind, ending: str = ending) -> Callable[[], object]:
                return opened(place, reader, place.of_kind(kind, ending))

    @case(f"{reader}: a name that is too long", "nnnn", "; ")
    def _(place: Place, reader: str = reader, ending: str = ending) -> Callable[[], object]:
        return opened(place, reader, place.data / f"{LONG}{ending}")

    @case(f"{reader}: a NUL in the path", r"a\x00b", "; ")
    def _(place: Place, reader: str = reader, ending: str = ending) -> Callable[[], object]:
        return opened(place, reader, place.data / f"a\0b{ending}")

    @case(f"{reader}: escape codes in the name", r"\x1b[31mred", "; ")
    def _(place: Place, reader: str = reader, ending: str = ending) -> Callable[[], object]:
        os.mkfifo(place.data / f"{ESCAPE}{OVERRIDE}\n{ending}")
        return opened(place, reader, place.data / f"{ESCAPE}{OVERRIDE}\n{ending}")


def json_case(name: str, content: str | bytes, *said: str) -> None:
    """JSON of a kind that nobody expects, in each of the files that hold JSON."""
    for reader in ("llava", "messages", "pope", "gqa", "ground truth", "zero"):

        @case(f"{reader}: {name}", "hostile", "; ", *said)
        def _(place: Place, reader: str = reader) -> Callable[[], object]:
            return opened(place, reader, place.write(f"hostile{ENDINGS[reader]}", content))


json_case("nested 100,000 fold", DEEP + "]" * 100_000, "nested too deeply")
json_case("nested 100,000 fold, never closed", '{"a":' * 100_000)
json_case("a number of 5,000 digits", '{"a": ' + "9" * 5000 + "}", "no JSON")
json_case("no text", b'\x80\x04}q\x00{"a": 1}')
json_case("one value of 3 MB", json.dumps("\x1b" + "x" * 3_000_000))
json_case("a number", "1e999")


def row_case(name: str, row: object, *said: str) -> None:
    """A row of conversations behind a good one, one row to a line."""

    @case(f"row: {name}", "rows.jsonl, line 2", "; ", *said)
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
row_case("half a character", '{"image": "\\ud800.png", "conversations": ' + json.dumps(TURNS) + "}", r"\ud800.png")
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
row_case("bytes that are no text", '{"conversations": "\udcff"}'.encode("utf-8", "surrogateescape").decode("latin-1"))
row_case("a data URL of 2 MB that is none", with_image("data:image/png;base64," + "\x1b" * 2_000_000))


@case("row: a line that is longer than a row may be", "rows.jsonl, line 2", "more than 1,000 bytes; ")
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
    @case(f"line of a list: {name}", "images.txt:2", "; ", *said)
    def _(place: Place) -> Callable[[], object]:
        return of_dataset(f"list:{place.write('images.txt', f'good.png{chr(10)}{line}{chr(10)}')}")


list_case("NUL", "a\0b.png", "NUL")
list_case("up and out", "../outside/secret.png", "leads out")
list_case("up and out, 5,000 times", "../" * 5000 + "etc/hostname", "leads out")
list_case("an absolute path with escape codes", f"/etc/{ESCAPE}", "leads out")
list_case("a label of 1 MB", "good.png\t" + "9" * 1_000_000 + "x", "label")
list_case("a label with escape codes", f"good.png\t{ESCAPE}", r"\x1b[31mred")
list_case("another direction of writing", f"../{OVERRIDE}", r"\u202e")


def task_case(name: str, kind: str, file: str, content: object, *said: str) -> None:
    """The first row, or its image, of a benchmark's file; beside it lie files of the unreadable kinds."""

    @case(f"{kind}: {name}", file, "; ", *said)
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
task_case("NaN as an image's number", "textvqa", "t.json", {"data": [{"image_id": float("nan"), "question": "?"}]}, "row 1")
task_case(
    "NaN as a number", "captions", "c.json", {"annotations": [{"image_id": float("nan"), "caption": "x"}], "images": []}, "annotation 1"
)
task_case(
    "a number of 4,000 digits", "mmvp", "Questions.csv", f"Index,Question,Options,Correct Answer\n{'9' * 4000},?,(a) x (b) y,(a)\n", "row 1"
)
task_case("a column of 1 MB", "mmbench", "m.tsv", "index\tquestion\tA\tanswer\n1\t?\tx\tA\n" + "y" * 1_000_000, "image")
task_case("columns with escape codes", "mmbench", "m.tsv", f"{ESCAPE}\t{'c' * 100_000}\n1\t2\n", r"\x1b")
task_case(
    "people whose answers are numbers without end", "vqa", "v.json", [{"image": "good.png", "question": "?", "answers": [[], {}]}], "row 1"
)


def truth_case(name: str, values: dict, *said: str) -> None:
    @case(f"ground truth: {name}", "gnd.json", "; ", *said)
    def _(place: Place) -> Callable[[], object]:
        entry = {"easy": [0], "hard": [], "junk": []}
        path = place.write("gnd.json", json.dumps({"imlist": ["a"], "qimlist": ["q"], "gnd": [entry]} | values))
        return lambda: read_ground_truth(path)


truth_case("NaN as a number", {"gnd": [{"easy": [float("nan")], "hard": [], "junk": []}]}, "NaN")
truth_case("a number of 4,000 digits", {"gnd": [{"easy": [10**4000], "hard": [], "junk": []}]}, "63 bits")
truth_case("names that are lists", {"imlist": [[["a"] * 100_000]]}, "imlist")
truth_case("a query with escape codes", {"qimlist": [ESCAPE + LONG], "gnd": [{}]}, r"\x1b")


def yaml_case(name: str, content: str | bytes, *said: str) -> None:
    @case(f"yaml: {name}", "run.yaml", *said)
    def _(place: Place) -> Callable[[], object]:
        return config_file(place.write("run.yaml", content))


LAUGHS = "a: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"b{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]\n" for number in range(1, 5)
)
yaml_case("nested 5,000 deep", "widths: " + "[" * 5000 + "]" * 5000, "nested too deeply")
yaml_case("nested 5,000 deep, never closed", "widths: " + "[" * 5000, "nested too deeply")
yaml_case("blocks nested 5,000 deep", "widths:\n  " + "- " * 5000 + "1\n", "nested too deeply")
yaml_case("mappings nested 5,000 deep", "widths: " + "{a: " * 5000 + "1" + "}" * 5000, "nested too deeply")
yaml_case("a value of 1 MB", f"dataset: {'x' * 2**20}\n", "bytes")
yaml_case("a value of 200 kB where a number is expected", f"learning_rate: {'x' * 200_000}\n", "line 1", "a number")
yaml_case("aliases that multiply", LAUGHS, "aliases")
yaml_case("a key of 100 kB", f"{'k' * 100_000}: 1\n")
yaml_case("a key with escape codes", '"\\e[31mred\\a": 1\n', r"\x1b[31mred")
yaml_case("a NUL in a value", 'dataset: "folder:a\\0b"\n', "dataset", r"\x00")
yaml_case("a NUL", b"dataset: a\0b\n", "not valid YAML")
yaml_case("bytes that are no text", b"dataset: \xff\xfe\n", "UTF-8")
yaml_case("a list of 20,000 numbers", f"widths: [{', '.join(['1'] * 20_000)}]", "values")
yaml_case("a list of escape codes", "learning_rate: [" + '"\\e[31m", ' * 2000 + "1]", r"\x1b")
yaml_case("not a number", "learning_rate: .nan\n", "a number")
yaml_case("a number of 5,000 digits", f"widths: [{'9' * 5000}]\n", "widths")
yaml_case("an alias of itself", "dataset: &a [*a]\n", "dataset")


def words_case(name: str, words: list[str], *said: str) -> None:
    @case(f"command line: {name}", *said)
    def _(place: Place) -> Callable[[], object]:
        return lambda: parse_arguments(Options, words)


words_case("a NUL", ["--dataset", "folder:a\0b"], "--dataset", r"a\x00b")
words_case("an unknown option of 5,000 characters", ["--" + LONG, "1"], "unknown option")
words_case("escape codes in an option", [f"--{ESCAPE}", "1"], r"\x1b[31mred")
words_case("escape codes in front", [ESCAPE], r"\x1b[31mred")
words_case("a number of 5,000 letters", ["--learning_rate", LONG], "--learning_rate", "a number")
words_case("a number of 5,000 digits", ["--widths", "9" * 5000], "--widths")
words_case("two files of long names", [f"{LONG}.yaml", "--config", f"{LONG}.yaml"], "give one")


def source_case(name: str, text: str, *said: str) -> None:
    @case(f"dataset: {name}", *said)
    def _(place: Place) -> Callable[[], object]:
        (place.data / "circle").symlink_to(place.data / "circle")
        return of_dataset(text.format(data=place.data))


source_case("a folder whose name is too long", f"folder:{LONG}", "nnn", "; ")
source_case("a folder that is a file", "folder:{data}/good.png", "good.png")
source_case("a folder that is a circle of links", "folder:{data}/circle", "circle")
source_case("a name with escape codes", f"folder:{{data}}/{ESCAPE}", r"\x1b[31mred")
source_case("a kind with escape codes", f"{ESCAPE}:x", "unknown kind")
source_case("a kind of 5,000 characters", f"{LONG}:x", "unknown kind")
source_case("an option of 5,000 characters", f"folder:{{data}}?{LONG}=1", "unknown option")
source_case("parquet whose name is too long", f"parquet:{LONG}.parquet", "; ")
source_case("shards whose name is too long", f"wds:{LONG}.tar")


@case("dataset: a linked folder of escape codes", "is not followed", r"\x1b", "; ")
def _(place: Place) -> Callable[[], object]:
    (place.data / ESCAPE).symlink_to(place.outside)
    return of_dataset(f"folder:{place.data}")


@case("parquet: a pipe among the files", "pipe.parquet", "; ")
def _(place: Place) -> Callable[[], object]:
    place.of_kind("pipe", ".parquet")
    return of_dataset(f"parquet:{place.data}/*.parquet")


@case("conversations in parquet: a pipe", "pipe.parquet", "; ")
def _(place: Place) -> Callable[[], object]:
    return first_row(f"parquet:{place.of_kind('pipe', '.parquet')}")


@case("hf: a pipe in a folder", "pipe.csv", "; ")
def _(place: Place) -> Callable[[], object]:
    place.write("in/train.csv", "a,b\n1,2\n")
    os.mkfifo(place.data / "in" / "pipe.csv")
    return of_dataset(f"hf:{place.data}/in")


def model_case(name: str, files: dict[str, str | None], *said: str) -> None:
    """A folder of a model; None stands for a pipe."""

    @case(f"model: {name}", "/m", "; ", *said)
    def _(place: Place) -> Callable[[], object]:
        for file, content in files.items():
            path = place.write(f"m/{file}", content or "")
            if content is None:
                path.unlink()
                os.mkfifo(path)
        folder = place.data / "m"
        if "fused" in name:
            return lambda: check_model_folder(str(folder))
        return (lambda: read_cambrian(folder)) if "cambrian" in name else (lambda: check_source(str(folder)))


NUMBERS = {
    "hidden_size": 8, "vision_hidden_size": 8, "connector_depth": 1, "connector_only": True, "image_token_len": 4, "query_num_list": [4],
    "num_of_vision_sampler_layers": 0, "start_of_vision_sampler_layers": 0, "stride_of_vision_sampler_layers": 1,
}  # fmt: skip


def cambrian(**others: object) -> dict[str, str]:
    return {"config.json": json.dumps({"model_type": "cambrian_llama"} | NUMBERS | others)}


model_case("config.json is a pipe", {"config.json": None}, "config.json")
model_case("encoder.json is a pipe", {"encoder.json": None}, "encoder.json")
model_case("weights are a pipe", {"config.json": '{"model_type": "dinov2"}', "model.safetensors": None}, "model.safetensors")
model_case("config.json is nested", {"config.json": DEEP, "model.safetensors": "x"})
model_case("encoder.json is nested", {"encoder.json": DEEP}, "encoder.json")
model_case("encoder.json with NaN", {"encoder.json": '{"library": "timm", "transform": {"size": [NaN, 1]}}'}, "NaN")
model_case("encoder.json is a list", {"encoder.json": "[1]"}, "encoder.json")
model_case("fused, config.json is a pipe", {"config.json": None}, "config.json")
model_case("fused, config.json is nested", {"config.json": DEEP}, "nested too deeply")
model_case("fused, a type with escape codes", {"config.json": json.dumps({"model_type": ESCAPE * 100})})
model_case("cambrian with NaN", cambrian(image_token_len=float("nan")), "nan")
model_case("cambrian, a number of 4,000 digits", cambrian(hidden_size=10**4000), "hidden_size")
model_case("cambrian, a number that is a list", cambrian(hidden_size=[[1]]), "hidden_size")
model_case("cambrian is a list", {"config.json": "[1]"}, "config.json")


def saved_case(name: str, **changes: object) -> None:
    """An encoder that `save_encoder` wrote, with another value in its description; `transform_size` is `size` in `transform`."""

    @case(f"encoder.json: {name}", "encoder.json", "; ")
    def _(place: Place) -> Callable[[], object]:
        save_encoder(load_encoder("tiny:dinov2"), place.data / "saved")
        file = place.data / "saved" / "encoder.json"
        said = json.loads(file.read_text())
        for key, value in changes.items():
            part, _, inner = key.partition("_")
            if part in ("transform", "architecture") and inner:
                said[part][inner] = value
            else:
                said[key] = value
        file.write_text(json.dumps(said))
        return lambda: load_encoder(str(place.data / "saved"))


saved_case("a transform that is a list", transform=[[1]])
saved_case("a size of one number", transform_size=3)
saved_case("a size of a billion pixels", transform_size=[10**9, 10**9])
saved_case("a size with escape codes", transform_size=[ESCAPE, ESCAPE * 100])
saved_case("means of no channel", transform_mean=[])
saved_case("a margin without end", transform_margin=1e300)
saved_case("layers that are texts", layers=[ESCAPE])
saved_case("an architecture that is a number", architecture=10**15)
saved_case("a width that is a text", architecture_hidden_size=ESCAPE)
saved_case("a width of zero", architecture_hidden_size=0)
saved_case("a library with escape codes", library=ESCAPE)
saved_case("a key with escape codes", **{ESCAPE: 1})


@case("cambrian: a type that is a list", "; known: ")
def _(place: Place) -> Callable[[], object]:
    place.write("m/config.json", json.dumps({"model_type": [["x"] * 1000]}))
    return lambda: read_cambrian(place.data / "m")


def run_case(name: str, file: str, content: str | None, *said: str) -> None:
    """A run's folder that somebody else handed on, taken up again; None stands for a pipe."""

    @case(f"run: {name}", *said)
    def _(place: Place) -> Callable[[], object]:
        folder = place.data / "run"
        folder.mkdir()
        write_checkpoint(folder, 1, lambda aside: (aside / "weights").touch(), None)
        place.write("run/config.yaml", "a: 1\n")
        path = folder / file
        path.unlink(missing_ok=True)
        if content is None:
            os.mkfifo(path)
        else:
            path.write_text(content)
        return lambda: check_folder(str(folder), "run", "true")


run_case("config.yaml is a pipe", "config.yaml", None, "config.yaml", "; ")
run_case("the manifest is a pipe", "checkpoint-1/MANIFEST.json", None, "no whole checkpoint")
run_case("the manifest is nested", "checkpoint-1/MANIFEST.json", DEEP, "no whole checkpoint")
run_case("the manifest names no files", "checkpoint-1/MANIFEST.json", '{"step": 1, "files": {"a": 1}}', "no whole checkpoint")
run_case("config.yaml is nested", "config.yaml", "a: " + "[" * 5000, "config.yaml")


@case("run: bad_samples.jsonl is a pipe", "bad_samples.jsonl", "; ")
def _(place: Place) -> Callable[[], object]:
    folder = place.data / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    os.mkfifo(folder / "bad_samples.jsonl")
    return lambda: RunFolder(folder, None, None, print)


@case("run: an output folder whose name is too long", "nnn", "; ")
def _(place: Place) -> Callable[[], object]:
    return lambda: check_folder(LONG, "run")


OPENED: list[str] = []


def note_opened(event: str, arguments: tuple) -> None:
    is_path = event == "open" and isinstance(arguments[0], str) and arguments[0].startswith("/")
    if is_path and "\0" not in arguments[0]:  # what is opened below a descriptor is noted by `really_opened`
        OPENED.append(os.path.realpath(arguments[0]))


sys.addaudithook(note_opened)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends a hang by an error that nobody catches, and asserts that the time was kept."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt(f"still there after {seconds} s")

    before, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < seconds


def really_opened(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where the files lie that are opened from now on, by their descriptors, which no link can hide."""
    found: list[str] = []
    real_open = os.open

    def noting(*arguments, **options) -> int:
        descriptor = real_open(*arguments, **options)
        found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return descriptor

    monkeypatch.setattr(os, "open", noting)
    return found


@pytest.mark.parametrize("name", CASES)
def test_one_line(name, tmp_path, capsys, monkeypatch):
    make, said = CASES[name]
    place = Place(tmp_path)
    call = make(place)
    monkeypatch.chdir(place.data)
    OPENED.clear()
    descriptors = really_opened(place, monkeypatch)
    with at_most(SECONDS), pytest.raises(SystemExit) as end:
        run_script(call)
    printed = capsys.readouterr().err
    *before, line, end_of_text = printed.split("\n")
    assert end.value.code == 2 and not end_of_text and all(each.startswith("warning: ") for each in before), printed
    assert line.startswith("error: ") and printed.replace("\n", "").isprintable() and len(line) <= MOST_CHARACTERS, line
    assert all(each in line for each in said), line
    outside = os.path.realpath(place.outside)
    assert not [path for path in (*OPENED, *descriptors) if path.startswith((outside, "/etc/hostname"))] and SECRET not in line


def test_there_are_enough():
    assert len(CASES) >= 80, len(CASES)
