"""The file `bad_samples.jsonl` of an evaluation: the images that could not be read, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vision_core.runs.checkpoints import write_text_atomically

BAD_SAMPLES = "bad_samples.jsonl"  # as in a folder of pretraining


def write_bad_samples(folder: Path, dataset: str, unreadable: Mapping[str, Mapping[str, str]]) -> None:
    """Add a line for each unreadable image of a data set, once for all encoders.

    unreadable: split -> {id: reason}.
    """
    path = folder / BAD_SAMPLES
    written = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = dict.fromkeys(written)
    for split, reasons in unreadable.items():
        for name, reason in reasons.items():
            record = {"id": name, "reason": reason, "dataset": dataset, "part": split}
            lines[json.dumps(record)] = None
    if len(lines) > len(written):
        write_text_atomically(path, "\n".join(lines) + "\n")
