"""Tensors as pictures, and pictures beside each other with captions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE = 160
GAP = 4
CAPTION_SIZE = 13
LINE_HEIGHT = 16

# dark blue, purple, red, orange, pale yellow
HEAT_COLOURS = [
    [0.02, 0.02, 0.12],
    [0.35, 0.07, 0.43],
    [0.80, 0.25, 0.30],
    [0.98, 0.65, 0.20],
    [0.99, 0.98, 0.80],
]


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], captions: Sequence[str] | None = None
) -> Image.Image:
    """A picture of rows of pictures with thin white gaps, and captions above the columns, in as many
    lines as they need.

    A column is as wide as its widest picture, a row as high as its highest.
    """
    widths = _column_widths(rows)
    heights = [max(picture.height for picture in row) for row in rows]
    font = ImageFont.load_default(CAPTION_SIZE)
    texts = [wrap(text, width - GAP, font) for text, width in zip(captions or [], widths, strict=False)]
    head = LINE_HEIGHT * max(map(len, texts)) + GAP if texts else 0
    lefts = _starts(widths)
    tops = [head + top for top in _starts(heights)]
    sheet = Image.new("RGB", (lefts[-1] + widths[-1], tops[-1] + heights[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for left, lines in zip(lefts, texts, strict=False):
        # captions end at the same height, just above the pictures
        for number, line in enumerate(lines, start=-len(lines)):
            draw.text((left + 2, head - GAP + number * LINE_HEIGHT), line, fill="black", font=font)
    for top, row in zip(tops, rows, strict=True):
        for left, picture in zip(lefts, row, strict=False):
            sheet.paste(picture, (left, top))
    return sheet


def _column_widths(rows: Sequence[Sequence[Image.Image]]) -> list[int]:
    """The width of the widest picture of each column; rows may have different lengths."""
    widths: list[int] = []
    for row in rows:
        for column, picture in enumerate(row):
            if column == len(widths):
                widths.append(0)
            widths[column] = max(widths[column], picture.width)
    return widths


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where pictures of these lengths begin, with gaps between them."""
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length + GAP)
    return starts


def wrap(text: str, width: float, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a text into lines of at most `width` pixels: behind spaces, slashes, colons, hyphens and
    underscores where that is possible, and otherwise anywhere."""
    lines = [""]
    for piece in re.findall(r"[^\s/:_-]*[\s/:_-]|[^\s/:_-]+", text):
        fits_in_a_line = font.getlength(piece.rstrip()) <= width
        for part in [piece] if fits_in_a_line else piece:
            if lines[-1] and font.getlength((lines[-1] + part).rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return [line.strip() for line in lines]


def colours(image: Tensor) -> Image.Image:
    """A picture of `[3, H, W]` in 0..1, with a pixel for each value."""
    values = (image.clamp(0, 1) * 255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def to_picture(image: Tensor) -> Image.Image:
    """A picture of `[3, H, W]` in 0..1, whose shorter side is a tile's."""
    picture = colours(image)
    scale = TILE / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)


def heat(values: Tensor, span: tuple[float, float] | None = None) -> Image.Image:
    """A picture of values `[h, w]`, with a pixel for each, from dark blue over red to pale yellow.

    span: the values of the two ends; default: the least and the greatest.
    """
    if span is None:
        low = values.min()
        high = values.max()
    else:
        low, high = torch.tensor(span, dtype=values.dtype)
    position = ((values - low) / (high - low).clamp_min(1e-12)) * (len(HEAT_COLOURS) - 1)
    left = position.long().clamp_max(len(HEAT_COLOURS) - 2)
    table = torch.tensor(HEAT_COLOURS)
    mixed = torch.lerp(table[left], table[left + 1], (position - left)[..., None])
    return colours(mixed.permute(2, 0, 1))


def display(images: Tensor) -> Tensor:
    """Images of any channels `[n, C, H, W]` as `[n, 3, H, W]` in 0..1: the first three channels, or
    the first one as grey.

    Values outside 0..1, which multi-band data has, are stretched from each channel's least to its
    greatest value.
    """
    if images.shape[1] >= 3:
        channels = images[:, :3]
    else:
        channels = images[:, :1].expand(-1, 3, -1, -1)
    if channels.min() >= 0 and channels.max() <= 1:
        return channels
    low = channels.amin((0, 2, 3), keepdim=True)
    high = channels.amax((0, 2, 3), keepdim=True)
    return (channels - low) / (high - low).clamp_min(1e-12)
