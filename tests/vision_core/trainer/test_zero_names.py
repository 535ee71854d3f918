"""Keys of a ZeRO config that DeepSpeed does not know, and values that it refuses: one line each,
before anything is loaded."""

import json
from pathlib import Path

import pytest

from vision_core.errors import UserError
from vision_core.trainer.zero_config import zero_config
from vision_core.trainer.zero_names import check_names, names_deepspeed_asks_for

OPTIONS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 1.0,
    "bf16": False,
}
SHIPPED = sorted((Path(__file__).parents[3] / "recipes" / "zero").glob("*.json"))


def check(file, content):
    file.write_text(json.dumps(content))
    check_names(file, zero_config(file, OPTIONS, 2))


def changed(changes=None, zero=None):
    content = json.loads(SHIPPED[3].read_text()) | (changes or {})
    content["zero_optimization"].update(zero or {})
    return content


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_ones_pass(file):
    check_names(file, zero_config(file, OPTIONS, 2))


@pytest.mark.parametrize(
    ("changes", "zero", "said"),
    [
        (
            {"gradient_cliping": 1.0},
            {},
            "'gradient_cliping', which DeepSpeed .*; did you mean gradient_clipping\\?",
        ),
        ({"train_micro_batch_size": 4}, {}, "did you mean train_micro_batch_size_per_gpu\\?"),
        ({"zero_optimisation": {"stage": 3}}, {}, "did you mean zero_optimization\\?"),
        ({"qwertz": 1}, {}, "'qwertz', .* take it out of the file"),
        (
            {},
            {"reduce_buckt_size": "auto"},
            "'reduce_buckt_size' in zero_optimization, .* did you mean reduce_bucket_size\\?",
        ),
        ({}, {"overlap_com": True}, "did you mean overlap_comm\\?"),
        ({}, {"stage3_max_live_params": 1e9}, "did you mean stage3_max_live_parameters\\?"),
        (
            {},
            {"offload_optimizer": {"device": "cpu", "pin_memry": True}},
            "'pin_memry' in zero_optimization.offload_optimizer, .* pin_memory",
        ),
        ({}, {"reduce_bucket_size": -1}, "reduce_bucket_size = -1, which DeepSpeed refuses"),
        ({}, {"overlap_comm": "perhaps"}, "overlap_comm = 'perhaps', which DeepSpeed refuses"),
        ({"elasticity": {"enabled": True}}, {}, "refused by DeepSpeed: Elastic training has been removed"),
        ({"bf16": {"enabled": "auto", "enabeld": True}}, {}, "enabeld = True, which DeepSpeed refuses"),
        ({"checkpoint": {"tag_validation": "perhaps"}}, {}, "refused by DeepSpeed: .*tag_validation"),
    ],
)
def test_what_deepspeed_would_not_read_is_named(changes, zero, said, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        check(tmp_path / "zero.json", changed(changes, zero))
    assert "\n" not in str(caught.value)


def test_what_deepspeed_reads_passes(tmp_path):
    """Also keys of sections that have no model, names that DeepSpeed has replaced, and both names
    of a key."""
    content = changed(
        {
            "steps_per_print": 10,
            "wall_clock_breakdown": False,
            "zero_allow_untested_optimizer": True,
            "communication_data_type": "fp32",
        },
        {
            "sub_group_size": 1e9,
            "max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "offload_param": {"device": "none"},
        },
    )
    check(tmp_path / "zero.json", content)
    for name in ("flops_profiler", "tensorboard", "csv_monitor", "comms_logger"):
        check(tmp_path / "zero.json", changed({name: {"enabled": False}}))
    check(tmp_path / "zero.json", changed({"aio": {"block_size": 1048576}}))


def test_the_names_are_deepspeeds_own():
    """By another way than ours: the constants of its module that name keys of the top."""
    from deepspeed.runtime import constants

    ours = names_deepspeed_asks_for()
    for name in (
        "TRAIN_BATCH_SIZE",
        "GRADIENT_CLIPPING",
        "BFLOAT16",
        "STEPS_PER_PRINT",
        "PRESCALE_GRADIENTS",
        "DUMP_STATE",
        "MEMORY_BREAKDOWN",
    ):
        assert getattr(constants, name) in ours, name


def test_a_key_that_stands_twice(tmp_path):
    """JSON takes the last one without a word."""
    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0, "gradient_clipping": 0.5}')
    with pytest.raises(UserError, match="has the key 'gradient_clipping' twice; keep one"):
        zero_config(file, OPTIONS, 2)
