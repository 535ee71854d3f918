"""The feature cache of a run, filled by all its processes together.

Every file that the run needs is read once; what is missing or damaged is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import TrainingArguments

from fusion import FusedVisionModel, FusionImageProcessor
from fusion.conversations.batches import BLANK
from fusion.map_cache import ROOM, MapCache
from fusion.training.models import load_model
from fusion.training.zero import unsharded_models
from vision_core.files.disk_space import check_room
from vision_core.processes.distributed import (
    gather_objects,
    is_main_process,
    print_once,
    rank,
    together,
    world_size,
)

Place = tuple[int, int]  # number of a source, row in it


class HasImages(Protocol):
    """A row of a source: its `images` are `[3, H, W]` uint8."""

    images: Sequence[Tensor]


@dataclass
class FoundFiles:
    """What a process has found of the images in its share of the rows.

    Attributes:
        needed: the file of each image that has to be made, and a row that shows it.
        damaged: the files among them that did not verify.
    """

    needed: dict[str, Place] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)


def open_filled_cache(
    folder: Path,
    dtype: torch.dtype,
    model_folder: str,
    settings: TrainingArguments,
    sources: Sequence[Sequence[HasImages]],
) -> MapCache:
    """The cache in `folder` of what the frozen encoders of `model_folder` make of all images of
    `sources`. Raises UserError; see `fill_for_a_run`."""
    with unsharded_models(settings):
        model, processor = load_model(model_folder, torch.float32)
    vision_model = model.vision_model.to(settings.device)
    cache = MapCache(folder, vision_model, processor.image_processor, dtype)
    fill_for_a_run(cache, sources, vision_model, processor.image_processor)
    return cache


def fill_for_a_run(
    cache: MapCache,
    sources: Sequence[Sequence[HasImages]],
    vision_model: FusedVisionModel,
    image_processor: FusionImageProcessor,
) -> None:
    """Make the cache hold a file of every image of `sources`, and of the blank one. Every process
    calls it.

    Raises UserError, on every process: where the files do not fit on the disk, before an encoder is
    run; where the disk is full for all that; or for a row that cannot be read.
    """
    if is_main_process():
        cache.remove_litter()
    rows = [*sources, [SimpleNamespace(images=[BLANK])]]
    mine = together(lambda: _look_at_own_rows(cache, rows))
    of_all_ranks = gather_objects(mine)
    together(lambda: _say_what_is_needed(cache, of_all_ranks))
    # a file that several processes need is made by the first of them
    made_by_others = _union(found.needed for found in of_all_ranks[: rank()])
    wanted = {name: place for name, place in mine.needed.items() if name not in made_by_others}
    together(lambda: cache.fill(_images_of(cache, rows, wanted), vision_model, image_processor))


def _look_at_own_rows(cache: MapCache, sources: Sequence[Sequence[HasImages]]) -> FoundFiles:
    """Read the files of this process's share of the rows, each once."""
    places = []
    for number, source in enumerate(sources):
        places += [(number, row) for row in range(rank(), len(source), world_size())]
    found = FoundFiles()
    seen = set()
    bar = tqdm(places, desc="cached features read", unit="row", disable=not is_main_process(), leave=False)
    for number, row in bar:
        for image in sources[number][row].images:
            path = cache.path(image)
            if path.name in seen:
                continue
            seen.add(path.name)
            state = cache.look_at(path)
            if state != "whole":
                found.needed[path.name] = (number, row)
            if state == "damaged":
                found.damaged.add(path.name)
    return found


def _say_what_is_needed(cache: MapCache, of_all_ranks: Sequence[FoundFiles]) -> None:
    """On the main process, a line about what was damaged, and one about what will be made and
    whether it fits."""
    if not is_main_process():
        return
    needed = _union(found.needed for found in of_all_ranks)
    damaged = _union(found.damaged for found in of_all_ranks)
    if damaged:
        print_once([f"{cache.folder}: {len(damaged):,} files were not what was written; they are made again"])
    if needed:
        what = f"the features of {len(needed):,} images"
        print_once([check_room(cache.folder, len(needed) * cache.image_bytes, what, ROOM)])


def _union(names: Iterable[Iterable[str]]) -> set[str]:
    return set().union(*names)


def _images_of(
    cache: MapCache, sources: Sequence[Sequence[HasImages]], wanted: dict[str, Place]
) -> Iterator[Tensor]:
    """The images whose files are `wanted`, read again from their rows."""
    places = sorted(set(wanted.values()))
    bar = tqdm(places, desc="features made", unit="row", disable=not is_main_process(), leave=False)
    for number, row in bar:
        for image in sources[number][row].images:
            if cache.path(image).name in wanted:
                yield image
