"""Pictures of what encoders see: attention, principal components of the patches, likeness to one
patch, several encoders side by side."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from encoders.attention import attention_maps, keep_mass, last_attention
from encoders.base import Encoder
from encoders.modes import evaluating
from encoders.pictures.sheets import colours, contact_sheet, heat, to_picture
from vision_core.errors import UserError

Kind = Literal["pca", "attention", "cosine"]
SHARE = 0.6


def patch_pca(patch_maps: Tensor) -> Tensor:
    """The first three principal components of the patches of all images jointly, `[n, 3, h, w]` in
    0..1, of maps `[n, C, h, w]`.

    Signs are fixed (the largest entry of each component is positive), each component is stretched
    from its 1st to 99th percentile.
    """
    tokens = patch_maps.float().cpu().flatten(2).transpose(1, 2)
    scores = principal_scores(tokens.flatten(0, 1), 3)
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99]), dim=0)
    scores = ((scores - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return scores.unflatten(0, tokens.shape[:2]).transpose(1, 2).unflatten(-1, patch_maps.shape[-2:])


def principal_scores(rows: Tensor, count: int) -> Tensor:
    """Centred `[n, D]` along its first `count` principal directions, `[n, count]`; each direction's
    largest entry is positive."""
    centred = rows - rows.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    scores = centred @ (directions * largest.sign()).T
    return torch.nn.functional.pad(
        scores, (0, count - scores.shape[1])
    )  # fewer rows than directions: the rest is 0


def cosine_maps(patch_maps: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cosine similarity `[n, h, w]` of every patch of `[n, C, h, w]` with the patch (row, column)
    of the same image. Raises UserError outside the grid."""
    (row, column), (rows, columns) = patch, patch_maps.shape[-2:]
    if not (0 <= row < rows and 0 <= column < columns):
        raise UserError(
            f"patch {row} {column} is outside the grid; rows are 0 to {rows - 1}, columns 0 to {columns - 1}"
        )
    directions = F.normalize(patch_maps.float(), dim=1)
    return (directions * directions[:, :, row, column, None, None]).sum(1).cpu()


def attention_picture(encoder: Encoder, images: Tensor, pixels: Tensor) -> Image.Image:
    """A row per image `[3, H, W]` in 0..1: the image, the last layer's attention of each head and
    their mean, and the patches that hold 60 % of the mean."""
    attention = last_attention(encoder, pixels)
    maps, rows = attention.maps, []
    for image, heads in zip(images, maps, strict=True):
        shown = to_picture(image)
        tiles = [_enlarged(heat(each), shown) for each in (*heads, heads.mean(0))]
        rows.append([shown, *tiles, _kept(shown, keep_mass(heads.mean(0), SHARE))])
    captions = [
        "image",
        *(f"head {number}" for number in range(maps.shape[1])),
        f"mean of heads ({attention.query})",
        "60 % of the mean",
    ]
    return contact_sheet(rows, captions)


def pca_picture(encoder: Encoder, images: Tensor, pixels: Tensor) -> Image.Image:
    """Images `[n, 3, H, W]` in 0..1 above the joint PCA of their patch tokens, its three components
    as red, green and blue."""
    shown = [to_picture(image) for image in images]
    components = [_enlarged(colours(each), shown[0]) for each in patch_pca(_patch_maps(encoder, pixels))]
    return contact_sheet([shown, components])


def cosine_picture(encoder: Encoder, images: Tensor, pixels: Tensor, patch: tuple[int, int]) -> Image.Image:
    """Images `[n, 3, H, W]` in 0..1 with the patch (row, column) framed, above every patch's cosine
    similarity to it."""
    maps = cosine_maps(_patch_maps(encoder, pixels), patch)
    shown = [to_picture(image) for image in images]
    framed = [_framed(tile, patch, maps.shape[-2:]) for tile in shown]
    return contact_sheet(
        [framed, [_enlarged(heat(each), tile) for each, tile in zip(maps, shown, strict=True)]]
    )


def side_by_side(
    encoders: Mapping[str, Encoder],
    images: Sequence[Tensor],
    kind: Kind = "pca",
    place: tuple[float, float] = (0.5, 0.5),
) -> Image.Image:
    """A row per image (uint8 `[3, H, W]`, any sizes), a column per encoder under its name.

    kind: `pca` jointly over the images, `attention` the mean over the heads, or `cosine` to the
    patch at `place`, (down, across) as shares of the image. Every encoder sees the whole images at
    its own size, squashed, so that all maps cover the same. A model without attention has an empty
    tile.
    """
    shown = [to_picture(image.float() / 255) for image in images]
    rows = [[_pointed(tile, place) if kind == "cosine" else tile] for tile in shown]
    for encoder in encoders.values():
        pixels = encoder.transform.resized(encoder.transform.size, "squash")(images).to(encoder.device)
        for row, tile, drawn in zip(rows, shown, _tiles(encoder, pixels, kind, place), strict=True):
            row.append(_enlarged(drawn, tile))
    return contact_sheet(rows, ["image", *encoders])


def _tiles(encoder: Encoder, pixels: Tensor, kind: Kind, place: tuple[float, float]) -> list[Image.Image]:
    encoder.grid(*pixels.shape[-2:])
    if kind == "attention":
        try:
            return [heat(each.mean(0)) for each in attention_maps(encoder, pixels)]
        except UserError:  # the size is right, so there is no attention: an empty tile says so
            return [Image.new("RGB", (1, 1), "white")] * len(pixels)
    maps = _patch_maps(encoder, pixels)
    if kind == "pca":
        return [colours(each) for each in patch_pca(maps)]
    return [heat(each) for each in cosine_maps(maps, _patch_at(place, maps.shape[-2:]))]


def _patch_maps(encoder: Encoder, pixels: Tensor) -> Tensor:
    with evaluating(encoder):
        return encoder(pixels).patch_map


def _patch_at(place: tuple[float, float], grid: Sequence[int]) -> tuple[int, int]:
    return tuple(min(int(share * side), side - 1) for share, side in zip(place, grid, strict=True))


def _enlarged(tile: Image.Image, like: Image.Image) -> Image.Image:
    return tile.resize(like.size, Image.Resampling.NEAREST)


def _kept(image: Image.Image, patches: Tensor) -> Image.Image:
    """The image where `patches [h, w]` are kept, dark elsewhere."""
    mask = _enlarged(Image.fromarray((patches * 255).byte().numpy()), image)
    return Image.composite(image, Image.eval(image, lambda value: value // 5), mask)


def _framed(image: Image.Image, patch: tuple[int, int], grid: Sequence[int]) -> Image.Image:
    framed, (height, width) = image.copy(), (image.height / grid[0], image.width / grid[1])
    (row, column) = patch
    box = (column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1)
    ImageDraw.Draw(framed).rectangle(box, outline="red", width=2)
    return framed


def _pointed(image: Image.Image, place: tuple[float, float]) -> Image.Image:
    """The image with a ring around the place."""
    pointed, (down, across) = image.copy(), (place[0] * image.height, place[1] * image.width)
    for radius, colour in ((8, "black"), (7, "red"), (6, "red"), (5, "white")):
        ImageDraw.Draw(pointed).ellipse(
            (across - radius, down - radius, across + radius, down + radius), outline=colour
        )
    return pointed
