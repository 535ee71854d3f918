"""Pictures of what an encoder sees: CLS attention, PCA of patch tokens, curves."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from encoders.evaluation.features import evaluating, num_prefix_tokens
from vision_core.errors import UserError

TILE = 160
GAP = 4
CAPTION_SIZE = 13
CAPTION_HEIGHT = 20

# dark blue, purple, red, orange, pale yellow
HEAT_COLOURS = [[0.02, 0.02, 0.12], [0.35, 0.07, 0.43], [0.80, 0.25, 0.30], [0.98, 0.65, 0.20], [0.99, 0.98, 0.80]]


def attention_maps(model: nn.Module, pixels: Tensor) -> Tensor:
    """Attention of CLS to the patches in the last layer, `[n, heads, rows, columns]` on the CPU, for normalised `[n, C, H, W]`.

    softmax(q_cls k^T / sqrt(head width)) over all tokens (Vaswani et al. 2017, eq. 1), of which the patches' part is returned: a map
    sums to 1 less what CLS and registers attend to. Computed from the layer's own projections, whatever attention implementation the
    model runs with, so that no other layer's weights are ever held.
    """
    attention = model.encoder.layer[-1].attention
    inputs: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        with evaluating(model):
            model(pixels)
            cls = attention.q_proj(inputs[0][:, :1]).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            keys = attention.k_proj(inputs[0]).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
    finally:
        hook.remove()
    weights = (cls.float() @ keys.float().mT * attention.scaling).softmax(-1)[:, :, 0]
    return weights[:, :, num_prefix_tokens(model) :].unflatten(-1, _grid(model, pixels)).cpu()


def patch_pca(model: nn.Module, pixels: Tensor) -> Tensor:
    """The first three principal components of the patch tokens of all images jointly, `[n, 3, rows, columns]` in 0..1, on the CPU.

    Signs are fixed (the largest entry of each component is positive), each component is stretched from its 1st to 99th percentile.
    """
    with evaluating(model):
        tokens = model(pixels).last_hidden_state[:, num_prefix_tokens(model) :].float().cpu()
    scores = principal_scores(tokens.flatten(0, 1), 3)
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99]), dim=0)
    scores = ((scores - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return scores.unflatten(0, tokens.shape[:2]).transpose(1, 2).unflatten(-1, _grid(model, pixels))


def principal_scores(rows: Tensor, count: int) -> Tensor:
    """Centred `[n, D]` along its first `count` principal directions, `[n, count]`; each direction's largest entry is positive."""
    centred = rows - rows.mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    scores = centred @ (directions * largest.sign()).T
    return torch.nn.functional.pad(scores, (0, count - scores.shape[1]))  # fewer rows than directions: the rest is 0


def attention_picture(model: nn.Module, images: Tensor, pixels: Tensor) -> Image.Image:
    """A row per image: the image `[n, 3, H, W]` in 0..1, then CLS attention of the last layer's heads and their mean."""
    maps = attention_maps(model, pixels)
    rows = []
    for image, heads in zip(images, maps, strict=True):
        shown = to_picture(image)
        rows.append([shown, *(heat(each).resize(shown.size, Image.Resampling.NEAREST) for each in (*heads, heads.mean(0)))])
    return contact_sheet(rows, ["image", *(f"head {number}" for number in range(maps.shape[1])), "mean of heads"])


def pca_picture(model: nn.Module, images: Tensor, pixels: Tensor) -> Image.Image:
    """Images `[n, 3, H, W]` in 0..1 above the joint PCA of their patch tokens, its three components as red, green and blue."""
    shown = [to_picture(image) for image in images]
    components = [_colours(each).resize(shown[0].size, Image.Resampling.NEAREST) for each in patch_pca(model, pixels)]
    return contact_sheet([shown, components])


def curve_picture(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    ylabel: str,
    references: Mapping[str, float] | None = None,
) -> Image.Image:
    """Lines `name -> (steps, values)` and dashed horizontal references. Raises UserError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("curves need matplotlib; pip install 'vision-encoder-fusion[pretrain]'") from None
    figure = Figure(figsize=(8, 4), dpi=140, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name, marker="o" if len(steps) < 30 else None, markersize=4)
    for number, (name, value) in enumerate((references or {}).items()):
        axes.axhline(value, label=f"{name} ({value:.1f})", linestyle="--", linewidth=1, color=f"C{len(curves) + number}")
    axes.set(title=title, xlabel="step", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if curves or references:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def contact_sheet(rows: list[list[Image.Image]], captions: list[str] | None = None) -> Image.Image:
    """Pictures in rows with thin white gaps, captions above the columns. A column is as wide as its widest picture, a row as high."""
    columns = max(len(row) for row in rows)
    widths = [max(row[column].width for row in rows if column < len(row)) for column in range(columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    lefts = [sum(widths[:column]) + column * GAP for column in range(columns)]
    tops = [sum(heights[:line]) + line * GAP + (CAPTION_HEIGHT if captions else 0) for line in range(len(rows))]
    sheet = Image.new("RGB", (lefts[-1] + widths[-1], tops[-1] + heights[-1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(CAPTION_SIZE)
    for left, text in zip(lefts, captions or [], strict=False):
        draw.text((left + 2, 2), text, fill="black", font=font)
    for top, row in zip(tops, rows, strict=True):
        for left, picture in zip(lefts, row, strict=False):
            sheet.paste(picture, (left, top))
    return sheet


def to_picture(image: Tensor) -> Image.Image:
    """`[3, H, W]` in 0..1 as a picture whose shorter side is a tile's."""
    picture = _colours(image)
    scale = TILE / min(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)


def heat(values: Tensor) -> Image.Image:
    """`[rows, columns]`, a pixel each, from dark blue over red to pale yellow, stretched from its least to its greatest value."""
    low, high = values.min(), values.max()
    position = ((values - low) / (high - low).clamp_min(1e-12)) * (len(HEAT_COLOURS) - 1)
    left = position.long().clamp_max(len(HEAT_COLOURS) - 2)
    colours = torch.tensor(HEAT_COLOURS)
    return _colours(torch.lerp(colours[left], colours[left + 1], (position - left)[..., None]).permute(2, 0, 1))


def display(images: Tensor) -> Tensor:
    """Images of any channels `[n, C, H, W]` as `[n, 3, H, W]` in 0..1: the first three channels, or the first one as grey.

    Values outside 0..1, which multi-band data has, are stretched from each channel's least to its greatest value.
    """
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    if shown.min() >= 0 and shown.max() <= 1:
        return shown
    low, high = shown.amin((0, 2, 3), keepdim=True), shown.amax((0, 2, 3), keepdim=True)
    return (shown - low) / (high - low).clamp_min(1e-12)


def _colours(image: Tensor) -> Image.Image:
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _grid(model: nn.Module, pixels: Tensor) -> tuple[int, int]:
    patch = model.config.patch_size
    return pixels.shape[-2] // patch, pixels.shape[-1] // patch
