"""DeepSpeed configs that contradict the run, and what is filled in; `test_zero.py` asks DeepSpeed's
engine."""

import json
from pathlib import Path

import pytest

from vision_core.errors import UserError
from vision_core.trainer.zero_config import zero_config

OPTIONS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 1.0,
    "bf16": False,
}
SHIPPED = sorted((Path(__file__).parents[3] / "recipes" / "zero").glob("*.json"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_ones_pass(file):
    zero_config(file, OPTIONS, 2)


def test_all_stages_are_shipped():
    assert [json.loads(file.read_text())["zero_optimization"]["stage"] for file in SHIPPED] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train_micro_batch_size_per_gpu": 8},
            "train_micro_batch_size_per_gpu = 8 and per_device_train_batch_size is 4",
        ),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps is 2"),
        ({"train_batch_size": 8}, "train_batch_size = 8 .* is 16"),
        ({"gradient_clipping": 0.5}, "max_grad_norm is 1.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled = True and bf16 is False"),
        ({"fp16": {"enabled": True}}, "'fp16'.*--bf16 true"),
        ({"optimizer": {"type": "AdamW"}}, "'optimizer'.*rate of its own"),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler'.*--lr_scheduler_type"),
        ({"bfloat16": {"enabled": True}}, "'bfloat16'.*--bf16"),
        ({"torch_autocast": {"enabled": True}}, "'torch_autocast'.*--bf16 true"),
        ({"activation_checkpointing": {"partition_activations": True}}, "--activation_checkpointing true"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op = sum, but the loss is a mean"),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, "small steps are lost"),
        ({"bf16": True}, "bf16 = True, which must be a section"),
        (
            {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}},
            "saved whole",
        ),
        ({"zero_optimization": {"overlap_comm": True}}, "has no stage"),
        ({"zero_optimization": True}, "has no stage"),
    ],
)
def test_contradictions_are_named(changes, said, tmp_path):
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(json.loads(SHIPPED[2].read_text()) | changes))
    with pytest.raises(UserError, match=said):
        zero_config(file, OPTIONS, 2)


def test_equal_values_and_switched_off_sections_pass(tmp_path):
    file = tmp_path / "zero.json"
    equal = {
        "train_batch_size": 16,
        "gradient_clipping": 1.0,
        "fp16": {"enabled": False},
        "torch_autocast": {"enabled": "auto"},
    }
    file.write_text(json.dumps(json.loads(SHIPPED[2].read_text()) | equal))
    zero_config(file, OPTIONS, 2)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "no JSON"), ("[]", "no `zero_optimization`"), ("{}", "no `zero_optimization`")]
)
def test_files_that_are_none(text, said, tmp_path):
    file = tmp_path / "zero.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        zero_config(file, OPTIONS, 2)
    with pytest.raises(UserError, match="no file"):
        zero_config(tmp_path / "absent.json", OPTIONS, 2)


@pytest.mark.parametrize("open_value", ["absent", None, "auto"])
def test_what_is_left_open_follows_the_options(open_value, tmp_path):
    """Each of DeepSpeed's defaults is another value than the options'."""
    names = (
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "train_batch_size",
        "gradient_clipping",
    )
    given = (
        {}
        if open_value == "absent"
        else {name: open_value for name in names} | {"bf16": {"enabled": open_value}}
    )
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}} | given))
    filled = zero_config(file, OPTIONS | {"max_grad_norm": 0.05, "bf16": True}, 3)
    assert [filled[name] for name in names] == [4, 2, 24, 0.05] and filled["bf16"] == {"enabled": True}
    assert filled["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert filled["data_types"] == {"grad_accum_dtype": "fp32"}


def test_released_projects_files_are_taken(tmp_path):
    """LLaVA's zero2.json and zero3.json have a section fp16 that follows the options, and no
    gradient_clipping."""
    file = tmp_path / "zero.json"
    fp16 = {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    }
    file.write_text(
        json.dumps({"fp16": fp16, "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}})
    )
    assert "fp16" not in zero_config(file, OPTIONS, 1)


def test_offload_keeps_the_runs_optimizer(tmp_path):
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}))
    assert zero_config(file, OPTIONS, 1)["zero_force_ds_cpu_optimizer"] is False


def test_where_accelerate_would_leave_deepspeed_out(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(UserError, match="ACCELERATE_USE_CPU is set.*unset it"):
        zero_config(SHIPPED[3], OPTIONS, 1)
