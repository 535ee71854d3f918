"""Linear segmentation: how well a linear map of a frozen patch feature tells what a pixel shows."""

from __future__ import annotations

import colorsys
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
from vision_core.errors import UserError
from vision_core.images.source import MASK_IGNORED

GOLDEN_STEP = 0.618034  # steps of the golden ratio spread hues evenly, however many there are
SATURATIONS = (0.75, 0.45, 0.95)
BRIGHTNESSES = (0.95, 0.75)


@dataclass(frozen=True)
class SegmentationResult:
    """Figures in percent, over all test images together.

    Attributes:
        miou: the mean of the IoU over the classes.
        class_ious: None for a class that is neither in the masks nor predicted.
        pixel_accuracy: the share of pixels whose class is right.
        predictions: `[H, W]` of the first 8 test images, each of its mask's size.
    """

    miou: float
    class_ious: tuple[float | None, ...]
    pixel_accuracy: float
    predictions: tuple[Tensor, ...]


def linear_segmentation(
    train_maps: Rows,
    train_masks: Rows,
    test_maps: Rows,
    test_masks: Rows,
    num_classes: int,
    iterations: int = 40_000,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> SegmentationResult:
    """Train a linear head on maps `[C, h, w]` and judge it on the test masks, each at its own
    resolution.

    It follows DINOv3's released linear evaluation (40,000 iterations of 16 images, AdamW, learning
    rate and weight decay 1e-3, warm-up over 1,500 / 40,000 of the iterations, dropout 0.1) but for
    its random crops, flips and sliding windows: features are computed once, of uncropped images.
    Masks `[H, W]` are int64 with 255 for pixels that count nowhere; for training they are
    resized to four times the grid. mIoU is computed over all test images together, not per image.

    Raises UserError for masks with other values, with a single class, for features that are not
    finite and for lengths that differ.
    """
    check_rows("segmentation", "training", [train_maps], train_masks)
    check_rows("segmentation", "test", [test_maps], test_masks)
    pixels_of_classes = _check_masks("training", train_masks, num_classes)
    if (pixels_of_classes > 0).sum() < 2:
        raise UserError(
            "segmentation: the training masks show a single class; "
            "take data with two or more, or more of its images"
        )
    _check_masks("test", test_masks, num_classes)
    channels, *grid = train_maps[0].shape
    targets = training_targets(train_masks, grid, torch.uint8)

    def loss(logits: Tensor, masks: Tensor, step: int) -> Tensor:
        return segmentation_loss(logits, masks)

    with seeded(device, seed, "segmentation"):
        head = linear_head(channels, num_classes).to(device)
        train_head(
            head,
            loss,
            [train_maps],
            targets,
            iterations=iterations,
            batch_size=batch_size,
            learning_rate=1e-3,
            weight_decay=1e-3,
            warmup=1500 / 40_000,
            seed=seed,
            progress=progress,
        )
    return _judge(head, test_maps, test_masks, num_classes, batch_size)


def linear_head(in_channels: int, num_classes: int) -> nn.Sequential:
    """Batch norm, dropout of channels and a 1 x 1 convolution: `[B, classes, h, w]` of `[B, C, h,
    w]`."""
    convolution = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(convolution.weight, std=0.01)
    nn.init.zeros_(convolution.bias)
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.Dropout2d(0.1), convolution)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of `[B, classes, h, w]`, upsampled bilinearly to the masks `[B, H, W]`, over
    the pixels that are not 255; 0 without any."""
    logits = F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False)
    counted = (masks != MASK_IGNORED).sum().clamp_min(1)
    return F.cross_entropy(logits, masks.long(), ignore_index=MASK_IGNORED, reduction="sum") / counted


def confusion_matrix(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """`[classes, classes]` counts of pixels, a row per true class and a column per predicted one;
    pixels whose truth is 255 are left out."""
    counted = truth != MASK_IGNORED
    pairs = truth[counted].long() * num_classes + predicted[counted]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_scores(confusion: Tensor) -> tuple[float, tuple[float | None, ...], float]:
    """mIoU, IoU of every class and pixel accuracy in percent, from one confusion matrix of all
    images.

    IoU of class c is n_cc / (sum_j n_cj + sum_j n_jc - n_cc) (Everingham et al. 2015, section 4.2);
    a class without truth and predictions has None and is left out of the mean.
    """
    right = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    seen = union > 0
    ious = 100 * right / union
    accuracy = 100 * right.sum() / confusion.sum()
    class_ious = [iou if is_seen else None for iou, is_seen in zip(ious.tolist(), seen, strict=True)]
    return ious[seen].mean().item(), tuple(class_ious), accuracy.item()


def label_picture(mask: Tensor, num_classes: int) -> Image.Image:
    """A picture of a mask `[H, W]`, a pixel each, in colours that depend on the class alone; black
    for 255."""
    colours = torch.zeros(256, 3, dtype=torch.uint8)
    for number in range(num_classes):
        colours[number] = _colour(number)
    return Image.fromarray(colours[mask.cpu().long()].numpy())


def _colour(number: int) -> Tensor:
    """The colour of a class, `[3]` uint8."""
    rgb = colorsys.hsv_to_rgb(
        h=number * GOLDEN_STEP % 1,
        s=SATURATIONS[number % len(SATURATIONS)],
        v=BRIGHTNESSES[number // len(SATURATIONS) % len(BRIGHTNESSES)],
    )
    return torch.tensor([round(255 * part) for part in rgb], dtype=torch.uint8)


def _judge(head: nn.Module, maps: Rows, masks: Rows, num_classes: int, batch_size: int) -> SegmentationResult:
    """The figures of a trained head on masks of their own sizes."""
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
    kept = []
    for index, logits in enumerate(head_outputs(head, [maps], batch_size)):
        truth = masks[index]
        resized = F.interpolate(logits, truth.shape, mode="bilinear", align_corners=False)
        predicted = resized.argmax(1)[0].cpu()
        confusion += confusion_matrix(predicted, truth, num_classes)
        if index < NUM_KEPT:
            kept.append(predicted)
    return SegmentationResult(*segmentation_scores(confusion), predictions=tuple(kept))


def _check_masks(split: str, masks: Rows, num_classes: int) -> Tensor:
    """How many pixels each class has, `[classes]`. Raises UserError for values that are not a class,
    and where no pixel counts."""
    if not 2 <= num_classes <= MASK_IGNORED:
        raise UserError(f"segmentation: {num_classes} classes; masks can hold 2 to {MASK_IGNORED}")
    pixels = torch.zeros(num_classes, dtype=torch.long)
    for index in range(len(masks)):
        values = masks[index][masks[index] != MASK_IGNORED].long()
        _check_values(f"{split} image {index}", values, num_classes)
        pixels += torch.bincount(values, minlength=num_classes)
    if not pixels.any():
        raise UserError(
            f"segmentation: no pixel of the {split} masks counts; take other images or fewer values in ignore="
        )
    return pixels


def _check_values(image: str, values: Tensor, num_classes: int) -> None:
    wrong = values[(values < 0) | (values >= num_classes)]
    if len(wrong):
        raise UserError(
            f"segmentation: the mask of {image} holds the value {wrong[0]}, "
            f"but the classes are 0 to {num_classes - 1}; "
            "name what counts nowhere in the data source's ignore= option"
        )
