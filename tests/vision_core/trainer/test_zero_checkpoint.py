"""What the files of a checkpoint say of the layout of its optimizer's states, and which run they fit.

Runs that go on with another layout are in tests/recipes/test_zero_resumes.py.
"""

import json

import pytest

from vision_core.errors import UserError
from vision_core.trainer.zero_checkpoint import KINDS, StatesLayout, refuse_other_layout, saved_layout


def config(stage, bf16=False):
    return None if stage is None else {"zero_optimization": {"stage": stage}, "bf16": {"enabled": bf16}}


# the names that deepspeed 0.19.8 gave in runs of each stage, below global_step2
STATES = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
WHOLE = "mp_rank_00_model_states.pt"
SHARDS = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in (0, 1)]
FILES = {None: [], 0: [WHOLE], 2: [WHOLE, *STATES], 3: [*SHARDS, *(f"bf16_{name}" for name in STATES)]}


def checkpoint_of(stage, folder, bf16=False):
    for name in FILES[stage]:
        path = folder / "checkpoint-2" / "global_step2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "config.yaml").write_text(f"bf16: {json.dumps(bf16)}\n")
    return folder / "checkpoint-2"


@pytest.mark.parametrize("stage", FILES)
def test_what_a_checkpoint_says_of_itself_fits_itself_alone(stage, tmp_path):
    checkpoint = checkpoint_of(stage, tmp_path)
    bf16 = stage == 3
    refuse_other_layout(checkpoint, config(stage, bf16), 2)
    for other in {None, 0, 2, 3} - {stage}:
        with pytest.raises(UserError, match="give those of the checkpoint"):
            refuse_other_layout(checkpoint, config(other, bf16), 2)
    if stage is not None:
        with pytest.raises(UserError, match=f"with --bf16 {str(not bf16).lower()}"):
            refuse_other_layout(checkpoint, config(stage, not bf16), 2)


def test_stage_0_goes_on_with_any_number_of_processes(tmp_path):
    checkpoint = checkpoint_of(0, tmp_path, bf16=True)
    assert saved_layout(checkpoint) == StatesLayout(KINDS[0], None, True)
    refuse_other_layout(checkpoint, config(0, True), 7)
