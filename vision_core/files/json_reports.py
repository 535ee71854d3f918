"""Reports of dataclasses, tensors, numbers and texts as JSON."""

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch


def write_json(path: Path, report: Any) -> None:
    """Write a report to `path`, as JSON that people can read too."""
    path.write_text(json.dumps(report, indent=1, default=_plain_value) + "\n", encoding="utf-8")


def plain(report: Any) -> Any:
    """A report as a reader of its JSON gets it: dictionaries, lists, numbers and texts."""
    return json.loads(json.dumps(report, default=_plain_value))


def _plain_value(value: Any) -> Any:
    if is_dataclass(value):
        return asdict(value)
    if isinstance(value, torch.Tensor):
        return value.tolist()
    raise TypeError(f"a value of the type {type(value).__name__} cannot be written as JSON")
