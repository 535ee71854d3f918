"""Open the image source that a text names: `KIND:WHERE?option=value&option=value`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from vision_core.errors import UserError
from vision_core.images.pixel_options import PIXEL_OPTIONS, Scale, take_pixel_options
from vision_core.images.source import ImageSource, ImageStream
from vision_core.printable import printable
from vision_core.source_text import did_you_mean, refuse_unknown, split_options

BESIDE_IMAGES = ("mask", "ignore", "depth", "depth_scale")
IN_COLUMNS = (*BESIDE_IMAGES, "captions", "copy_of")
LINKS_AND_TILES = ("follow_links", "tile", "level", "background")
OF_THE_HUB = ("split", "image", "label", "revision", "streaming", "shuffle_buffer", "follow_links")
# the kinds of image sources and their options
IMAGE_KINDS: dict[str, tuple[str, ...]] = {
    "folder": (*BESIDE_IMAGES, *LINKS_AND_TILES, *PIXEL_OPTIONS),
    "list": ("root", *LINKS_AND_TILES, *PIXEL_OPTIONS),
    "parquet": ("image", "label", *IN_COLUMNS, *PIXEL_OPTIONS),
    "hf": (*OF_THE_HUB, *IN_COLUMNS, *PIXEL_OPTIONS),
    "wds": ("image", "label", *BESIDE_IMAGES, "captions", *PIXEL_OPTIONS),
    "scenes": ("size", "count", "seed", "split"),
}


def open_source(
    text: str, num_channels: int = 3, auto_scale: Scale | None = None
) -> ImageSource | ImageStream:
    """Open the source that `text` names; its images have `num_channels`.

    The text is `folder:PATH` or a plain path, `list:FILE.txt`, `parquet:GLOB`, `hf:NAME[:CONFIG]`,
    `wds:GLOB` or `scenes`. See docs/data.md.

    auto_scale: what `?scale=auto` means. The default is the usual range of this source's own
        images; images that are judged take the scale of those that were learnt from.

    Raises:
        UserError: unknown kind or option, nothing found, a column that is not there.
    """
    kind, where, options = parse_source(text)
    if num_channels < 1 or (kind == "scenes" and num_channels != 3):
        raise UserError(
            f"dataset {text!r}: num_channels={num_channels} is not possible; use 3, or for files 1 and more"
        )
    pixel_options, options = take_pixel_options(text, options)
    if pixel_options.bands is not None and len(pixel_options.bands) != num_channels:
        raise UserError(
            f"dataset {text!r}: {len(pixel_options.bands)} bands are chosen, "
            f"and num_channels is {num_channels}; make them equal"
        )
    source = _open(kind, where, pixel_options.file_channels(num_channels), options)
    source.pixel_options = pixel_options
    source.class_names = source.class_names and [printable(name) for name in source.class_names]
    source.description = printable(source.description)
    if pixel_options.scale is not None and pixel_options.scale.kind == "auto":
        _set_automatic_scale(text, source, auto_scale)
    return source


def _set_automatic_scale(text: str, source: ImageSource | ImageStream, given: Scale | None) -> None:
    """Put values in place of `scale=auto` and say in the description which."""
    from vision_core.images.ranges import automatic_scale

    if given is not None and given.kind == "values":
        scale = given
        origin = "as the images that were learnt from"
    elif isinstance(source, ImageStream):
        raise UserError(
            f"dataset {text!r}: scale=auto needs samples, which a stream has not; give scale=LOW,HIGH"
        )
    else:
        scale, count = automatic_scale(source, text)
        origin = f"from {count:,} images"
    source.pixel_options = replace(source.pixel_options, scale=scale)
    source.description += f", scale=auto: {scale.low:,.6g} to {scale.high:,.6g} {origin}"


def _open(kind: str, where: str, num_channels: int, options: dict[str, str]) -> ImageSource | ImageStream:
    if kind == "scenes":
        from vision_core.images.sources.scenes import open_scenes

        return open_scenes(options)
    if kind == "folder":
        from vision_core.images.sources.folder import open_folder

        return open_folder(Path(where), num_channels, **options)
    if kind == "list":
        from vision_core.images.sources.folder import open_list

        return open_list(Path(where), num_channels, **options)
    if kind == "parquet":
        from vision_core.images.sources.parquet import open_parquet

        return open_parquet(where, num_channels, **options)
    if kind == "wds":
        from vision_core.images.sources.tar import open_shards

        return open_shards(where, num_channels, **options)
    from vision_core.images.sources.hub import open_hub

    return open_hub(where, num_channels, **options)


def parse_source(text: str) -> tuple[str, str, dict[str, str]]:
    """Split a source text into (kind, where, options) and check all but what lies at `where`."""
    name = f"dataset {text!r}"
    head, options = split_options(text, name)
    kind, colon, where = head.partition(":")
    if head == "scenes":
        kind = "scenes"
    elif not colon or (kind not in IMAGE_KINDS and os.path.exists(head)):
        kind = "folder"
        where = head
    if kind not in IMAGE_KINDS:
        known = ", ".join(IMAGE_KINDS)
        nearest = did_you_mean(kind, IMAGE_KINDS)
        raise UserError(f"{name}: unknown kind {kind!r}{nearest}; known: {known}")
    if "?" in where and kind not in ("parquet", "wds", "folder"):
        raise UserError(f"{name}: an option is written name=value, several are joined by &")
    if not where and kind != "scenes":
        raise UserError(f"{name} names no data; write {kind}:WHERE")
    refuse_unknown(options, IMAGE_KINDS[kind], name, kind)
    return kind, where, options
