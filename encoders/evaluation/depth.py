"""Depth in metres from frozen features, by a linear head or by a DPT head over four layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.evaluation.dense import (
    NUM_KEPT,
    Rows,
    check_rows,
    head_outputs,
    seeded,
    train_head,
    training_targets,
)
from encoders.evaluation.depth_protocol import DepthProtocol
from encoders.evaluation.dpt_head import DPTHead
from vision_core.errors import UserError

MIN_DEPTH = 0.001
NUM_BINS = 256
BIN_FLOOR = 0.1
LOG_FLOOR = 0.001
MEAN_WEIGHT = 0.15
WARM_UP = 100
# near to far
DEPTH_COLOURS = [
    [1.00, 0.92, 0.45],  # yellow
    [0.97, 0.60, 0.25],  # orange
    [0.82, 0.25, 0.35],  # red
    [0.48, 0.20, 0.60],  # purple
    [0.15, 0.30, 0.75],  # blue
]
DELTA_POWERS = (1, 2, 3)


@dataclass(frozen=True)
class DepthResult:
    """How near predicted depths are to the truth.

    Attributes:
        rmse: metres.
        abs_rel: a fraction.
        delta1, delta2, delta3: percent.
        predictions: `[H, W]` in metres of the first 8 test images.
    """

    rmse: float
    abs_rel: float
    delta1: float
    delta2: float
    delta3: float
    predictions: tuple[Tensor, ...]


def linear_depth(
    train_maps: Rows,
    train_depths: Rows,
    test_maps: Rows,
    test_depths: Rows,
    max_depth: float,
    train_cls: Tensor | None = None,
    test_cls: Tensor | None = None,
    iterations: int = 38_400,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
    device: torch.device | str = "cpu",
    protocol: DepthProtocol | None = None,
) -> DepthResult:
    """Train a linear head on maps `[C, h, w]` and judge it on the test depths, each at its own
    resolution.

    It is DINOv2's linear depth ("lin. 1" with CLS tokens `[n, C]`) by the recipe that DINOv3
    released: 38,400 iterations of 16 images, AdamW, learning rate 3e-4, weight decay 1e-4, warm-up
    over a third. What needs the images again is missing: random crops, rotations, colours, and the
    average over the image and its mirror image. Depths `[H, W]` are float32 metres with 0 for
    unknown; beyond `max_depth` (NYU: 10) they count nowhere. A `protocol` says which pixels of the
    test depths a benchmark counts; without one these are all that are known.

    Raises UserError for depths that are not finite or negative, where none counts, for features
    that are not finite, for lengths that differ and for test depths of another size than the
    protocol's.
    """
    if (train_cls is None) != (test_cls is None):
        raise UserError("depth: CLS tokens must be given for training and test images, or for neither")
    train_inputs = [train_maps] if train_cls is None else [train_maps, train_cls]
    test_inputs = [test_maps] if test_cls is None else [test_maps, test_cls]
    _check("training", train_inputs, train_depths, max_depth)
    _check("test", test_inputs, test_depths, max_depth, protocol)
    in_channels = sum(rows[0].shape[0] for rows in train_inputs)
    with seeded(device, seed, "depth"):
        head = LinearDepthHead(in_channels).to(device)
        _train(head, train_inputs, train_depths, max_depth, iterations, batch_size, seed, progress)
    return _judge(head, test_inputs, test_depths, max_depth, batch_size, protocol)


def dpt_depth(
    train_layers: Sequence[Rows],
    train_depths: Rows,
    test_layers: Sequence[Rows],
    test_depths: Rows,
    max_depth: float,
    channels: int = 256,
    iterations: int = 38_400,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
    device: torch.device | str = "cpu",
    protocol: DepthProtocol | None = None,
) -> DepthResult:
    """As `linear_depth`, with a `DPTHead` on the maps of four layers of one grid, earliest first;
    `channels` inside the head.

    Trained with the loss of the linear head alone; DINOv2 adds one on the depth's gradients. Raises
    UserError as `linear_depth` does, and for other layers than four of one shape.
    """
    _check("training", train_layers, train_depths, max_depth)
    _check("test", test_layers, test_depths, max_depth, protocol)
    shapes = [tuple(rows[0].shape) for rows in train_layers]
    if len(shapes) != 4 or len(set(shapes)) != 1:
        raise UserError(
            f"depth: a DPT head needs four layers of one shape, not {shapes}; name four blocks of a ViT"
        )
    with seeded(device, seed, "depth"):
        head = DPTHead(shapes[0][0], channels, NUM_BINS).to(device)
        _train(head, train_layers, train_depths, max_depth, iterations, batch_size, seed, progress)
    return _judge(head, test_layers, test_depths, max_depth, batch_size, protocol)


class LinearDepthHead(nn.Module):
    """The logits of 256 depths `[B, 256, 4h, 4w]` of maps `[B, C, h, w]`, with CLS `[B, D]` beside
    every patch where it is given.

    The published head upsamples the features four times before its 1 x 1 convolution. Weights of
    bilinear upsampling sum to 1, so that the order makes no difference but to the cost.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, NUM_BINS, 1)
        nn.init.normal_(self.convolution.weight, std=0.01)
        nn.init.zeros_(self.convolution.bias)

    def forward(self, maps: Tensor, cls: Tensor | None = None) -> Tensor:
        if cls is not None:
            everywhere = cls[:, :, None, None].expand(-1, -1, *maps.shape[-2:])
            maps = torch.cat([maps, everywhere], 1)
        # on a CPU this layout halves the time of what follows
        logits = self.convolution(maps).contiguous(memory_format=torch.channels_last)
        return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)


def expected_depth(logits: Tensor, max_depth: float) -> Tensor:
    """Metres `[B, h, w]` from logits `[B, K, h, w]`: sum_k w_k b_k / sum_k w_k with w = relu(logit)
    + 0.1 and K depths b from 0.001 to `max_depth`.

    This is AdaBins' linear normalisation over uniform bins (Bhat et al. 2021), as in DINOv2's depth
    evaluation.
    """
    bins = torch.linspace(MIN_DEPTH, max_depth, logits.shape[1], device=logits.device)
    weights = logits.relu().permute(0, 2, 3, 1)
    sums = weights @ torch.stack([bins, torch.ones_like(bins)], 1)
    return (sums[..., 0] + BIN_FLOOR * bins.sum()) / (sums[..., 1] + BIN_FLOOR * len(bins))


def sig_loss(predicted: Tensor, truth: Tensor, max_depth: float, warming_up: bool = False) -> Tensor:
    """sqrt(var(g) + 0.15 mean(g)^2) with g = log(predicted + 0.001) - log(truth + 0.001), over the
    known pixels of a batch `[B, H, W]`; 0 without any.

    That is sqrt(mean(g^2) - 0.85 mean(g)^2), the scale-invariant error of Eigen et al. 2014,
    equation 4, with the weight and the root of AdaBins. Warming up leaves var(g) out: the scale is
    found first.
    """
    known = is_known(truth, max_depth)
    if not known.any():
        return 0 * predicted.sum()
    g = torch.log(predicted[known] + LOG_FLOOR) - torch.log(truth[known] + LOG_FLOOR)
    square = MEAN_WEIGHT * g.mean() ** 2 + (0 if warming_up else g.var(correction=0))
    return square.clamp_min(1e-12).sqrt()  # the root has no slope at 0


def depth_errors(
    predicted: Tensor, truth: Tensor, max_depth: float, protocol: DepthProtocol | None = None
) -> Tensor:
    """RMSE, AbsRel and the shares of max(p / t, t / p) < 1.25, 1.25^2, 1.25^3 of one image `[H,
    W]`.

    They are over the pixels that count (`counted_pixels`), and NaN without any.
    """
    counted = counted_pixels(truth, max_depth, protocol)
    judged = predicted if protocol is None else protocol.clipped(predicted)
    p = judged[counted].double()
    t = truth[counted].double()
    rmse = (p - t).square().mean().sqrt()
    abs_rel = ((p - t).abs() / t).mean()
    ratio = torch.maximum(p / t, t / p)
    deltas = [(ratio < 1.25**power).double().mean() for power in DELTA_POWERS]
    return torch.stack([rmse, abs_rel, *deltas])


def counted_pixels(truth: Tensor, max_depth: float, protocol: DepthProtocol | None) -> Tensor:
    """Where a prediction is judged, `[H, W]` bool: at all known depths, or where the benchmark
    says."""
    return is_known(truth, max_depth) if protocol is None else protocol.counted(truth)


def is_known(depths: Tensor, max_depth: float) -> Tensor:
    """Where depths count, bool: above 0.001 and up to `max_depth`."""
    return (depths > MIN_DEPTH) & (depths <= max_depth)


def depth_picture(depth: Tensor, max_depth: float) -> Image.Image:
    """A picture of metres `[H, W]`, a pixel each, from yellow (near) over red to blue
    (`max_depth`); black for what is not known or lies beyond."""
    position = (depth / max_depth).clamp(0, 1).cpu() * (len(DEPTH_COLOURS) - 1)
    left = position.long().clamp_max(len(DEPTH_COLOURS) - 2)
    colours = torch.tensor(DEPTH_COLOURS)
    blended = torch.lerp(colours[left], colours[left + 1], (position - left)[..., None])
    shown = blended * is_known(depth.cpu(), max_depth)[..., None]
    return Image.fromarray((shown * 255).round().byte().numpy())


def _train(
    head: nn.Module,
    inputs: Sequence[Rows],
    depths: Rows,
    max_depth: float,
    iterations: int,
    batch_size: int,
    seed: int,
    progress: bool,
) -> None:
    warm_up = min(WARM_UP, iterations // 10)

    def loss(logits: Tensor, truth: Tensor, step: int) -> Tensor:
        predicted = _resized_depth(logits, max_depth, truth.shape[-2:])
        return sig_loss(predicted, truth, max_depth, warming_up=step < warm_up)

    train_head(
        head,
        loss,
        inputs,
        training_targets(depths, inputs[0][0].shape[-2:], torch.float32),
        iterations=iterations,
        batch_size=batch_size,
        learning_rate=3e-4,
        weight_decay=1e-4,
        warmup=1 / 3,
        seed=seed,
        progress=progress,
    )


def _resized_depth(logits: Tensor, max_depth: float, size: Sequence[int]) -> Tensor:
    depth = expected_depth(logits, max_depth)
    return F.interpolate(depth[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def _judge(
    head: nn.Module,
    inputs: Sequence[Rows],
    depths: Rows,
    max_depth: float,
    batch_size: int,
    protocol: DepthProtocol | None,
) -> DepthResult:
    """The figures of a trained head. Each is computed per image and averaged over the images that
    have known pixels, as is usual on NYU."""
    errors, kept = [], []
    for index, logits in enumerate(head_outputs(head, inputs, batch_size)):
        truth = depths[index]
        predicted = _resized_depth(logits, max_depth, truth.shape)[0].cpu()
        errors.append(depth_errors(predicted, truth, max_depth, protocol))
        if index < NUM_KEPT:
            kept.append(predicted)
    rmse, abs_rel, *deltas = torch.stack(errors).nanmean(0).tolist()
    percent = [100 * delta for delta in deltas]
    return DepthResult(rmse, abs_rel, *percent, predictions=tuple(kept))


def _check(
    split: str, inputs: Sequence[Rows], depths: Rows, max_depth: float, protocol: DepthProtocol | None = None
) -> None:
    """Raise UserError for depths that cannot be learnt from or judged by."""
    check_rows("depth", split, inputs, depths)
    any_known = False
    for index in range(len(depths)):
        depth = depths[index]
        if not (depth.isfinite() & (depth >= 0)).all():
            raise UserError(
                f"depth: the depths of {split} image {index} are negative or not finite; "
                "write 0 where they are unknown"
            )
        any_known = any_known or bool(counted_pixels(depth, max_depth, protocol).any())
    if not any_known:
        raise UserError(
            f"depth: no {split} image has a depth between {MIN_DEPTH} and {max_depth} m; "
            "give another max_depth, or depths in metres"
        )
