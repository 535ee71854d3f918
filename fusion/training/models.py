"""How a fused model comes from a folder into a run, and how LoRA's adapter is merged into it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion import FusionProcessor, FusionVlmForConditionalGeneration
from fusion.chat_turns import add_stops
from fusion.configuration_fusion import FusionVlmConfig
from fusion.stub import write_stub
from vision_core.errors import UserError
from vision_core.files.text_files import parse_json, read_text
from vision_core.runs.folder_kinds import refuse_folder

# (pattern, what it is): the files that a model's folder must have besides its config
NEEDED_FILES = (
    ("*.safetensors", "weights"),
    ("processor_config.json", "processor"),
    ("tokenizer_config.json", "tokenizer"),
)


def load_model(
    folder: str, dtype: torch.dtype | None = None
) -> tuple[FusionVlmForConditionalGeneration, FusionProcessor]:
    """The model and processor in a folder. Generation stops where the chat template ends an answer.

    dtype: of the weights, by default that of the files. Raises UserError for a folder that does not
    hold a fused vision-language model.
    """
    check_model_folder(folder)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype or "auto", trust_remote_code=False
    )
    if not isinstance(model, FusionVlmForConditionalGeneration):
        raise UserError(
            f"{folder} holds a {type(model).__name__}, not a fused vision-language model; make one with fusion.fuse"
        )
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    add_stops(model.generation_config, processor)
    return model, processor


def check_model_folder(folder: str) -> None:
    """Raises UserError for a folder without a complete fused model and its processor, before a
    library reads it."""
    cure = "name a folder that fusion.fuse or an earlier stage wrote"
    config = os.path.join(folder, "config.json")
    if os.path.lexists(config):  # a folder without one is refused below, by its kind
        parse_json(read_text(config, config, cure), f"{config} cannot be read", cure)
    refuse_folder(folder, "a fused vision-language model", (FusionVlmConfig.model_type,))
    for pattern, what in NEEDED_FILES:
        if not any(Path(folder).glob(pattern)):
            raise UserError(
                f"{folder} has a fused model's config and no {what} ({pattern}); copy the whole folder, or {cure}"
            )


def merge_adapter(base: str, adapter: Path, folder: Path) -> None:
    """Write the model of `base`, with the LoRA matrices and the trained modules of `adapter` merged
    into it, to `folder`."""
    from peft import PeftModel

    model, processor = load_model(base)
    merged: nn.Module = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_stub(folder)
