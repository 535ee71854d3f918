"""What DeepSpeed is told. Runs under ZeRO are in tests/recipes/test_zero*.py."""

import os

from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from fusion.training.zero import name_a_single_process, unsharded_models

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_a_process_without_a_launcher_is_the_only_one(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    name_a_single_process()
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")
    assert int(os.environ["MASTER_PORT"]) > 0


def test_a_launchers_word_holds(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    name_a_single_process()
    assert os.environ["WORLD_SIZE"] == "2" and "MASTER_PORT" not in os.environ


def test_without_deepspeed_models_are_as_always(tmp_path):
    with unsharded_models(TrainingArguments(tmp_path, use_cpu=True, report_to="none")):
        assert not is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()
