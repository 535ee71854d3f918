"""What a run of `dinov2.py` is, as far as its options say it: lines that are printed before
anything that takes long."""

from pathlib import Path

import torch

from pretrain.batches.order import BatchLayout
from pretrain.run.args import DINOv2Arguments, backbone_shape
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.ranges import range_notes
from vision_core.images.source import ImageSource, ImageStream

FEW_IMAGES = 256  # of a step, below which the published rule for the learning rate makes it small


def introduction(
    args: DINOv2Arguments,
    source: ImageSource | ImageStream,
    layout: BatchLayout,
    folder: Path,
    first_step: int,
    device: str,
) -> list[str]:
    """The run's folder, images, backbone and steps, with what a user should know about them."""
    width, layers, heads = backbone_shape(args)
    lines = [f"run folder      {folder}", f"images          {source.description}"]
    lines += [
        f"note            {note}"
        for note in range_notes(source, args.num_channels, args.image_mean, args.image_std)
    ]
    reading = pixel_options_text(source.pixel_options)
    if reading:
        lines.append(
            f"pixels          read with {reading}; judge this encoder on images that are read with the same"
        )
    lines += [
        f"backbone        width {width}, {layers} layers, {heads} heads, patches of {args.patch_size}; "
        f"{device}, {torch.get_num_threads()} threads",
        f"global batch    {layout.global_batch} images, steps {first_step} to {args.max_steps}",
    ]
    if layout.global_batch < FEW_IMAGES and args.lr_scaling == "sqrt":
        lines.append(
            "note            a global batch below 256 learns slowly under the published rules; see docs/pretraining.md"
        )
    return lines
