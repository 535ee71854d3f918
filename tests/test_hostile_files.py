"""Files that somebody made to hurt, given to each reader of whole files: each ends in one line,
soon."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from encoders.evaluation.retrieval import read_ground_truth
from encoders.load import check_source
from fusion.chat_templates import named_template
from fusion.evaluation.benchmarks import open_task
from tests.hostile import (
    DEEP,
    ESCAPE,
    LONG,
    OVERRIDE,
    UNREADABLE,
    Cases,
    Place,
    config_file,
    first_row,
    of_dataset,
)
from vision_core.images.any_image import image_tensor
from vision_core.trainer.zero_config import zero_config

OPTIONS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 1.0,
    "bf16": False,
}

CASES = Cases()


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
    "image": ".png",
    "list": ".txt",
    "llava": ".json",
    "messages": ".jsonl",
    "pope": ".jsonl",
    "mmbench": ".tsv",
    "gqa": ".json",
    "ground truth": ".json",
    "template": ".jinja",
    "yaml": ".yaml",
    "zero": ".json",
    "weights": ".pt",
}

for reader, ending in ENDINGS.items():
    for kind in UNREADABLE:
        if (reader, kind) != ("weights", "absent"):  # then it is the name of published weights

            @CASES.add(f"{reader}: {kind}", f"{kind}{ending}", "; ")
            def _(
                place: Place, reader: str = reader, kind: str = kind, ending: str = ending
            ) -> Callable[[], object]:
                return opened(place, reader, place.of_kind(kind, ending))

    @CASES.add(f"{reader}: a name that is too long", "nnnn", "; ")
    def _(place: Place, reader: str = reader, ending: str = ending) -> Callable[[], object]:
        return opened(place, reader, place.data / f"{LONG}{ending}")

    @CASES.add(f"{reader}: a NUL in the path", r"a\x00b", "; ")
    def _(place: Place, reader: str = reader, ending: str = ending) -> Callable[[], object]:
        return opened(place, reader, place.data / f"a\0b{ending}")

    @CASES.add(f"{reader}: escape codes in the name", r"\x1b[31mred", "; ")
    def _(place: Place, reader: str = reader, ending: str = ending) -> Callable[[], object]:
        os.mkfifo(place.data / f"{ESCAPE}{OVERRIDE}\n{ending}")
        return opened(place, reader, place.data / f"{ESCAPE}{OVERRIDE}\n{ending}")


def json_case(name: str, content: str | bytes, *said: str) -> None:
    """JSON of a kind that nobody expects, in each of the files that hold JSON."""
    for reader in ("llava", "messages", "pope", "gqa", "ground truth", "zero"):

        @CASES.add(f"{reader}: {name}", "hostile", "; ", *said)
        def _(place: Place, reader: str = reader) -> Callable[[], object]:
            return opened(place, reader, place.write(f"hostile{ENDINGS[reader]}", content))


json_case("nested 100,000 fold", DEEP + "]" * 100_000, "nested too deeply")
json_case("nested 100,000 fold, never closed", '{"a":' * 100_000)
json_case("a number of 5,000 digits", '{"a": ' + "9" * 5000 + "}", "no JSON")
json_case("no text", b'\x80\x04}q\x00{"a": 1}')
json_case("one value of 3 MB", json.dumps("\x1b" + "x" * 3_000_000))
json_case("a number", "1e999")


@pytest.mark.parametrize("name", CASES)
def test_one_line(name, tmp_path, capsys, monkeypatch):
    CASES.end_in_one_line(name, tmp_path, capsys, monkeypatch)


def test_there_are_enough():
    assert len(CASES) >= 150, len(CASES)
