"""Check DeepSpeed's config file against the options of the run, and fill in what it leaves open.

DeepSpeed has defaults of its own for keys that a file leaves out (deepspeed 0.19.8,
runtime/config.py and runtime/constants.py): gradients are clipped at 1.0, bf16 is off, one batch
makes a step, ZeRO-3 saves no whole weights. So the run hands over no file, but a config that says
all of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vision_core.errors import UserError
from vision_core.files.text_files import parse_json, read_text

MAX_CONFIG_BYTES = 2**20

Config = dict[str, Any]
OURS = {
    "optimizer": "every kind of module has a rate of its own",
    "scheduler": "--lr_scheduler_type and --warmup_steps set it",
    "fp16": "bf16 is the mixed precision here: --bf16 true",
    "torch_autocast": "bf16 is the mixed precision here: --bf16 true",
    "bfloat16": "--bf16 sets it, and the section that holds is called 'bf16'",
    "activation_checkpointing": "--activation_checkpointing true sets it, and transformers reads no such section",
    "tensor_parallel": "every process trains on rows of its own",
}
FIXED = {
    "gradient_allreduce_op": ("mean", "the loss is a mean over all processes"),
    "managed_gradient_accumulation": (True, "--gradient_accumulation_steps needs it"),
    "sequence_parallel_size": (1, "every process trains on rows of its own"),
    "bf16.bf16_master_weights_and_grads": (False, "small steps are lost in weights of bf16"),
    "bf16.bf16_optimizer_states": (False, "small steps are lost in moments of bf16"),
}  # what DeepSpeed takes by itself, and why it stays so
WHOLE_WEIGHTS = (
    "stage3_gather_16bit_weights_on_model_save",
    "gather_16bit_weights_on_model_save",
    "stage3_gather_fp16_weights_on_model_save",
)  # names of one key of ZeRO-3's, without which a model cannot be saved


def zero_config(file: Path, options: Mapping[str, Any], world_size: int) -> Config:
    """The config for DeepSpeed: that of the file, and what is missing, null or "auto" in it taken
    from the options.

    options: `per_device_train_batch_size`, `gradient_accumulation_steps`, `max_grad_norm` and
    `bf16`. Raises UserError for a file that cannot be read, that contradicts the options, or that
    would train or save something else than they say.
    """
    refuse_cpu_only()
    config = read_config(file)
    for name, reason in OURS.items():
        refuse_section(file, config, name, reason)
    for name, (value, reason) in FIXED.items():
        written = value_of(config, name)
        if written not in (None, "auto", value):
            raise UserError(
                f"--deepspeed {file} says {name} = {written}, but {reason}; take it out of the file"
            )
    for name, (option, value) in expected(options, world_size).items():
        written = value_of(config, name)
        if written not in (None, "auto", value):
            raise UserError(
                f'--deepspeed {file} says {name} = {written} and {option} is {value}; write "auto" in the '
                "file, or make them equal"
            )
        set_value(config, name, value)
    fill_for_stage(file, config, options)
    return config


def refuse_cpu_only() -> None:
    """Raises UserError where accelerate would leave DeepSpeed out without a word, and ZeRO-3's
    weights in pieces that nobody gathers."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        raise UserError(
            "ACCELERATE_USE_CPU is set, under which accelerate takes no --deepspeed; unset it, or start "
            "with `deepspeed`, "
            "which trains on CPUs where there is no accelerator"
        )


def read_config(file: Path) -> Config:
    """The file's config. Raises UserError for one that cannot be read or says no stage."""
    if not os.path.lexists(file):
        raise UserError(f"--deepspeed {file} is no file; ZeRO configs lie in recipes/zero")
    name = f"--deepspeed {file}"
    cure = "mend it, or take one of recipes/zero"
    text = read_text(file, name, cure, most_bytes=MAX_CONFIG_BYTES)
    config = parse_json(text, name, cure, finite=True, pairs=partial(without_twins, file))
    if not isinstance(config, dict) or "zero_optimization" not in config:
        raise UserError(
            f"--deepspeed {file} has no `zero_optimization`; take one of recipes/zero as a pattern"
        )
    zero = config["zero_optimization"]
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise UserError(
            f'--deepspeed {file} has no stage, without which ZeRO is off; write "zero_optimization": '
            f'{{"stage": 2}}, or 0, 1, 3'
        )
    for name in ("bf16", "data_types"):
        if not isinstance(config.get(name, {}), dict):
            raise UserError(
                f'--deepspeed {file} says {name} = {config[name]}, which must be a section, as {{"enabled": "auto"}}'
            )
    return config


def without_twins(file: Path, pairs: list[tuple[str, Any]]) -> Config:
    """A section of the file. Raises UserError for a key that stands in it twice: JSON would take
    the last one."""
    section = dict(pairs)
    if len(section) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise UserError(f"--deepspeed {file} has the key {twin!r} twice; keep one")
    return section


def refuse_section(file: Path, config: Config, name: str, reason: str) -> None:
    """Takes out a section that is switched off or follows the options. Raises UserError for one
    that is on."""
    given = config.pop(name, None)
    is_off = isinstance(given, dict) and given.get("enabled") in (False, "auto")
    if given and not is_off:
        raise UserError(f"--deepspeed {file} has a section {name!r}, but {reason}; take the section out")


def expected(options: Mapping[str, Any], world_size: int) -> dict[str, tuple[str, Any]]:
    """What the options say of DeepSpeed's keys: name -> (which option says so, its value)."""
    batch = options["per_device_train_batch_size"]
    accumulation = options["gradient_accumulation_steps"]
    return {
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", batch),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", accumulation),
        "train_batch_size": (
            "per_device_train_batch_size, times gradient_accumulation_steps, times processes",
            batch * accumulation * world_size,
        ),
        "gradient_clipping": ("max_grad_norm", options["max_grad_norm"]),
        "bf16.enabled": ("bf16", options["bf16"]),
    }


def fill_for_stage(file: Path, config: Config, options: Mapping[str, Any]) -> None:
    """What DeepSpeed's defaults would change in silence at some stages. Raises UserError for a
    ZeRO-3 that could not save its model."""
    zero = config["zero_optimization"]
    if zero["stage"] == 3:
        given = [zero[name] for name in WHOLE_WEIGHTS if zero.get(name) not in (None, "auto")]
        if given and not any(given):
            raise UserError(
                f"--deepspeed {file} says {WHOLE_WEIGHTS[0]} = false, but the trained model is saved "
                "whole; take it out of the file"
            )
        for name in WHOLE_WEIGHTS[1:]:
            zero.pop(name, None)
        zero[WHOLE_WEIGHTS[0]] = True
    if zero.get("offload_optimizer") or zero.get("cpu_offload"):
        # else accelerate puts DeepSpeedCPUAdam in the place of the run's optimizer
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    if options["bf16"] and options["gradient_accumulation_steps"] > 1 and zero["stage"]:
        # the sum of many gradients would be rounded to bf16 at every addition; DeepSpeed has
        # nothing better at stage 0
        config["data_types"] = {"grad_accum_dtype": "fp32"} | config.get("data_types", {})


def value_of(config: Config, name: str) -> Any:
    """Of a key, or of `section.key`; None where it is missing."""
    section, _, key = name.partition(".")
    value = config.get(section)
    return value.get(key) if key and isinstance(value, dict) else value


def set_value(config: Config, name: str, value: Any) -> None:
    """Of a key, or of `section.key`, whose section is made where it is missing."""
    section, _, key = name.partition(".")
    if key:
        config[section] = (config.get(section) or {}) | {key: value}
    else:
        config[section] = value
