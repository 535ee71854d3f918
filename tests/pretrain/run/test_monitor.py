"""Which processes are to blame for a step that is not finite, and what is drawn of a run."""

import json
import math

import torch

from pretrain.run import monitor
from pretrain.run.monitor import knn_line, not_finite, read_metrics


def shares(monkeypatch, *of_processes):
    monkeypatch.setattr(monitor, "gather_objects", lambda own: list(of_processes))


def test_the_processes_whose_loss_is_not_finite_are_named(monkeypatch):
    shares(monkeypatch, (1.0, ["a"]), (math.nan, ["b", "c"]), (math.inf, ["d"]))
    loss, ranks, ids = not_finite(torch.tensor(1.0), ["a"])
    assert math.isnan(loss) and ranks == [1, 2] and ids == ["b", "c", "d"]


def test_all_processes_are_named_where_only_gradients_are_not_finite(monkeypatch):
    shares(monkeypatch, (1.0, ["a"]), (2.0, ["b"]))
    assert not_finite(torch.tensor(1.0), ["a"]) == (1.0, [0, 1], ["a", "b"])


def test_a_history_that_was_left_behind_is_empty(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_accuracies_are_one_line():
    assert knn_line(6, {"cls": 13.34, "patch_mean": 16.7}) == "step 6: k-NN cls 13.3 %, patch_mean 16.7 %"
