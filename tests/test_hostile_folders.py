"""Folders of models and runs that somebody made to hurt: each ends in one line, soon."""

import json
import os
from collections.abc import Callable

import pytest

from encoders.load import check_source, load_encoder
from encoders.saved import save_encoder
from fusion.convert_cambrian import read_released_config
from fusion.training.models import check_model_folder
from tests.hostile import DEEP, ESCAPE, LONG, Cases, Place
from vision_core.runs.checkpoints import write_checkpoint
from vision_core.runs.folder_checks import check_folder
from vision_core.runs.run_folder import RunFolder

CASES = Cases()


def model_case(name: str, files: dict[str, str | None], *said: str) -> None:
    """A folder of a model; None stands for a pipe."""

    @CASES.add(f"model: {name}", "/m", "; ", *said)
    def _(place: Place) -> Callable[[], object]:
        for file, content in files.items():
            path = place.write(f"m/{file}", content or "")
            if content is None:
                path.unlink()
                os.mkfifo(path)
        folder = place.data / "m"
        if "fused" in name:
            return lambda: check_model_folder(str(folder))
        return (
            (lambda: read_released_config(folder))
            if "cambrian" in name
            else (lambda: check_source(str(folder)))
        )


NUMBERS = {
    "hidden_size": 8,
    "vision_hidden_size": 8,
    "connector_depth": 1,
    "connector_only": True,
    "image_token_len": 4,
    "query_num_list": [4],
    "num_of_vision_sampler_layers": 0,
    "start_of_vision_sampler_layers": 0,
    "stride_of_vision_sampler_layers": 1,
}


def cambrian(**others: object) -> dict[str, str]:
    return {"config.json": json.dumps({"model_type": "cambrian_llama"} | NUMBERS | others)}


model_case("config.json is a pipe", {"config.json": None}, "config.json")
model_case("encoder.json is a pipe", {"encoder.json": None}, "encoder.json")
model_case(
    "weights are a pipe",
    {"config.json": '{"model_type": "dinov2"}', "model.safetensors": None},
    "model.safetensors",
)
model_case("config.json is nested", {"config.json": DEEP, "model.safetensors": "x"})
model_case("encoder.json is nested", {"encoder.json": DEEP}, "encoder.json")
model_case(
    "encoder.json with NaN", {"encoder.json": '{"library": "timm", "transform": {"size": [NaN, 1]}}'}, "NaN"
)
model_case("encoder.json is a list", {"encoder.json": "[1]"}, "encoder.json")
model_case("fused, config.json is a pipe", {"config.json": None}, "config.json")
model_case("fused, config.json is nested", {"config.json": DEEP}, "nested too deeply")
model_case("fused, a type with escape codes", {"config.json": json.dumps({"model_type": ESCAPE * 100})})
model_case("cambrian with NaN", cambrian(image_token_len=float("nan")), "nan")
model_case("cambrian, a number of 4,000 digits", cambrian(hidden_size=10**4000), "hidden_size")
model_case("cambrian, a number that is a list", cambrian(hidden_size=[[1]]), "hidden_size")
model_case("cambrian is a list", {"config.json": "[1]"}, "config.json")


def saved_case(name: str, **changes: object) -> None:
    """An encoder that `save_encoder` wrote, with another value in its description; `transform_size`
    is `size` in `transform`."""

    @CASES.add(f"encoder.json: {name}", "encoder.json", "; ")
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


@CASES.add("cambrian: a type that is a list", "; known: ")
def _(place: Place) -> Callable[[], object]:
    place.write("m/config.json", json.dumps({"model_type": [["x"] * 1000]}))
    return lambda: read_released_config(place.data / "m")


def run_case(name: str, file: str, content: str | None, *said: str) -> None:
    """A run's folder that somebody else handed on, taken up again; None stands for a pipe."""

    @CASES.add(f"run: {name}", *said)
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
run_case(
    "the manifest names no files",
    "checkpoint-1/MANIFEST.json",
    '{"step": 1, "files": {"a": 1}}',
    "no whole checkpoint",
)
run_case("config.yaml is nested", "config.yaml", "a: " + "[" * 5000, "config.yaml")


@CASES.add("run: bad_samples.jsonl is a pipe", "bad_samples.jsonl", "; ")
def _(place: Place) -> Callable[[], object]:
    folder = place.data / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    os.mkfifo(folder / "bad_samples.jsonl")
    return lambda: RunFolder(folder, None, None, print, "", is_old=False)


@CASES.add("run: an output folder whose name is too long", "nnn", "; ")
def _(place: Place) -> Callable[[], object]:
    return lambda: check_folder(LONG, "run")


@pytest.mark.parametrize("name", CASES)
def test_one_line(name, tmp_path, capsys, monkeypatch):
    CASES.end_in_one_line(name, tmp_path, capsys, monkeypatch)


def test_there_are_enough():
    assert len(CASES) >= 30, len(CASES)
