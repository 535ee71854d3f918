"""Drawing: tensors as pictures, pictures beside each other with captions."""

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
    """Pictures in rows with thin white gaps, captions above the columns, in as many lines as they
    need.

    A column is as wide as its widest picture, a row as high.
    """
    columns = max(len(row) for row in rows)
    widths = [max(row[column].width for row in rows if column < len(row)) for column in range(columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    font = ImageFont.load_default(CAPTION_SIZE)
    texts = [wrap(text, width - GAP, font) for text, width in zip(captions or [], widths, strict=False)]
    head = LINE_HEIGHT * max(len(lines) for lines in texts) + GAP if texts else 0
    lefts = [sum(widths[:column]) + column * GAP for column in range(columns)]
    tops = [head + sum(heights[:line]) + line * GAP for line in range(len(rows))]
    sheet = Image.new("RGB", (lefts[-1] + widths[-1], tops[-1] + heights[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for left, lines in zip(lefts, texts, strict=False):
        for number, line in enumerate(lines, start=-len(lines)):  # the last line stands on the picture
            draw.text((left + 2, head - GAP + number * LINE_HEIGHT), line, fill="black", font=font)
    for top, row in zip(tops, rows, strict=True):
        for left, picture in zip(lefts, row, strict=False):
            sheet.paste(picture, (left, top))
    return sheet


def wrap(text: str, width: float, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines that are not wider than `width` pixels, broken behind spaces, slashes, colons, hyphens
    and underscores, else anywhere."""
    lines = [""]
    for piece in re.findall(r"[^\s/:_-]*[\s/:_-]|[^\s/:_-]+", text):
        for part in [piece] if font.getlength(piece.rstrip()) <= width else piece:
            if lines[-1] and font.getlength((lines[-1] + part).rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return [line.strip() for line in lines]


def colours(image: Tensor) -> Image.Image:
    """`[3, H, W]` in 0..1, a pixel each."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def to_picture(image: Tensor) -> Image.Image:
    """`[3, H, W]` in 0..1 as a picture whose shorter side is a tile's."""
    picture = colours(image)
    scale = TILE / min(picture.size)
    return picture.resize(
        (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
    )


def heat(values: Tensor, span: tuple[float, float] | None = None) -> Image.Image:
    """`[rows, columns]`, a pixel each, from dark blue over red to pale yellow; span: the values of
    the two ends, default the least and the greatest."""
    low, high = (
        (values.min(), values.max())
        if span is None
        else (torch.tensor(end, dtype=values.dtype) for end in span)
    )
    position = ((values - low) / (high - low).clamp_min(1e-12)) * (len(HEAT_COLOURS) - 1)
    left = position.long().clamp_max(len(HEAT_COLOURS) - 2)
    table = torch.tensor(HEAT_COLOURS)
    return colours(torch.lerp(table[left], table[left + 1], (position - left)[..., None]).permute(2, 0, 1))


def display(images: Tensor) -> Tensor:
    """Images of any channels `[n, C, H, W]` as `[n, 3, H, W]` in 0..1: the first three channels, or
    the first one as grey.

    Values outside 0..1, which multi-band data has, are stretched from each channel's least to its
    greatest value.
    """
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    if shown.min() >= 0 and shown.max() <= 1:
        return shown
    low, high = shown.amin((0, 2, 3), keepdim=True), shown.amax((0, 2, 3), keepdim=True)
    return (shown - low) / (high - low).clamp_min(1e-12)
