"""Fused models into a run and out of it: the small default, a folder's, and what is saved."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from fusion import FusionProcessor, FusionVlmForConditionalGeneration, assemble_vlm, fuse_encoders
from fusion.tiny import tiny_language_model
from vision_core.errors import UserError


def write_default_model(folder: Path, seed: int) -> None:
    """Tiny untrained models, fused: what stands in where none is named."""
    vision_model, _ = fuse_encoders(
        ["tiny:dinov2", "tiny:siglip"], hidden_size=64, connector_options={"width": 64, "num_heads": 4, "depth": 2}, grid=4, seed=seed
    )
    model, processor = assemble_vlm(vision_model, *tiny_language_model("qwen3", seed), num_sva_layers=2, sva_stride=2, seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_model(folder: str) -> tuple[FusionVlmForConditionalGeneration, FusionProcessor]:
    """The model and processor of a folder. Raises UserError for one that holds no fused vision-language model."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder} holds no model; name a folder that fusion.fuse or an earlier stage wrote")
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(model, FusionVlmForConditionalGeneration):
        raise UserError(f"{folder} holds a {type(model).__name__}, not a fused vision-language model; make one with fusion.fuse")
    return model, AutoProcessor.from_pretrained(folder, trust_remote_code=False)


def merge_adapter(base: str, adapter: Path, folder: Path) -> None:
    """LoRA's matrices and the modules trained beside them, in `adapter`, put into the model of `base`; the whole goes to `folder`."""
    from peft import PeftModel

    model, processor = load_model(base)
    merged: nn.Module = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)
    processor.save_pretrained(folder)
