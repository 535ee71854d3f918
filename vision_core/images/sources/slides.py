"""Whole slides as a source: every tile that shows tissue is an image."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from vision_core.errors import UserError
from vision_core.files.regular_files import data_roots, files_fingerprint, state_of_files
from vision_core.images.formats import pictures
from vision_core.images.formats.by_content import SLIDE_ENDINGS, ending_of
from vision_core.images.formats.slides import (
    LEAST_TISSUE,
    Grid,
    grid_of,
    import_openslide,
    is_slide,
    open_slide,
    read_tile,
    tissue_shares,
)
from vision_core.images.pixels import to_pixels
from vision_core.images.source import ImageRecord, ImageSource
from vision_core.images.sources.folder_walk import labels_of_folders, list_images
from vision_core.images.stored import Stored, as_asked
from vision_core.processes.distributed import rank
from vision_core.unreadable import MIN_SIDE, UnreadableImage

ENDINGS = (*SLIDE_ENDINGS, ".tif", ".tiff")
LARGEST_TILE = 8000
BACKGROUND = ("leave_out", "keep")


class TileOptions(NamedTuple):
    """What is cut out of a slide: tiles of `tile` pixels on a side at `level`, with those of the
    background where `keep_background`."""

    tile: int
    level: int
    keep_background: bool


class Tiles(NamedTuple):
    """The tiles of one slide that are images: `places` is `[n, 2]`, their rows and columns in the
    grid, in this order."""

    path: str
    grid: Grid
    places: np.ndarray


class SlideSource(ImageSource):
    """Tiles of slides below `root`, in order of slide, row, column; an id is `slide.svs#level0:x,y`
    with the tile's corner in pixels of its level."""

    def __init__(
        self,
        root: str,
        slides: list[Tiles],
        num_channels: int,
        labels: list[int] | None,
        class_names: list[str] | None,
        roots: tuple[str, ...],
    ) -> None:
        self.root, self.slides, self.num_channels, self.roots = (
            os.path.realpath(root),
            slides,
            num_channels,
            roots,
        )
        self._ends = list(accumulate(len(slide.places) for slide in slides))
        self.class_names = class_names
        if labels is not None:
            self.labels = [
                label for label, slide in zip(labels, slides, strict=True) for _ in range(len(slide.places))
            ]

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def content_fingerprint(self) -> str:
        """Another one when the files are, or the tiles."""
        paths = [os.path.join(self.root, slide.path) for slide in self.slides]
        return files_fingerprint(
            paths, self.labels, self.slides[0].grid.tile, self.slides[0].grid.level, self._ends
        )

    def state_of_files(self) -> tuple[str, str]:
        files = [(slide.path, os.path.join(self.root, slide.path)) for slide in self.slides]
        return state_of_files(files, self.slides[0].grid.tile, self.slides[0].grid.level)

    def file_of(self, index: int) -> str:
        return self._place(index)[0].path

    def id_of(self, index: int) -> str:
        slide, (row, column) = self._place(index)
        tile = slide.grid.tile
        return f"{slide.path}#level{slide.grid.level}:{column * tile},{row * tile}"

    def stored(self, index: int) -> Stored:
        slide, (row, column) = self._place(index)
        picture = read_tile(os.path.join(self.root, slide.path), self.roots, slide.grid, row, column)
        return as_asked(pictures.numbers_of(picture), self.pixel_options)

    def __getitem__(self, index: int) -> ImageRecord:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        pixels = to_pixels(
            self.stored(index), self.pixel_options.image_channels(self.num_channels), self.pixel_options
        )
        return ImageRecord(self.id_of(index), pixels, None if self.labels is None else self.labels[index])

    def _place(self, index: int) -> tuple[Tiles, tuple[int, int]]:
        number = bisect_right(self._ends, index)
        slide = self.slides[number]
        row, column = slide.places[
            index - self._ends[number]
        ]  # from behind, since the end is that of this slide
        return slide, (int(row), int(column))


def open_slides(
    root: str,
    listed: tuple[list[str], list[int] | None] | None,
    num_channels: int,
    tile: str | None,
    level: str | None,
    background: str | None,
    follow_links: bool,
) -> SlideSource:
    """The slides below `root`, or those of a list (paths and labels). Raises UserError."""
    options = _tile_options(tile, level, background)
    if num_channels not in (1, 3):
        raise UserError(
            f"tile={options.tile}: slides have 3 channels, and num_channels={num_channels} is not possible; use 3 or 1"
        )
    import_openslide()
    roots, remarks = data_roots(root, follow_links), []
    if listed is not None:
        paths, labels = listed
        class_names = None
    else:
        paths, remarks = _slides_below(root, follow_links)
        labels, class_names = labels_of_folders(paths)
    slides, total, unreadable = _cut(root, paths, roots, options)
    if unreadable:
        remarks.append(f"{len(unreadable):,} slides that cannot be opened, such as {unreadable[0]}")
    readable = {slide.path for slide in slides}
    if labels is not None:
        labels = [label for label, path in zip(labels, paths, strict=True) if path in readable]
    source = SlideSource(root, slides, num_channels, labels, class_names, roots)
    source.description = "; ".join([_description(source, root, total, options), *remarks])
    return source


def _tile_options(tile: str | None, level: str | None, background: str | None) -> TileOptions:
    if tile is None:
        raise UserError(
            "level= and background= belong to whole slides; add tile=, the side of a tile in pixels, such as tile=256"
        )
    if not (tile.isascii() and tile.isdigit() and MIN_SIDE <= int(tile) <= LARGEST_TILE):
        raise UserError(
            f"tile={tile} is not possible; give the side of a tile in pixels, {MIN_SIDE} to {LARGEST_TILE}"
        )
    if level is not None and not (level.isascii() and level.isdigit()):
        raise UserError(
            f"level={level} is not possible; give the number of a level of the slides, 0 for the largest"
        )
    if background is not None and background not in BACKGROUND:
        raise UserError(f"background={background} is not possible; use {' or '.join(BACKGROUND)}")
    return TileOptions(int(tile), int(level or 0), background == "keep")


def _slides_below(root: str, follow_links: bool) -> tuple[list[str], list[str]]:
    """Paths, and remarks on what was left out."""
    if not os.path.isdir(root):
        raise UserError(f"dataset folder {root} does not exist; give a folder with slides")
    listing = list_images(root, ENDINGS, follow_links)
    no_slides: Counter[str] = Counter()
    paths = []
    for path in listing.paths:
        if path in listing.links_out or is_slide(os.path.join(root, path)):
            paths.append(path)
        else:
            no_slides[ending_of(path) or "without an extension"] += 1
    listing.left_out.update({(ending, "no whole slide"): count for ending, count in no_slides.items()})
    if not paths:
        remarks = "".join(f"; {remark}" for remark in listing.remarks)
        raise UserError(
            f"0 whole slides under {root} (looked for {', '.join(ENDINGS)} at any depth){remarks}"
        )
    return paths, listing.remarks


def _cut(
    root: str, paths: list[str], roots: tuple[str, ...], options: TileOptions
) -> tuple[list[Tiles], int, list[str]]:
    """The tiles of all slides, how many there are with those of the background, and the slides that
    cannot be opened."""
    slides, total, unreadable = [], 0, []
    for path in tqdm(
        paths, "looking for tissue", unit="slides", leave=False, disable=rank() != 0 or len(paths) < 2
    ):
        try:
            with open_slide(os.path.join(root, path), roots) as slide:
                grid = grid_of(slide, path, options.tile, options.level)
                shown = (
                    np.ones((grid.rows, grid.columns))
                    if options.keep_background
                    else tissue_shares(slide, grid)
                )
        except (UnreadableImage, import_openslide().OpenSlideError) as error:
            unreadable.append(f"{path} ({error})")
            continue
        total += shown.size
        slides.append(Tiles(path, grid, np.argwhere(shown >= LEAST_TISSUE).astype(np.int32)))
    if not slides:
        raise UserError(f"none of {len(paths)} slides under {root} can be opened, such as {unreadable[0]}")
    if not any(len(slide.places) for slide in slides):
        raise UserError(
            f"none of {total:,} tiles under {root} shows tissue, which is what has colour; for grey slides add background=keep"
        )
    return slides, total, unreadable


def _description(source: SlideSource, root: str, total: int, options: TileOptions) -> str:
    tiles = f"{len(source):,} tiles of {options.tile} x {options.tile} pixels at level {options.level}"
    classes = f", {len(set(source.labels))} classes" if source.labels else ""
    background = (
        ""
        if options.keep_background
        else f"; {1 - len(source) / total:.1%} of {total:,} tiles are background and left out"
    )
    return f"{tiles} of {len(source.slides):,} slides under {root}{classes}{background}"
