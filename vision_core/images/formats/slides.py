"""Whole slides (openslide): levels, which tiles show tissue, and the pixels of a tile."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from PIL import Image

from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import open_regular_file
from vision_core.images.formats.optional_packages import OPENSLIDE
from vision_core.unreadable import UnreadableImage

# a pixel is tissue where its channels differ by this much of 255: glass, ink of scanners and their
# grey frames stay below, stains reach 30 and more
LEAST_CHROMA = 15
# and a tile shows tissue where this share of its pixels does
LEAST_TISSUE = 0.1
# pixels on a side that a tile has, at least, where it is looked at
SIDE_OF_A_LOOK = 16
# pixels on a side of what is looked at in one piece: 16 million
SIDE_OF_A_BLOCK = 4096
# open at a time in a process; each keeps 32 MiB of decoded tiles
OPEN_SLIDES = 8

# levels are padded to complete tiles, and may differ in shape by that
MOST_SHAPE_RATIO = 2
# those whose slides are one TIFF; a tile's place takes four bytes and more in it
TIFF_VENDORS = ("aperio", "generic-tiff", "leica", "philips", "trestle", "ventana")
BYTES_OF_A_PLACE = 4


class Grid(NamedTuple):
    """The complete tiles of a slide: `rows` x `columns` of `tile` x `tile` pixels at `level`, which
    is `downsample` times smaller than level 0."""

    rows: int
    columns: int
    tile: int
    level: int
    downsample: float

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """The corner of a tile, x and y at level 0."""
        return round(column * self.tile * self.downsample), round(row * self.tile * self.downsample)


def import_openslide():
    """The package openslide. Raises UserError where it is missing."""
    try:
        import openslide
    except (ImportError, OSError):  # the second where the library itself, of openslide-bin, is missing
        raise UserError(OPENSLIDE.cure) from None
    return openslide


def is_slide(path: str) -> bool:
    """Whether openslide knows the file's format."""
    try:
        return import_openslide().OpenSlide.detect_format(path) is not None
    except OSError:
        return False


def grid_of(slide, name: str, tile: int, level: int) -> Grid:
    """The tiles of an open slide, without the rest at the right and at the bottom. Raises UserError
    where there is no level, or no tile."""
    sizes = [f"{width} x {height}" for width, height in slide.level_dimensions]
    if level >= slide.level_count:
        raise UserError(
            f"{name} has no level={level}; its levels are {_numbered(sizes)} pixels (width x height)"
        )
    width, height = slide.level_dimensions[level]
    if tile > min(width, height):
        raise UserError(
            f"{name} is {sizes[level]} pixels (width x height) at level={level}, less than tile={tile}; "
            "give a smaller tile"
        )
    return Grid(height // tile, width // tile, tile, level, slide.level_downsamples[level])


def _numbered(sizes: list[str]) -> str:
    return ", ".join(f"{number}: {size}" for number, size in enumerate(sizes))


def tissue_shares(slide, grid: Grid) -> np.ndarray:
    """The share of tissue among the pixels of every tile, `[rows, columns]` float, seen on the
    smallest level on which a tile has 16 pixels on a side."""
    level = slide.get_best_level_for_downsample(grid.downsample * grid.tile / SIDE_OF_A_LOOK)
    side = grid.tile * grid.downsample / slide.level_downsamples[level]
    tiles = max(1, int(SIDE_OF_A_BLOCK / side))
    shares = np.zeros((grid.rows, grid.columns))
    for row in range(0, grid.rows, tiles):
        for column in range(0, grid.columns, tiles):
            block = shares[row : row + tiles, column : column + tiles]
            size = [math.ceil(count * side) for count in reversed(block.shape)]
            pixels = _rgb(slide.read_region(grid.corner(row, column), level, size))
            block[:] = _shares(_is_tissue(np.asarray(pixels)), *block.shape)
    return shares


def _is_tissue(pixels: np.ndarray) -> np.ndarray:
    return (pixels.max(axis=2) - pixels.min(axis=2)) >= LEAST_CHROMA


def _shares(is_tissue: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The mean of `[H, W]` bool in every cell of a grid, `[rows, columns]`."""
    height, width = is_tissue.shape
    tops = np.arange(rows) * height // rows
    lefts = np.arange(columns) * width // columns
    sums = np.add.reduceat(is_tissue.astype(np.int64), tops, axis=0)
    sums = np.add.reduceat(sums, lefts, axis=1)
    return sums / np.outer(np.diff([*tops, height]), np.diff([*lefts, width]))


def read_tile(path: str, roots: tuple[str, ...], grid: Grid, row: int, column: int) -> Image.Image:
    """The RGB picture of one tile, on white where the slide has nothing. Raises UnreadableImage."""
    slide = _slide_of_this_process(path, roots)
    try:
        return _rgb(slide.read_region(grid.corner(row, column), grid.level, (grid.tile, grid.tile)))
    except import_openslide().OpenSlideError:
        _slides.pop((os.getpid(), path), None)  # it answers nothing any more
        raise UnreadableImage("corrupt") from None


def open_slide(path: str, roots: tuple[str, ...]):
    """An open slide, which the caller closes. Raises UnreadableImage."""
    openslide = import_openslide()
    open_regular_file(path, *roots).close()
    try:
        slide = openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise UnreadableImage(f"unsupported_slide {first_line(error)}") from None
    if not (_levels_have_one_shape(slide) and _has_room_for_its_tiles(slide, path)):
        slide.close()
        raise UnreadableImage("corrupt levels")
    return slide


def _levels_have_one_shape(slide) -> bool:
    """Whether the sizes of the levels are those of one picture, made smaller. With a header that lies
    about one of them, looking for tissue would take hours."""
    width, height = slide.level_dimensions[0]
    for level_width, level_height in slide.level_dimensions:
        ratio = (width * level_height) / (height * level_width)
        if not 1 / MOST_SHAPE_RATIO <= ratio <= MOST_SHAPE_RATIO:
            return False
    return True


def _has_room_for_its_tiles(slide, path: str) -> bool:
    """Whether a TIFF is large enough to say where each tile of its levels lies."""
    facts = slide.properties
    if facts.get("openslide.vendor") not in TIFF_VENDORS:
        return True
    most_tiles = os.path.getsize(path) / BYTES_OF_A_PLACE
    for number, (width, height) in enumerate(slide.level_dimensions):
        tile_width = int(facts.get(f"openslide.level[{number}].tile-width", 0))
        tile_height = int(facts.get(f"openslide.level[{number}].tile-height", 0))
        if not tile_width or not tile_height:
            continue
        if math.ceil(width / tile_width) * math.ceil(height / tile_height) > most_tiles:
            return False
    return True


_slides: OrderedDict = OrderedDict()


def _slide_of_this_process(path: str, roots: tuple[str, ...]):
    """An open slide that belongs to this process alone: forked data workers must not share the place
    at which a file is read."""
    key = (os.getpid(), path)
    if key not in _slides:
        _slides[key] = open_slide(path, roots)
        if len(_slides) > OPEN_SLIDES:
            _slides.popitem(last=False)
    _slides.move_to_end(key)
    return _slides[key]


def _rgb(region: Image.Image) -> Image.Image:
    """A region on white, as RGB."""
    white = Image.new("RGBA", region.size, "white")
    return Image.alpha_composite(white, region).convert("RGB")
