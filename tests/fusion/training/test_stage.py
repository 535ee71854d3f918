"""The first checks of a stage. Its runs are in tests/recipes/test_sva_align.py and
test_sva_sft.py."""

import pytest

from fusion.training.stage import refuse_forgotten_start
from vision_core.errors import UserError
from vision_core.runs.checkpoints import seal_folder
from vision_core.trainer.options import TrainerOptions


def goes_on(tmp_path, init_from):
    (tmp_path / "checkpoint-2").mkdir()
    seal_folder(tmp_path / "checkpoint-2", 2)
    (tmp_path / "config.yaml").write_text(f"init_from: {init_from}\n")
    return TrainerOptions(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_run_that_began_from_a_model_needs_it_again(tmp_path):
    with pytest.raises(UserError, match="a run that goes on has the weights of its checkpoint"):
        refuse_forgotten_start(goes_on(tmp_path, "vlm"))


def test_a_run_of_stand_ins_goes_on_without_a_model(tmp_path):
    refuse_forgotten_start(goes_on(tmp_path, "null"))
    refuse_forgotten_start(TrainerOptions(output_dir=str(tmp_path / "new")))
