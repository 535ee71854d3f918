"""Results of an evaluation's tasks, kept as each is done, so that a start after a kill runs only
what is missing.

A result is a JSON, and a PNG where it has a picture, both named by a hash of all that decides about
it: the encoder's weights and config, the data, the task's settings. The JSON comes last, by one
rename, and holds besides what the task has learnt about the images that cannot be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from encoders.evaluation.feature_cache import encoder_fingerprint
from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.results import TaskResult
from vision_core.errors import UserError
from vision_core.files.text_files import parse_json, read_text
from vision_core.runs.checkpoints import sync, write_text_atomically


class KeptResults:
    """The results of one encoder on one data set.

    Args:
        folder: of the files.
        frozen: the encoder on the data.
        settings: what else decides about the features, by name.
    """

    def __init__(self, folder: Path, frozen: FrozenFeatures, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._frozen = frozen
        self._about = {
            "encoder": encoder_fingerprint(frozen.encoder),
            "transform": frozen.encoder.transform.to_dict(),
            "data": {name: source.fingerprint for name, source in frozen.sources.items()},
            "images": {name: _digest(indices) for name, indices in frozen.indices.items()},
            "device": frozen.encoder.device.type,
            "torch": torch.__version__,
            "settings": dict(settings),
        }

    def take(self, task: str, settings: Mapping[str, Any]) -> TaskResult | None:
        """A task's result, if it is kept; what it knows of unreadable images goes to the frozen
        features."""
        path = self._path(task, settings)
        try:
            kept = parse_json(read_text(path, str(path), "remove it"), str(path), "remove it")
            picture = _picture(path.with_suffix(".png"), kept["picture"])
        except (FileNotFoundError, ValueError, KeyError):
            return None  # it is not there, or not as it was written: the task runs again
        self._frozen.take_over(kept["images"])
        return TaskResult(picture=picture, **kept["result"])

    def keep(
        self, task: str, settings: Mapping[str, Any], result: dict[str, Any], picture: Image.Image | None
    ) -> None:
        """Write a task's result, as JSON without its picture. Raises UserError where it cannot be
        written."""
        path = self._path(task, settings)
        try:
            self._folder.mkdir(exist_ok=True)
            kept = {
                "about": self._about,
                "result": result,
                "picture": "" if picture is None else _write_picture(path.with_suffix(".png"), picture),
                "images": self._frozen.what_was_read(),
            }
            write_text_atomically(path, json.dumps(kept, indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); make room, or give another --output_dir"
            ) from None

    def _path(self, task: str, settings: Mapping[str, Any]) -> Path:
        return self._folder / f"{task}-{_digest([self._about, task, dict(settings)])}.json"


def _write_picture(path: Path, picture: Image.Image) -> str:
    """Write a picture to the disk, and give the digest of its file. Raises OSError."""
    picture.save(path)
    sync(path)
    return _digest_of_file(path)


def _picture(path: Path, digest: str) -> Image.Image | None:
    """The picture of a file, None where there is no digest. Raises ValueError for a file with other
    bytes than were written."""
    if not digest:
        return None
    if _digest_of_file(path) != digest:
        raise ValueError(path)
    with Image.open(path) as opened:
        opened.load()
        return opened


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
