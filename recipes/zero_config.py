"""DeepSpeed's config file, checked against the options of the run before anything is built."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vision_core.errors import UserError

OURS = {
    "optimizer": "every kind of module has a rate of its own",
    "scheduler": "--lr_scheduler_type and --warmup_steps set it",
    "fp16": "bf16 is the mixed precision here: --bf16 true",
}


def check_zero_config(file: Path, options: Mapping[str, Any], world_size: int) -> None:
    """Raises UserError for a file that cannot be read, or contradicts the options (`per_device_train_batch_size`, `gradient_accumulation_steps`,
    `max_grad_norm`, `bf16`): both would be believed by half of the libraries."""
    if not file.is_file():
        raise UserError(f"--deepspeed {file} is no file; ZeRO configs lie in recipes/zero")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--deepspeed {file} is no JSON ({error}); mend it, or take one of recipes/zero") from None
    if not isinstance(config, dict) or "zero_optimization" not in config:
        raise UserError(f"--deepspeed {file} has no `zero_optimization`; take one of recipes/zero as a pattern")
    batch, accumulation = options["per_device_train_batch_size"], options["gradient_accumulation_steps"]
    expected = {
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", batch),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", accumulation),
        "train_batch_size": (
            "per_device_train_batch_size, times gradient_accumulation_steps, times processes",
            batch * accumulation * world_size,
        ),
        "gradient_clipping": ("max_grad_norm", options["max_grad_norm"]),
        "bf16.enabled": ("bf16", options["bf16"]),
    }
    for name, (option, value) in expected.items():
        section, _, key = name.partition(".")
        written = config.get(section, "auto")
        written = written.get(key, "auto") if key and isinstance(written, dict) else written
        if written not in ("auto", value):
            raise UserError(
                f'--deepspeed {file} says {name} = {written} and {option} is {value}; write "auto" in the file, or make them equal'
            )
    for section, reason in OURS.items():
        given = config.get(section)
        if given and (not isinstance(given, dict) or given.get("enabled", True)):
            raise UserError(f"--deepspeed {file} has a section {section!r}, but {reason}; take the section out")
