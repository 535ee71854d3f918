"""Opens the images that SigLIP and MAE train on, and those whose loss is measured in between."""

import os
from collections.abc import Callable

from pretrain.run.own_evaluation import HELD_OUT
from vision_core.errors import UserError
from vision_core.images.held_out import SourcePart, hold_out
from vision_core.images.open_source import open_source
from vision_core.images.pixel_options import Scale
from vision_core.images.source import ImageSource
from vision_core.printable import say
from vision_core.processes.launchers import is_first_launched

MOST_HELD_OUT = 500  # images


def open_images(text: str, auto_scale: Scale | None = None) -> ImageSource:
    """The images of a source text; auto_scale is that of `open_source`. Raises UserError for a
    stream, whose length and order nobody knows."""
    source = open_source(text, auto_scale=auto_scale)
    if not isinstance(source, ImageSource):
        raise UserError(
            f"{text} is a stream; give images that can be read in any order, "
            "a folder or parquet: (docs/data.md)"
        )
    return source


def open_captioned_images(text: str, auto_scale: Scale | None = None) -> ImageSource:
    """The images of a source text, as `open_images` gives them. Raises UserError for images without
    captions."""
    source = open_images(text, auto_scale)
    if "captions" not in source.knows:
        raise UserError(
            f"{text} has no captions; name the column or the file that holds them, captions=... (docs/data.md)"
        )
    return source


def open_training_and_held_out(
    dataset: str,
    eval_dataset: str | None,
    *,
    seed: int,
    batch_size: int,
    micro_batches: int,
    open_one: Callable[..., ImageSource] = open_images,
) -> tuple[ImageSource, ImageSource | None]:
    """The images that are trained on, and those whose loss is measured in between, or None.

    With eval_dataset=held_out the second are a part of the first, which is not trained on. Where
    that part would not fill a batch, this is said, and nothing is held out. open_one: opens a
    source text, with what its `?scale=auto` means.
    """
    source = open_one(dataset)
    if not eval_dataset:
        return source, None
    if eval_dataset != HELD_OUT:
        return source, open_one(eval_dataset, source.pixel_options.scale)
    part = hold_out(source, seed, MOST_HELD_OUT)
    of_all_processes = batch_size * int(os.environ.get("WORLD_SIZE", 1))
    if _fills_batches(part, of_all_processes, micro_batches):
        return part, part.held_out
    if is_first_launched():
        is_few = len(source) // 10 < of_all_processes
        share = "a tenth" if is_few else "what can be held out in whole files"
        say(
            f"no held-out loss: {share} of {len(source):,} images does not fill a batch of "
            f"{of_all_processes}; name others by --eval_dataset"
        )
    return source, None


def _fills_batches(part: SourcePart, batch_size: int, micro_batches: int) -> bool:
    return len(part.held_out) >= batch_size and len(part) >= batch_size * micro_batches
