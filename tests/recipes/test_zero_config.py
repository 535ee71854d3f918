"""DeepSpeed configs that contradict the run."""

import json
from pathlib import Path

import pytest

from recipes.zero_config import check_zero_config
from vision_core.errors import UserError

OPTIONS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "bf16": False}
SHIPPED = sorted((Path(__file__).parents[2] / "recipes" / "zero").glob("*.json"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_ones_pass(file):
    check_zero_config(file, OPTIONS, 2)


def test_all_stages_are_shipped():
    assert [json.loads(file.read_text())["zero_optimization"]["stage"] for file in SHIPPED] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu = 8 and per_device_train_batch_size is 4"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps is 2"),
        ({"train_batch_size": 8}, "train_batch_size = 8 .* is 16"),
        ({"gradient_clipping": 0.5}, "max_grad_norm is 1.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled = True and bf16 is False"),
        ({"fp16": {"enabled": True}}, "'fp16'.*--bf16 true"),
        ({"optimizer": {"type": "AdamW"}}, "'optimizer'.*rate of its own"),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler'.*--lr_scheduler_type"),
    ],
)
def test_contradictions_are_named(changes, said, tmp_path):
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(json.loads(SHIPPED[2].read_text()) | changes))
    with pytest.raises(UserError, match=said):
        check_zero_config(file, OPTIONS, 2)


def test_equal_values_and_switched_off_sections_pass(tmp_path):
    file = tmp_path / "zero.json"
    equal = {"train_batch_size": 16, "gradient_clipping": 1.0, "fp16": {"enabled": False}}
    file.write_text(json.dumps(json.loads(SHIPPED[2].read_text()) | equal))
    check_zero_config(file, OPTIONS, 2)


@pytest.mark.parametrize(("text", "said"), [("{", "no JSON"), ("[]", "no `zero_optimization`"), ("{}", "no `zero_optimization`")])
def test_files_that_are_none(text, said, tmp_path):
    file = tmp_path / "zero.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        check_zero_config(file, OPTIONS, 2)
    with pytest.raises(UserError, match="no file"):
        check_zero_config(tmp_path / "absent.json", OPTIONS, 2)
