"""Small fused models: of a few steps of each lesson, and untaught."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion.training import stand_ins
from fusion.training.small_default import write_small_default

TEXTS = ["the red star is in column c and row 4, some five metres away"] * 9
FEW_STEPS = {"SCENES": 64, "ENCODER_STEPS": 4, "LANGUAGE_STEPS": 8, "CONNECTOR_STEPS": 8}


@pytest.fixture(scope="session")
def small_defaults(tmp_path_factory):
    """The folders of two small defaults of the same few steps, and of one that is untaught."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two", "untaught")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FEW_STEPS.items():
            patch.setattr(stand_ins, name, value)
        for number, folder in enumerate(folders):
            torch.manual_seed(number)
            write_small_default(folder, TEXTS, seed=0, stand_ins=number < 2)
    return folders


@pytest.fixture(scope="session")
def load_small():
    """load_small(folder): the model and the processor in it."""

    def load(folder):
        return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)

    return load
