"""Recognise what a folder is, for a program that was given the folder of another program. Only
names and small JSON files are read.

A loader begins with `refuse_folder(folder, "an encoder", ...)`, so that all programs say the same
of one folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vision_core.errors import UserError
from vision_core.files.regular_files import refuse_special_files
from vision_core.files.text_files import MAX_YAML_BYTES, parse_json, read_text, yaml_value
from vision_core.images.formats.endings import IMAGE_ENDINGS

TABLE_SUFFIXES = (".parquet", ".tar", ".json", ".jsonl", ".csv")
LOOKED_AT = 2000  # entries of a folder, at any depth, among which images are looked for
NAMED = 3  # folders that a message names

# the kind of a folder in which a program without checkpoints was interrupted (work_folder.py)
UNFINISHED_WORK = "unfinished_work"
# fusion's model types, as its folders have them in config.json
FUSED_VLM = "fusion_vlm"
FUSED_VISION = "fused_vision"


@dataclass(frozen=True)
class FolderKind:
    """has_model: whether there is something to load. is_a: what follows "it is". cure: what to do
    with the folder, or what to name in its place."""

    name: str
    has_model: bool
    is_a: str
    cure: str


def refuse_folder(folder: str | Path, wanted: str, understood: Collection[str], lacks: str = "model") -> None:
    """Raise UserError where `folder` is not of a kind that the loader understands: what it is, and
    what to do with it.

    wanted: what the program needs, "an encoder". understood: names of kinds; those that nobody
    knows, "model" and "unknown", are for the loader itself to refuse. lacks: what is missing in a
    folder without a model.
    """
    refuse_special_files(folder)
    kind = folder_kind(Path(folder))
    if kind.name in understood:
        return
    if kind.has_model:
        raise UserError(f"{folder} is {kind.is_a}, not {wanted}; {kind.cure}")
    raise UserError(f"{folder} holds no {lacks}: it is {kind.is_a}; {kind.cure}")


def folder_kind(folder: Path) -> FolderKind:
    """What `folder` is. The questions go from the most telling file to the least."""
    if not os.path.isdir(folder):
        what = "a file" if os.path.isfile(folder) else "no folder at all"
        return FolderKind("absent", False, what, "name the folder of a model")
    names = {entry.name for entry in folder.iterdir()} - {".lock"}
    if not names:
        return FolderKind("empty", False, "an empty folder", "name the folder of a model")
    for question in (
        _unfinished_work,
        _adapter,
        _saved_encoder,
        _model,
        _report,
        _finished_work,
        _unfinished_run,
        _other_files,
    ):
        kind = question(folder, names)
        if kind is not None:
            return kind
    cure = "name the folder that config.json, or encoder.json, lies in"
    return FolderKind("unknown", False, "a folder without config.json or encoder.json", cure)


def _unfinished_work(folder: Path, names: set[str]) -> FolderKind | None:
    """Whatever lies beside this file is a part of what will be there."""
    if "unfinished.json" not in names:
        return None
    program = _read_json(folder / "unfinished.json").get("program") or "a program"
    cure = f"the same command with --output_dir {folder} --resume_from_checkpoint auto finishes it"
    return FolderKind(UNFINISHED_WORK, False, f"unfinished work of {program}", cure)


def _adapter(folder: Path, names: set[str]) -> FolderKind | None:
    """LoRA's matrices. A run of SFT has them in adapter/ and in its checkpoints, and the merged
    model at its root."""
    if "adapter_config.json" not in names:
        return None
    root = folder.absolute().parent
    merged = "config.json" in {entry.name for entry in root.iterdir()}
    base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its base model"
    cure = (
        f"name {folder.parent}, which holds the merged model"
        if merged
        else f"merge it into {base} with peft's merge_and_unload, and name the result"
    )
    return FolderKind("adapter", True, "a LoRA adapter, which holds no whole model", cure)


def _saved_encoder(folder: Path, names: set[str]) -> FolderKind | None:
    if "encoder.json" not in names:
        return None
    return FolderKind("saved_encoder", True, "an encoder that save_encoder wrote", _encoder_cure(folder))


def _encoder_cure(folder: Path) -> str:
    return (
        f"`python recipes/evaluate_encoder.py --encoder {folder}` judges it, "
        f"`python -m fusion.fuse --encoders {folder} --language_model NAME` makes a vision-language model of it"
    )


def _model(folder: Path, names: set[str]) -> FolderKind | None:
    """A folder with config.json is known by its model type, or else by the parts of its model."""
    if "open_clip_config.json" in names:
        return FolderKind(
            "open_clip",
            True,
            "a checkpoint of open_clip",
            "name it open_clip:MODEL/FILE with its weights file (docs/encoders.md)",
        )
    if "config.json" not in names:
        return None
    config = _read_json(folder / "config.json")
    if config.get("model_type") is None and "architecture" in config:
        return FolderKind("timm", True, "a checkpoint of timm", _encoder_cure(folder))
    return _fused_model(folder, config) or _model_of_transformers(folder, config)


def _fused_model(folder: Path, config: dict[str, Any]) -> FolderKind | None:
    """A model of this project's `fusion`, or a released Cambrian-1 that can become one."""
    kind = config.get("model_type")
    if kind == FUSED_VLM:
        return FolderKind(kind, True, f"a fused vision-language model{_within(folder)}", _vlm_cure(folder))
    if kind == FUSED_VISION:
        cure = (
            f"`AutoModel.from_pretrained({str(folder)!r})` loads it after `import fusion`; name its "
            "encoders one by one, "
            "or fuse them again with --language_model for a vision-language model"
        )
        return FolderKind(kind, True, "a fused vision encoder, several encoders behind a connector", cure)
    if str(kind).startswith("cambrian"):
        cure = f"`python -m fusion.convert_cambrian --checkpoint {folder} --output_dir NEW` converts it"
        return FolderKind("cambrian", True, f"a released Cambrian-1 of type {kind!r}", cure)
    return None


def _model_of_transformers(folder: Path, config: dict[str, Any]) -> FolderKind:
    kind = config.get("model_type")
    if "vision_config" in config and "text_config" in config and _generates(config):
        cure = (
            "its parts are named one by one: the encoder by --encoders, the language model by "
            "--language_model of `python -m fusion.fuse`"
        )
        return FolderKind(
            "other_vlm", True, f"a vision-language model of transformers of type {kind!r}", cure
        )
    if "vision_config" in config or {"patch_size", "image_size", "num_channels"} & set(config):
        return FolderKind(
            "encoder", True, f"a vision encoder of type {kind!r}{_within(folder)}", _encoder_cure(folder)
        )
    if "vocab_size" in config:
        cure = (
            f"`python -m fusion.fuse --language_model {folder} --encoders NAME` makes a vision-language "
            "model of it"
        )
        return FolderKind("language_model", True, f"a language model of type {kind!r}", cure)
    return FolderKind("model", True, f"a model of type {kind!r}", "name a model that this program reads")


def _vlm_cure(folder: Path) -> str:
    return (
        f"`python recipes/evaluate_vlm.py --model {folder}` judges it, `python recipes/sva_sft.py "
        f"--init_from {folder}` trains it further; "
        "its encoders are named one by one, as they were when it was fused"
    )


def _generates(config: dict[str, Any]) -> bool:
    return any(
        str(name).endswith(("ForConditionalGeneration", "ForCausalLM"))
        for name in config.get("architectures") or []
    )


def _within(folder: Path) -> str:
    """Of a checkpoint within a run, which run."""
    is_checkpoint = re.fullmatch(r"checkpoint-\d+", folder.name) and (folder.parent / "config.yaml").is_file()
    return f" (a checkpoint of the run {folder.parent})" if is_checkpoint else ""


def _report(folder: Path, names: set[str]) -> FolderKind | None:
    """What an evaluation wrote; its config.yaml names what was judged."""
    if "results.json" not in names:
        return None
    config = _read_yaml(folder / "config.yaml")
    judged = config.get("model") or config.get("encoder") or config.get("encoders") or []
    listed = ", ".join(map(str, judged)) if isinstance(judged, list) else str(judged)
    what = "a comparison of encoders" if "encoders" in config else "the report of an evaluation"
    return FolderKind(
        "report", False, what, f"name what it judged: {listed}" if listed else "name what it judged"
    )


def _finished_work(folder: Path, names: set[str]) -> FolderKind | None:
    """Of a program that makes no model; one that makes one is known by its config.json."""
    program = _read_json(folder / "finished.json").get("program") if "finished.json" in names else None
    if program is None:
        return None
    return FolderKind("work", False, f"what {program} has made", "name the folder of a model")


def _unfinished_run(folder: Path, names: set[str]) -> FolderKind | None:
    """A run without a model at its root, or a training state that no program loads as a model."""
    if re.fullmatch(r"checkpoint-\d+", folder.name) and names & {
        "MANIFEST.json",
        "trainer_state.json",
        "training_state.json",
    }:
        cure = (
            f"name {folder.parent}, or continue that run: --output_dir {folder.parent} "
            "--resume_from_checkpoint true"
        )
        return FolderKind("checkpoint", False, f"the training state of the run {folder.parent}", cure)
    if "config.yaml" not in names:
        return None
    if any(re.fullmatch(r"checkpoint-\d+", name) for name in names):
        cure = f"finish it: the command of that run with --output_dir {folder} --resume_from_checkpoint true"
        return FolderKind("unfinished", False, "a run that has not published its model", cure)
    return FolderKind("unfinished", False, "a run that has saved nothing", "name a finished run")


def _other_files(folder: Path, names: set[str]) -> FolderKind | None:
    """Folders of models, a tokenizer, weights alone, images, tables."""
    inside = sorted(name for name in names if (folder / name).is_dir() and _holds_model(folder / name))
    if inside:
        listed = ", ".join(str(folder / name) for name in inside[:NAMED])
        more = f" and {len(inside) - NAMED} more" if len(inside) > NAMED else ""
        return FolderKind(
            "parent", False, "a folder of other folders", f"name one of those in it: {listed}{more}"
        )
    if any(name.endswith((".safetensors", ".bin", ".pth", ".pt")) for name in names):
        cure = (
            "put the checkpoint's config.json beside them, or name a file that is understood by itself "
            "(docs/encoders.md)"
        )
        return FolderKind("weights", False, "a folder of weights without config.json", cure)
    if names & {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}:
        return FolderKind(
            "tokenizer", False, "a tokenizer without a model", "name the folder of a whole model"
        )
    if _has_file(folder, IMAGE_ENDINGS):
        return FolderKind(
            "images",
            False,
            "a folder of images",
            f"--dataset folder:{folder} takes it as data; name the folder of a model here",
        )
    if _has_file(folder, TABLE_SUFFIXES):
        return FolderKind(
            "data",
            False,
            "a folder of data",
            "docs/data.md and docs/fine_tuning.md say how to name it as data",
        )
    return None


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "encoder.json", "adapter_config.json"))


def _has_file(folder: Path, suffixes: tuple[str, ...]) -> bool:
    return any(path.name.lower().endswith(suffixes) for path in islice(_files(folder), LOOKED_AT))


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if not path.is_dir():
            yield path


def _read_json(path: Path) -> dict[str, Any]:
    """{} for what cannot be read: the loader itself says why."""
    try:
        read = parse_json(read_text(path, str(path), ""), str(path), "")
    except UserError:
        return {}
    return read if isinstance(read, dict) else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        read = yaml_value(read_text(path, str(path), "", most_bytes=MAX_YAML_BYTES), str(path))
    except UserError:
        return {}
    return read if isinstance(read, dict) else {}
