"""Check that the optimizer states of a ZeRO checkpoint fit the run that resumes it.

DeepSpeed lays them out by its stage, its precision and its processes. What does not fit, deepspeed
0.19.8 meets behind the start of the run, in tracebacks of its own. States of ZeRO that a run
without `--deepspeed` takes up are read by
nobody: it would go on with the moments of a new run and say nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vision_core.errors import UserError
from vision_core.runs.folder_checks import config_in

OPTIMIZER_STATES = re.compile(r"(bf16_)?zero_pp_rank_(\d+)_mp_rank_\d+_optim_states\.pt")
SHARDED_WEIGHTS = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
# stages 1 and 2 shard the same states alike (deepspeed/runtime/zero/stage_1_and_2.py): each goes on
# from the other's
KINDS = {
    None: "without --deepspeed",
    0: "under ZeRO stage 0",
    1: "under ZeRO stage 1 or 2",
    2: "under ZeRO stage 1 or 2",
    3: "under ZeRO stage 3",
}


@dataclass(frozen=True)
class StatesLayout:
    """How optimizer's states lie.

    kind: one of KINDS. processes: that share them, None where each has all. bf16: None where
    nothing depends on it.
    """

    kind: str
    processes: int | None = None
    bf16: bool | None = None

    def __str__(self) -> str:
        shared = (
            "" if self.processes is None else f" by {self.processes} process{'es' * (self.processes > 1)}"
        )
        precision = "" if self.bf16 is None else f" with --bf16 {str(self.bf16).lower()}"
        return f"{self.kind}{shared}{precision}"


def refuse_other_layout(checkpoint: Path, zero: dict[str, Any] | None, processes: int) -> None:
    """Raises UserError for a checkpoint whose states a run of `processes` processes cannot go on
    from.

    zero: the config for DeepSpeed, None for a run without.
    """
    saved = saved_layout(checkpoint)
    wanted = wanted_layout(zero, processes)
    if saved != wanted:
        raise UserError(
            f"{checkpoint} was saved {saved}, and this run is {wanted}; give those of the checkpoint, or "
            "start a new run"
        )


def wanted_layout(zero: dict[str, Any] | None, processes: int) -> StatesLayout:
    """Of a run with DeepSpeed's config `zero`."""
    if zero is None:
        return StatesLayout(KINDS[None])
    stage = zero["zero_optimization"]["stage"]
    return StatesLayout(KINDS[stage], processes if stage else None, zero["bf16"]["enabled"])


def saved_layout(checkpoint: Path) -> StatesLayout:
    """Of a checkpoint, by the names of its files; at stage 0 the precision is that of the run's own
    config.yaml."""
    names = [path.name for path in checkpoint.glob("global_step*/*.pt")]
    if not names:
        return StatesLayout(KINDS[None])
    states = [match for match in map(OPTIMIZER_STATES.fullmatch, names) if match]
    if not states:
        return StatesLayout(KINDS[0], None, bf16_of_run(checkpoint.parent))
    stage = 3 if any(map(SHARDED_WEIGHTS.fullmatch, names)) else 2
    return StatesLayout(KINDS[stage], len(states), states[0].group(1) is not None)


def bf16_of_run(folder: Path) -> bool:
    """Whether the run in `folder` was one of mixed precision."""
    return bool(config_in(folder).get("bf16"))
