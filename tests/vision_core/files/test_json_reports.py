import json
from dataclasses import dataclass

import pytest
import torch

from vision_core.files.json_reports import plain, write_json


@dataclass
class Point:
    x: int
    weight: float


def test_dataclasses_and_tensors_become_plain_values(tmp_path):
    report = {"point": Point(1, 0.5), "row": torch.tensor([1, 2]), 10: (None, "text")}
    expected = {"point": {"x": 1, "weight": 0.5}, "row": [1, 2], "10": [None, "text"]}
    assert plain(report) == expected
    write_json(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text()) == expected


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match="a value of the type set cannot be written as JSON"):
        plain({"names": {"a"}})
