"""Filling the cache of a run, by all its processes together.

Every file that the run needs is read once; what is missing or damaged is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Protocol

from torch import Tensor
from tqdm import tqdm

from fusion import FusedVisionModel, FusionImageProcessor
from fusion.conversations.batches import BLANK
from fusion.map_cache import ROOM, MapCache
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
class Found:
    """What a process has found of the images in its share of the rows.

    Attributes:
        needed: the file of each image that has to be made, and a row that shows it. damaged: which
            of them did not verify.
    """

    needed: dict[str, Place] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)


def fill_for_a_run(
    cache: MapCache,
    sources: Sequence[Sequence[HasImages]],
    vision_model: FusedVisionModel,
    image_processor: FusionImageProcessor,
) -> None:
    """Have a whole file of every image of `sources`, and of the blank one, when it returns. Every
    process calls it.

    Raises UserError on every process where the files do not fit on the disk, before an encoder is
    run; where the disk is full for all that; or for a row that cannot be read.
    """
    if is_main_process():
        cache.remove_litter()
    rows = [*sources, [SimpleNamespace(images=[BLANK])]]
    mine = together(lambda: _look(cache, rows))
    everybody = gather_objects(mine)
    together(lambda: _say_what_is_needed(cache, everybody))
    before = set().union(
        *(found.needed for found in everybody[: rank()])
    )  # they make those that several have found
    wanted = {name: place for name, place in mine.needed.items() if name not in before}
    together(lambda: cache.fill(_images_of(cache, rows, wanted), vision_model, image_processor))


def _look(cache: MapCache, sources: Sequence[Sequence[HasImages]]) -> Found:
    """Read the files of this process's share of the rows, each once."""
    places = []
    for number, source in enumerate(sources):
        places += [(number, row) for row in range(rank(), len(source), world_size())]
    found, seen = Found(), set()
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


def _say_what_is_needed(cache: MapCache, everybody: Sequence[Found]) -> None:
    """One line of what will be made and whether it fits, and one of what was damaged."""
    needed = set().union(*(found.needed for found in everybody))
    damaged = set().union(*(found.damaged for found in everybody))
    if not is_main_process():
        return
    if damaged:
        print_once([f"{cache.folder}: {len(damaged):,} files were not what was written; they are made again"])
    if needed:
        what = f"the features of {len(needed):,} images"
        print_once([check_room(cache.folder, len(needed) * cache.image_bytes, what, ROOM)])


def _images_of(
    cache: MapCache, sources: Sequence[Sequence[HasImages]], wanted: dict[str, Place]
) -> Iterator[Tensor]:
    """The images whose files are `wanted`, read again from their rows."""
    places = sorted(set(wanted.values()))
    for number, row in tqdm(
        places, desc="features made", unit="row", disable=not is_main_process(), leave=False
    ):
        for image in sources[number][row].images:
            if cache.path(image).name in wanted:
                yield image
