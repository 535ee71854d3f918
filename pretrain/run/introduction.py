"""Says what a run of `pretrain/dinov2.py` is, before anything that takes long."""

from pathlib import Path

import torch

from pretrain.batches.order import BatchLayout
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.source import ImageSource, ImageStream

FEW_IMAGES = 256  # a step of fewer has a small learning rate by the published rule


def introduction(
    folder: Path,
    source: ImageSource | ImageStream,
    layout: BatchLayout,
    *,
    notes: list[str],
    backbone: str,
    device: str,
    steps: tuple[int, int],
    lr_scaling: str,
) -> list[str]:
    """The run's folder, images, backbone and steps, with what a user should know about them.

    notes: about the images' values. backbone: in words. steps: those already taken, and all.
    """
    lines = [f"run folder      {folder}", f"images          {source.description}"]
    lines += [f"note            {note}" for note in notes]
    reading = pixel_options_text(source.pixel_options)
    if reading:
        lines.append(
            f"pixels          read with {reading}; judge this encoder on images that are read with the same"
        )
    first_step, max_steps = steps
    lines += [
        f"backbone        {backbone}; {device}, {torch.get_num_threads()} threads",
        f"global batch    {layout.global_batch} images, steps {first_step} to {max_steps}",
    ]
    if layout.global_batch < FEW_IMAGES and lr_scaling == "sqrt":
        lines.append(
            "note            a global batch below 256 learns slowly under the published rules; "
            "see docs/pretraining.md"
        )
    return lines
