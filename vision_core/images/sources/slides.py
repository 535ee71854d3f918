"""Whole slides as a source of images: every tile that shows tissue is an image."""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate, chain, compress, repeat
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
from vision_core.images.sources.folder_walk import NO_EXTENSION, labels_of_folders, list_images
from vision_core.images.stored import Stored, as_asked
from vision_core.processes.distributed import rank
from vision_core.unreadable import MIN_SIDE, UnreadableImage

ENDINGS = (*SLIDE_ENDINGS, ".tif", ".tiff")
LARGEST_TILE = 8000
BACKGROUND = ("leave_out", "keep")


class TileOptions(NamedTuple):
    """Which tiles are cut out of a slide: their side in pixels, their level, and whether tiles that
    show background only are kept."""

    tile: int
    level: int
    keep_background: bool


class Tiles(NamedTuple):
    """The tiles of one slide that are images. `places` is `[N, 2]`: the row and the column of each
    tile in the grid."""

    path: str
    grid: Grid
    places: np.ndarray


class SlideSource(ImageSource):
    """Tiles of slides below `root`, in order of slide, row, column. An id is `slide.svs#level0:x,y`
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
        self.root = os.path.realpath(root)
        self.slides = slides
        self.num_channels = num_channels
        self.roots = roots
        counts = [len(slide.places) for slide in slides]
        self._ends = list(accumulate(counts))
        self.class_names = class_names
        if labels is not None:
            self.labels = list(chain.from_iterable(map(repeat, labels, counts)))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def content_fingerprint(self) -> str:
        """A text that changes when the files or the tiles change."""
        paths = [os.path.join(self.root, slide.path) for slide in self.slides]
        grid = self.slides[0].grid
        return files_fingerprint(paths, self.labels, grid.tile, grid.level, self._ends)

    def state_of_files(self) -> tuple[str, str]:
        files = [(slide.path, os.path.join(self.root, slide.path)) for slide in self.slides]
        return state_of_files(files, self.slides[0].grid.tile, self.slides[0].grid.level)

    def file_of(self, index: int) -> str:
        slide, _, _ = self._find_tile(index)
        return slide.path

    def id_of(self, index: int) -> str:
        slide, row, column = self._find_tile(index)
        tile = slide.grid.tile
        return f"{slide.path}#level{slide.grid.level}:{column * tile},{row * tile}"

    def stored(self, index: int) -> Stored:
        slide, row, column = self._find_tile(index)
        picture = read_tile(os.path.join(self.root, slide.path), self.roots, slide.grid, row, column)
        return as_asked(pictures.numbers_of(picture), self.pixel_options)

    def __getitem__(self, index: int) -> ImageRecord:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        num_channels = self.pixel_options.image_channels(self.num_channels)
        pixels = to_pixels(self.stored(index), num_channels, self.pixel_options)
        return ImageRecord(self.id_of(index), pixels, self.label_of(index))

    def _find_tile(self, index: int) -> tuple[Tiles, int, int]:
        """The slide, row and column of a tile."""
        number = bisect_right(self._ends, index)
        slide = self.slides[number]
        row, column = slide.places[index - self._ends[number]]  # counted back from the slide's end
        return slide, int(row), int(column)


def open_slides(
    root: str,
    num_channels: int,
    options: TileOptions,
    follow_links: bool,
    listed: tuple[list[str], list[int] | None] | None = None,
) -> SlideSource:
    """Open the slides below `root`, or those that are listed (paths and labels), as tiles. Raises
    UserError."""
    if num_channels not in (1, 3):
        raise UserError(
            f"tile={options.tile}: slides have 3 channels, and num_channels={num_channels} is not possible; "
            "use 3 or 1"
        )
    import_openslide()
    roots = data_roots(root, follow_links)
    if listed is not None:
        paths, labels = listed
        class_names = None
        remarks = []
    else:
        paths, remarks = _list_slides(root, follow_links)
        labels, class_names = labels_of_folders(paths)
    found = _find_tissue(root, paths, roots, options)
    if found.unreadable:
        remarks.append(
            f"{len(found.unreadable):,} slides that cannot be opened, such as {found.unreadable[0]}"
        )
    if labels is not None:
        readable = {slide.path for slide in found.slides}
        labels = list(compress(labels, [path in readable for path in paths]))
    source = SlideSource(root, found.slides, num_channels, labels, class_names, roots)
    source.description = "; ".join([_description(source, root, found.total, options), *remarks])
    return source


def tile_options(tile: str | None, level: str | None, background: str | None) -> TileOptions:
    """Read the options of a source text. Raises UserError for a value that is not possible."""
    if tile is None:
        raise UserError(
            "level= and background= belong to whole slides; "
            "add tile=, the side of a tile in pixels, such as tile=256"
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


def _list_slides(root: str, follow_links: bool) -> tuple[list[str], list[str]]:
    """The paths of the slides below a folder, and remarks on what was left out."""
    if not os.path.isdir(root):
        raise UserError(f"dataset folder {root} does not exist; give a folder with slides")
    listing = list_images(root, ENDINGS, follow_links)
    paths = []
    for path in listing.paths:
        if path in listing.links_out or is_slide(os.path.join(root, path)):
            paths.append(path)
        else:
            listing.left_out[ending_of(path) or NO_EXTENSION, "no whole slide"] += 1
    if not paths:
        remarks = "".join(f"; {remark}" for remark in listing.remarks)
        raise UserError(
            f"0 whole slides under {root} (looked for {', '.join(ENDINGS)} at any depth){remarks}"
        )
    return paths, listing.remarks


class FoundTiles(NamedTuple):
    """The tiles of all slides.

    total: how many tiles the slides have, those of the background included.
    unreadable: the slides that cannot be opened, each with the reason.
    """

    slides: list[Tiles]
    total: int
    unreadable: list[str]


def _find_tissue(root: str, paths: list[str], roots: tuple[str, ...], options: TileOptions) -> FoundTiles:
    """Find the tiles of all slides that show tissue, or all tiles where the background is kept."""
    slides = []
    total = 0
    unreadable = []
    is_quiet = rank() != 0 or len(paths) < 2
    for path in tqdm(paths, "looking for tissue", unit="slides", leave=False, disable=is_quiet):
        try:
            with open_slide(os.path.join(root, path), roots) as slide:
                grid = grid_of(slide, path, options.tile, options.level)
                if options.keep_background:
                    shares = np.ones((grid.rows, grid.columns))
                else:
                    shares = tissue_shares(slide, grid)
        except (UnreadableImage, import_openslide().OpenSlideError) as error:
            unreadable.append(f"{path} ({error})")
            continue
        total += shares.size
        places = np.argwhere(shares >= LEAST_TISSUE).astype(np.int32)
        slides.append(Tiles(path, grid, places))
    if not slides:
        raise UserError(f"none of {len(paths)} slides under {root} can be opened, such as {unreadable[0]}")
    if not any(len(slide.places) for slide in slides):
        raise UserError(
            f"none of {total:,} tiles under {root} shows tissue, which is what has colour; "
            "for grey slides add background=keep"
        )
    return FoundTiles(slides, total, unreadable)


def _description(source: SlideSource, root: str, total: int, options: TileOptions) -> str:
    text = f"{len(source):,} tiles of {options.tile} x {options.tile} pixels at level {options.level}"
    text += f" of {len(source.slides):,} slides under {root}"
    if source.labels:
        text += f", {len(set(source.labels))} classes"
    if not options.keep_background:
        share = 1 - len(source) / total
        text += f"; {share:.1%} of {total:,} tiles are background and left out"
    return text
