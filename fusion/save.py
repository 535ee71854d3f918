"""Write a fused model's folder: weights, processor, model card, and a stub for processes that import
only transformers."""

from __future__ import annotations

from pathlib import Path

from fusion.card import UNTRAINED_DATA, UNTRAINED_NOTE, write_fused_card
from fusion.image_processing_fusion import FusionImageProcessor
from fusion.modeling_fused_vision import FusedVisionModel
from fusion.modeling_fusion_vlm import FusionVlmForConditionalGeneration
from fusion.processing_fusion import FusionProcessor
from fusion.stub import write_stub
from vision_core.runs.publishing import published


def save_fused(
    folder: Path,
    model: FusedVisionModel | FusionVlmForConditionalGeneration,
    processor: FusionImageProcessor | FusionProcessor,
    *,
    command: str,
    stub: bool = False,
    data: str = UNTRAINED_DATA,
    note: str = UNTRAINED_NOTE,
) -> None:
    """Write the model, its processor and README.md to `folder`, from which the Auto classes load
    them.

    command: what a reader types to make the same model.
    stub: also write a file of Python that does nothing but import this package (see `fusion.stub`).
    data, note: for the card, see `fusion.card`.

    Each file appears complete, and the weights last. Raises CheckpointNotWritten.
    """
    with published(Path(folder)) as aside:
        model.save_pretrained(aside)
        processor.save_pretrained(aside)
        if stub:
            write_stub(aside)
        write_fused_card(aside, model, command=command, data=data, note=note)
