"""Tasks on the patches: segmentation, depth, and what attention outlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from encoders.attention import keep_mass, last_attention
from encoders.evaluation.depth import DepthResult, depth_picture, dpt_depth, linear_depth
from encoders.evaluation.depth_protocol import PROTOCOLS, DepthProtocol
from encoders.evaluation.emergent_segmentation import EmergentResult, emergent_jaccard
from encoders.evaluation.features import depth_layers
from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.results import TaskResult
from encoders.evaluation.segmentation import label_picture, linear_segmentation
from encoders.evaluation.stored_features import StoredRows
from encoders.evaluation.used_images import none_readable
from encoders.pictures.sheets import contact_sheet, display, to_picture
from vision_core.images.source import MASK_IGNORED, ImageSource, UnreadableSample
from vision_core.unreadable import UnreadableImage

NUM_PICTURED = 6  # rows of a picture
ATTENTION_IN_WORDS = {"cls": "the CLS token", "pooling": "the pooling query", "mean": "all tokens"}
# A quarter of the published width and batch: minutes on two cores.
DPT_CHANNELS = 64
DPT_BATCH_SIZE = 4


def last_layer(frozen: FrozenFeatures) -> tuple[int, ...]:
    """The layer that the linear heads read."""
    return (frozen.encoder.num_layers,)


def four_layers(frozen: FrozenFeatures) -> tuple[int, ...]:
    """The layers that the DPT head reads."""
    return depth_layers(frozen.encoder.num_layers)


class AnnotatedMaps(NamedTuple):
    """Rows of features by their names, an annotation `[H, W]` for each row, and which images of the
    source they are."""

    features: dict[str, Tensor | StoredRows]
    annotations: list[Tensor]
    images: list[int]


def run_segmentation(frozen: FrozenFeatures, dense_iterations: int) -> TaskResult:
    """Segmentation by a linear head on the last layer's map."""
    train = _annotated_maps(frozen, "train", last_layer(frozen), "mask")
    test = _annotated_maps(frozen, "test", last_layer(frozen), "mask")
    num_classes = _num_classes(frozen, train.annotations + test.annotations)
    map_name = f"map_{frozen.encoder.num_layers}"
    result = linear_segmentation(
        train.features[map_name],
        train.annotations,
        test.features[map_name],
        test.annotations,
        num_classes,
        dense_iterations,
        **frozen.training_options,
    )
    truths = [label_picture(mask, num_classes) for mask in test.annotations[:NUM_PICTURED]]
    predictions = [label_picture(mask, num_classes) for mask in result.predictions[:NUM_PICTURED]]
    return TaskResult(
        {"mIoU": result.miou, "pixel accuracy": result.pixel_accuracy},
        f"linear head on the last layer at {_size_in_words(frozen)}, {dense_iterations:,} iterations of 16 "
        "(published: 40,000), mIoU over the whole set",
        _sheet(frozen, test.images, {"truth": truths, "prediction": predictions}),
        {"IoU of each class": result.class_ious},
        _images_used(train, test),
    )


def run_depth(frozen: FrozenFeatures, dense_iterations: int, depth_protocol: str = "all") -> TaskResult:
    """Depth by a linear head on the last layer's map, and on its CLS token where there is one.

    depth_protocol: "all" for all known depths, or the benchmark that says which count.
    """
    number = frozen.encoder.num_layers
    protocol = PROTOCOLS.get(depth_protocol)
    train = _annotated_maps(frozen, "train", last_layer(frozen), "depth")
    test = _annotated_maps(frozen, "test", last_layer(frozen), "depth")
    farthest = _farthest(train.annotations, protocol)
    result = linear_depth(
        train.features[f"map_{number}"],
        train.annotations,
        test.features[f"map_{number}"],
        test.annotations,
        farthest,
        train.features.get(f"cls_{number}"),
        test.features.get(f"cls_{number}"),
        iterations=dense_iterations,
        protocol=protocol,
        **frozen.training_options,
    )
    beside = " beside the CLS token" if frozen.encoder.has_cls else ""
    words = (
        f"linear head on the last layer{beside} at {_size_in_words(frozen)}, "
        f"{dense_iterations:,} iterations of 16 (published: 38,400), {_judged_in_words(protocol, farthest)}"
    )
    return _depth_result(frozen, result, train, test, words, farthest)


def run_depth_dpt(frozen: FrozenFeatures, dense_iterations: int, depth_protocol: str = "all") -> TaskResult:
    """Depth by a DPT head on four layers; a model with fewer gives its last one several times.

    depth_protocol: as in `run_depth`.
    """
    layers = four_layers(frozen)
    numbers = [*layers, *layers[-1:] * (4 - len(layers))]
    protocol = PROTOCOLS.get(depth_protocol)
    train = _annotated_maps(frozen, "train", layers, "depth")
    test = _annotated_maps(frozen, "test", layers, "depth")
    farthest = _farthest(train.annotations, protocol)
    result = dpt_depth(
        [train.features[f"map_{number}"] for number in numbers],
        train.annotations,
        [test.features[f"map_{number}"] for number in numbers],
        test.annotations,
        farthest,
        DPT_CHANNELS,
        dense_iterations,
        DPT_BATCH_SIZE,
        protocol=protocol,
        **frozen.training_options,
    )
    words = (
        f"DPT head of {DPT_CHANNELS} channels (published: 256) on layers {', '.join(map(str, numbers))} "
        f"at {_size_in_words(frozen)}, {dense_iterations:,} iterations of {DPT_BATCH_SIZE} "
        f"(published: 38,400 of 16), {_judged_in_words(protocol, farthest)}"
    )
    return _depth_result(frozen, result, train, test, words, farthest)


def run_emergent_segmentation(frozen: FrozenFeatures) -> TaskResult:
    """The patches with most of the attention against the mask of the objects."""
    looked_at = _attention_and_masks(frozen)
    attention = torch.cat(looked_at.attention)
    result = emergent_jaccard(attention, looked_at.masks, progress=frozen.progress)
    objects = [_white(mask) for mask in looked_at.masks[:NUM_PICTURED]]
    outlined = [_white(keep_mass(heads.mean(0))) for heads in attention[:NUM_PICTURED]]
    protocol = (
        "Jaccard index of the object and the patches that hold 60 % of the attention of "
        f"{ATTENTION_IN_WORDS[looked_at.query]} in the last layer at {_size_in_words(frozen)}, "
        f"{result.images:,} images; oracle: the head is chosen for each image with its mask, "
        "as DINO publishes it"
    )
    return TaskResult(
        _emergent_metrics(result),
        protocol,
        _sheet(frozen, looked_at.images, {"object": objects, "60 % of attention": outlined}),
        {"heads": result.heads, "whole image": result.whole_image},
        {"test": len(looked_at.images)},
    )


class AttentionAndMasks(NamedTuple):
    """The attention `[1, heads, h, w]` and the object's mask `[H, W]` of each image, which images
    of the source they are, and whose attention it is."""

    attention: list[Tensor]
    masks: list[Tensor]
    images: list[int]
    query: str


def _attention_and_masks(frozen: FrozenFeatures) -> AttentionAndMasks:
    """Of all test images that can be read, with their masks. Raises UserError where none can."""
    source = frozen.sources["test"]
    transform = frozen.dense_transform
    maps, masks, images, bad = [], [], [], []
    for index in tqdm(frozen.indices["test"], "attention", disable=not frozen.progress, leave=False):
        try:
            image, mask = _image_and_mask(source, index)
        except UnreadableImage as error:
            bad.append(UnreadableSample(source.id_of(index), error.reason))
            continue
        attention = last_attention(frozen.encoder, transform([image]))
        maps.append(attention.maps)
        masks.append(mask)
        images.append(index)
    frozen.note_unreadable("test", bad)
    if not maps:
        raise none_readable(source.description, bad)
    return AttentionAndMasks(maps, masks, images, attention.query)


def _image_and_mask(source: ImageSource, index: int) -> tuple[Tensor, Tensor]:
    """An image and the mask of its object. Raises UnreadableImage, with `mask` in front of the
    reason where the mask alone cannot be read."""
    image = source[index].image
    try:
        return image, source.annotations.foreground(index)
    except UnreadableImage as error:
        raise UnreadableImage(f"mask {error.reason}") from None


def _emergent_metrics(result: EmergentResult) -> dict[str, float]:
    return {
        "mean of the heads": result.mean_attention,
        "best head (oracle)": result.best_head,
        "best fixed head": max(result.heads),
        "chance": result.chance,
    }


def _annotated_maps(
    frozen: FrozenFeatures, split: str, layers: tuple[int, ...], kind: Literal["mask", "depth"]
) -> AnnotatedMaps:
    """Maps of the images whose annotation can be read: what a head learns from, or is judged on."""
    features = frozen.maps(split, layers)
    kept = frozen.kept(split, dense=True)
    rows, annotations = frozen.annotated_rows(split, kind)
    if len(rows) < len(kept):
        features = {name: _chosen_rows(value, rows) for name, value in features.items()}
    return AnnotatedMaps(features, annotations, [kept[row] for row in rows])


def _chosen_rows(features: Tensor | StoredRows, rows: list[int]) -> Tensor | StoredRows:
    return features.only(rows) if isinstance(features, StoredRows) else features[rows]


def _images_used(train: AnnotatedMaps, test: AnnotatedMaps) -> dict[str, int]:
    return {"train": len(train.images), "test": len(test.images)}


def _num_classes(frozen: FrozenFeatures, masks: list[Tensor]) -> int:
    """How many classes the masks have: the number of their names, or one more than the greatest
    number."""
    names = frozen.sources["train"].annotations.mask_names
    if names:
        return len(names)
    counted = [mask[mask != MASK_IGNORED] for mask in masks]
    return 1 + max(int(values.max()) for values in counted if len(values))


def _farthest(depths: list[Tensor], protocol: DepthProtocol | None) -> float:
    """The end of the bins: the benchmark's, or what the training images show, in whole metres."""
    if protocol is not None:
        return protocol.max_depth
    return float(max(1.0, max(depth.max() for depth in depths).ceil()))


def _judged_in_words(protocol: DepthProtocol | None, farthest: float) -> str:
    """Which depths are judged."""
    return f"depths up to {farthest:.0f} m" if protocol is None else str(protocol)


def _depth_result(
    frozen: FrozenFeatures,
    result: DepthResult,
    train: AnnotatedMaps,
    test: AnnotatedMaps,
    protocol: str,
    farthest: float,
) -> TaskResult:
    metrics = {
        "RMSE (m)": result.rmse,
        "AbsRel (fraction)": result.abs_rel,
        "delta1": result.delta1,
        "delta2": result.delta2,
        "delta3": result.delta3,
    }
    truths = [depth_picture(depth, farthest) for depth in test.annotations[:NUM_PICTURED]]
    predictions = [depth_picture(depth, farthest) for depth in result.predictions[:NUM_PICTURED]]
    picture = _sheet(frozen, test.images, {"truth": truths, "prediction": predictions})
    return TaskResult(metrics, protocol, picture, images=_images_used(train, test))


def _size_in_words(frozen: FrozenFeatures) -> str:
    height, width = frozen.dense_transform.size
    return f"{height} x {width} pixels"


def _sheet(
    frozen: FrozenFeatures, images: Sequence[int], columns: dict[str, list[Image.Image]]
) -> Image.Image:
    """The first test images, each with the pictures of it in the named columns at its own size."""
    rows = []
    for index, *tiles in zip(images, *columns.values(), strict=False):
        shown = _test_picture(frozen, index)
        resized = [tile.resize(shown.size, Image.Resampling.NEAREST) for tile in tiles]
        rows.append([shown, *resized])
    return contact_sheet(rows, ["image", *columns])


def _test_picture(frozen: FrozenFeatures, index: int) -> Image.Image:
    image = frozen.sources["test"][index].image[None]
    if image.dtype == torch.uint8:
        image = image / 255
    return to_picture(display(image)[0])


def _white(mask: Tensor) -> Image.Image:
    """A mask `[H, W]` in black and white."""
    return Image.fromarray((mask * 255).byte().cpu().numpy()).convert("RGB")
