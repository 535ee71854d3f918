"""Folders of runs hold the names that options had when they were written."""

from dataclasses import dataclass, field

import pytest

from vision_core.arguments import parse_arguments
from vision_core.errors import UserError
from vision_core.renamed_options import by_present_names
from vision_core.runs.folder_checks import changed_keys

OLD = """mixed_precision: {}
gradient_checkpointing: true
conversations:
- hf:talk?split=train&stream=true
- llava:stream=rows.jsonl
"""


@dataclass
class Options:
    bf16: bool = True
    fp16: bool = False
    activation_checkpointing: bool = False
    conversations: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    ("word", "bf16", "fp16"), [("bf16", True, False), ("fp16", False, True), ('"no"', False, False)]
)
def test_a_config_that_an_older_run_wrote_is_read_and_compares_as_equal(tmp_path, word, bf16, fp16):
    config = tmp_path / "config.yaml"
    config.write_text("# options of pretrain/dinov2.py\n" + OLD.format(word))
    sources = ["hf:talk?split=train&streaming=true", "llava:stream=rows.jsonl"]
    assert parse_arguments(Options, ["--config", str(config)]) == Options(bf16, fp16, True, sources)
    new = f"bf16: {bf16}\nfp16: {fp16}\nactivation_checkpointing: true\nconversations: {sources}\n"
    assert changed_keys(config.read_text(), new) == {}


def test_a_person_is_told_the_new_name(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("mixed_precision: bf16\n")
    with pytest.raises(UserError, match="line 1.*mixed_precision.*did you mean bf16"):
        parse_arguments(Options, ["--config", str(config)])
    with pytest.raises(UserError, match="did you mean activation_checkpointing"):
        parse_arguments(Options, ["--gradient_checkpointing", "true"])


def test_precision_limits_and_workers_of_evaluations():
    old = {"precision": "bfloat16", "max_train_images": 5, "limit": 7, "num_workers": 2}
    present = {"bf16": True, "max_train_samples": 5, "max_samples": 7, "dataloader_num_workers": 2}
    assert by_present_names(old) == present
