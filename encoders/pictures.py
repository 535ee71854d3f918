"""Pictures of what an encoder sees: CLS attention, PCA of patch tokens, curves."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.evaluation.features import num_prefix_tokens
from vision_core.errors import UserError

TILE = 160
GAP = 6
CAPTION = 16


@torch.no_grad()
def attention_maps(model: nn.Module, pixels: Tensor) -> Tensor:
    """Attention of CLS to the patches in the last layer, `[n, heads, rows, columns]`, for normalised pixels `[n, C, H, W]`.

    Each map sums to the share of the attention that falls on patches. Works whatever attention implementation the model runs with.
    """
    implementation, was_training = model.config._attn_implementation, model.training
    model.eval()
    model.set_attn_implementation("eager")  # the others do not return their weights
    try:
        weights = model(pixels, output_attentions=True).attentions[-1]
    finally:
        model.set_attn_implementation(implementation)
        model.train(was_training)
    return weights[:, :, 0, num_prefix_tokens(model) :].unflatten(-1, _grid(model, pixels))


@torch.no_grad()
def patch_pca(model: nn.Module, pixels: Tensor) -> Tensor:
    """The first three principal components of the patch tokens of all images jointly, `[n, 3, rows, columns]` in 0..1.

    Signs are fixed (the largest entry of each component is positive), each component is stretched from its 1st to 99th percentile.
    """
    was_training = model.training
    tokens = model.eval()(pixels).last_hidden_state[:, num_prefix_tokens(model) :].float()
    model.train(was_training)
    centred = tokens.flatten(0, 1) - tokens.mean((0, 1))
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    scores = centred @ (directions * largest.sign()).T
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99]), dim=0)
    scores = ((scores - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return scores.unflatten(0, tokens.shape[:2]).transpose(1, 2).unflatten(-1, _grid(model, pixels))


def attention_picture(model: nn.Module, images: Tensor, pixels: Tensor) -> Image.Image:
    """A row per image: the image `[n, 3, H, W]` in 0..1, then CLS attention of the last layer's heads and their mean."""
    maps = attention_maps(model, pixels)
    rows = [[to_picture(image), *(heat(each) for each in heads), heat(heads.mean(0))] for image, heads in zip(images, maps, strict=True)]
    return contact_sheet(rows, ["image", *(f"head {number}" for number in range(maps.shape[1])), "mean"])


def pca_picture(model: nn.Module, images: Tensor, pixels: Tensor) -> Image.Image:
    """Images `[n, 3, H, W]` in 0..1 above the joint PCA of their patch tokens."""
    components = patch_pca(model, pixels)
    return contact_sheet([[to_picture(image) for image in images], [to_picture(each) for each in components]])


def curve_picture(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    ylabel: str,
    references: Mapping[str, float] | None = None,
) -> Image.Image:
    """Lines `name -> (steps, values)` and dashed horizontal references."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("curves need matplotlib; pip install 'vision-encoder-fusion[pretrain]'") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name, marker="o" if len(steps) < 30 else None, markersize=4)
    for number, (name, value) in enumerate((references or {}).items()):
        axes.axhline(value, label=f"{name} ({value:.1f})", linestyle="--", linewidth=1, color=f"C{len(curves) + number}")
    axes.set(title=title, xlabel="step", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")


def contact_sheet(rows: list[list[Image.Image]], captions: list[str] | None = None) -> Image.Image:
    """Pictures in rows with thin gaps, captions above the first row."""
    width, height = rows[0][0].size
    top = CAPTION if captions else 0
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, top + len(rows) * (height + GAP) - GAP), "white")
    for number, text in enumerate(captions or []):
        ImageDraw.Draw(sheet).text((number * (width + GAP) + 2, 2), text, fill="black")
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * (width + GAP), top + line * (height + GAP)))
    return sheet


def to_picture(image: Tensor, resample: Image.Resampling = Image.Resampling.NEAREST) -> Image.Image:
    """`[3, H, W]` in 0..1 as a picture whose shorter side is a tile's."""
    picture = Image.fromarray((image.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
    scale = TILE / min(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), resample)


def heat(values: Tensor) -> Image.Image:
    """`[rows, columns]` as a picture from dark blue over red to white, stretched from its least to its greatest value."""
    low, high = values.min(), values.max()
    position = ((values - low) / (high - low).clamp_min(1e-12)) * (len(HEAT_COLOURS) - 1)
    left = position.long().clamp_max(len(HEAT_COLOURS) - 2)
    colours = torch.tensor(HEAT_COLOURS)
    mixed = torch.lerp(colours[left], colours[left + 1], (position - left)[..., None])
    return to_picture(mixed.permute(2, 0, 1))


HEAT_COLOURS = [[0.02, 0.02, 0.12], [0.35, 0.07, 0.43], [0.80, 0.25, 0.30], [0.98, 0.65, 0.20], [0.99, 0.98, 0.80]]


def _grid(model: nn.Module, pixels: Tensor) -> tuple[int, int]:
    patch = model.config.patch_size
    return pixels.shape[-2] // patch, pixels.shape[-1] // patch


def display(images: Tensor) -> Tensor:
    """Images of any channels `[n, C, H, W]` in 0..1 as `[n, 3, H, W]`: the first three channels, or grey."""
    return images[:, :3] if images.shape[1] >= 3 else F.pad(images[:, :1].expand(-1, 3, -1, -1), (0, 0))
