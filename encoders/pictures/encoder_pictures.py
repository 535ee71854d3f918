"""Pictures of an encoder's features: attention, principal components of the patches, likeness to one
patch, several encoders side by side."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from encoders.attention import MASS_SHARE, attention_maps, keep_mass, last_attention
from encoders.base import Encoder
from encoders.modes import evaluating
from encoders.pictures.sheets import colours, contact_sheet, heat, to_picture
from vision_core.errors import UserError

PictureKind = Literal["pca", "attention", "cosine"]
# radius and colour of the discs that make the mark of a place, the largest first
MARK = ((8, "black"), (7, "red"), (6, "red"), (5, "white"))


def patch_pca(patch_maps: Tensor) -> Tensor:
    """The first three principal components, `[n, 3, h, w]` in 0..1, of the patches of all images
    jointly, for maps `[n, C, h, w]`.

    Signs are fixed (the largest entry of each component is positive), each component is stretched
    from its 1st to 99th percentile.
    """
    tokens = patch_maps.float().cpu().flatten(2).transpose(1, 2)
    scores = principal_scores(tokens.flatten(0, 1), 3)
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99]), dim=0)
    scores = ((scores - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return scores.unflatten(0, tokens.shape[:2]).transpose(1, 2).unflatten(-1, patch_maps.shape[-2:])


def principal_scores(rows: Tensor, count: int) -> Tensor:
    """The coordinates `[n, count]` of centred rows `[n, D]` along their first principal directions;
    the largest entry of each direction is positive."""
    centred = rows - rows.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    scores = centred @ (directions * largest.sign()).T
    # where there are fewer rows than directions, the rest is 0
    return F.pad(scores, (0, count - scores.shape[1]))


def cosine_maps(patch_maps: Tensor, patch: tuple[int, int]) -> Tensor:
    """The cosine similarity `[n, h, w]` of every patch of maps `[n, C, h, w]` with the patch (row,
    column) of the same image. Raises UserError for a patch outside the grid."""
    row, column = patch
    height, width = patch_maps.shape[-2:]
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(
            f"patch {row} {column} is outside the grid; rows are 0 to {height - 1}, columns 0 to {width - 1}"
        )
    directions = F.normalize(patch_maps.float(), dim=1)
    return (directions * directions[:, :, row, column, None, None]).sum(1).cpu()


def attention_picture(encoder: Encoder, images: Tensor, pixels: Tensor) -> Image.Image:
    """A row for each image of `[n, 3, H, W]` in 0..1: the image, the last layer's attention of each
    head and their mean, and the patches that hold most of the mean."""
    attention = last_attention(encoder, pixels)
    captions = ["image"]
    captions += [f"head {number}" for number in range(attention.maps.shape[1])]
    captions += [f"mean of heads ({attention.query})", f"{100 * MASS_SHARE:.0f} % of the mean"]
    rows = []
    for image, heads in zip(images, attention.maps, strict=True):
        picture = to_picture(image)
        mean = heads.mean(0)
        tiles = [enlarge(heat(each), picture) for each in (*heads, mean)]
        rows.append([picture, *tiles, darken_outside(picture, keep_mass(mean))])
    return contact_sheet(rows, captions)


def pca_picture(encoder: Encoder, images: Tensor, pixels: Tensor) -> Image.Image:
    """Images `[n, 3, H, W]` in 0..1 above the joint PCA of their patch tokens, its three components
    as red, green and blue."""
    pictures = list(map(to_picture, images))
    tiles = map(colours, patch_pca(_patch_maps(encoder, pixels)))
    return contact_sheet([pictures, _enlarge_all(tiles, pictures)])


def cosine_picture(encoder: Encoder, images: Tensor, pixels: Tensor, patch: tuple[int, int]) -> Image.Image:
    """Images `[n, 3, H, W]` in 0..1 with the patch (row, column) framed, above the cosine similarity
    of every patch to it."""
    maps = cosine_maps(_patch_maps(encoder, pixels), patch)
    pictures = list(map(to_picture, images))
    framed = [frame_patch(picture, patch, maps.shape[-2:]) for picture in pictures]
    return contact_sheet([framed, _enlarge_all(map(heat, maps), pictures)])


def side_by_side(
    encoders: Mapping[str, Encoder],
    images: Sequence[Tensor],
    kind: PictureKind = "pca",
    place: tuple[float, float] = (0.5, 0.5),
) -> Image.Image:
    """A row for each image (uint8 `[3, H, W]`, any sizes), a column for each encoder under its name.

    kind: `pca` jointly over the images, `attention` the mean over the heads, or `cosine` to the
    patch at `place`, (down, across) as shares of the image.

    Every encoder sees the complete images at its own size, squashed, so that all maps cover the
    same. A model without attention has an empty tile.
    """
    pictures = [to_picture(image.float() / 255) for image in images]
    rows = [[mark_place(picture, place) if kind == "cosine" else picture] for picture in pictures]
    for encoder in encoders.values():
        pixels = encoder.transform.resized(encoder.transform.size, "squash")(images).to(encoder.device)
        tiles = _tiles(encoder, pixels, kind, place)
        for row, tile in zip(rows, _enlarge_all(tiles, pictures), strict=True):
            row.append(tile)
    return contact_sheet(rows, ["image", *encoders])


def _tiles(
    encoder: Encoder, pixels: Tensor, kind: PictureKind, place: tuple[float, float]
) -> list[Image.Image]:
    """A tile for each image, with a pixel for each patch."""
    encoder.grid(*pixels.shape[-2:])
    if kind == "attention":
        try:
            return [heat(each.mean(0)) for each in attention_maps(encoder, pixels)]
        except UserError:  # the size is right, so there is no attention: an empty tile says so
            return [Image.new("RGB", (1, 1), "white")] * len(pixels)
    maps = _patch_maps(encoder, pixels)
    if kind == "pca":
        return list(map(colours, patch_pca(maps)))
    return list(map(heat, cosine_maps(maps, _patch_at(place, maps.shape[-2:]))))


def _patch_maps(encoder: Encoder, pixels: Tensor) -> Tensor:
    with evaluating(encoder):
        return encoder(pixels).patch_map


def _patch_at(place: tuple[float, float], grid: Sequence[int]) -> tuple[int, int]:
    """The (row, column) of the patch that holds a place, (down, across) as shares of the image."""
    row = min(int(place[0] * grid[0]), grid[0] - 1)
    column = min(int(place[1] * grid[1]), grid[1] - 1)
    return row, column


def enlarge(tile: Image.Image, like: Image.Image) -> Image.Image:
    """A tile at the size of another picture, its pixels as squares."""
    return tile.resize(like.size, Image.Resampling.NEAREST)


def _enlarge_all(tiles: Iterable[Image.Image], pictures: Iterable[Image.Image]) -> list[Image.Image]:
    return list(map(enlarge, tiles, pictures))


def darken_outside(image: Image.Image, patches: Tensor) -> Image.Image:
    """The image as it is where `patches` `[h, w]` are true, and dark elsewhere."""
    mask = enlarge(Image.fromarray((patches * 255).byte().numpy()), image)
    dark = Image.eval(image, lambda value: value // 5)
    return Image.composite(image, dark, mask)


def frame_patch(image: Image.Image, patch: tuple[int, int], grid: Sequence[int]) -> Image.Image:
    """The image with a red frame around the patch (row, column)."""
    framed = image.copy()
    row, column = patch
    height = image.height / grid[0]
    width = image.width / grid[1]
    box = (column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1)
    ImageDraw.Draw(framed).rectangle(box, outline="red", width=2)
    return framed


def mark_place(image: Image.Image, place: tuple[float, float]) -> Image.Image:
    """The image with a ring around a place, (down, across) as shares of the image."""
    marked = image.copy()
    down = place[0] * image.height
    across = place[1] * image.width
    for radius, colour in MARK:
        box = (across - radius, down - radius, across + radius, down + radius)
        ImageDraw.Draw(marked).ellipse(box, outline=colour)
    return marked
