"""Tasks on the patches: segmentation, depth, and what attention outlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from encoders.attention import last_attention
from encoders.evaluation.depth import DepthResult, depth_picture, dpt_depth, linear_depth
from encoders.evaluation.depth_protocol import PROTOCOLS, DepthProtocol
from encoders.evaluation.emergent_segmentation import emergent_jaccard, keep_mass
from encoders.evaluation.features import depth_layers
from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.results import TaskResult
from encoders.evaluation.segmentation import label_picture, linear_segmentation
from encoders.evaluation.stored_features import StoredRows
from encoders.evaluation.used_images import none_readable
from encoders.pictures.sheets import contact_sheet, display, to_picture
from vision_core.images.source import MASK_IGNORED, UnreadableSample
from vision_core.unreadable import UnreadableImage

SHOWN = 6
QUERIES = {"cls": "the CLS token", "pooling": "the pooling query", "mean": "all tokens"}
DPT_CHANNELS, DPT_BATCH = 64, 4  # a quarter of the published width and batch: minutes on two cores


def last_layer(frozen: FrozenFeatures) -> tuple[int, ...]:
    """What the linear heads read."""
    return (frozen.encoder.num_layers,)


def four_layers(frozen: FrozenFeatures) -> tuple[int, ...]:
    """What the DPT head reads."""
    return depth_layers(frozen.encoder.num_layers)


def run_segmentation(frozen: FrozenFeatures, dense_iterations: int) -> TaskResult:
    """A linear head on the last layer's map."""
    train, test = (_annotated(frozen, split, last_layer(frozen), "mask") for split in ("train", "test"))
    num_classes = _num_classes(frozen, train.annotations + test.annotations)
    name = f"map_{frozen.encoder.num_layers}"
    result = linear_segmentation(
        train.features[name], train.annotations, test.features[name], test.annotations, num_classes, dense_iterations,
        seed=frozen.seed, progress=frozen.progress, device=frozen.encoder.device,
    )  # fmt: skip
    rows = [
        [_shown(frozen, index), label_picture(truth, num_classes), label_picture(prediction, num_classes)]
        for index, truth, prediction in zip(test.kept, test.annotations, result.predictions, strict=False)
    ]
    protocol = f"linear head on the last layer at {_size(frozen)}, {dense_iterations:,} iterations of 16 (published: 40,000), mIoU over the whole set"
    metrics = {"mIoU": result.miou, "pixel accuracy": result.pixel_accuracy}
    picture, details = (
        _sheet(rows, ["image", "truth", "prediction"]),
        {"IoU of each class": result.class_ious},
    )
    return TaskResult(metrics, protocol, picture, details, _counted(train, test))


def run_depth(frozen: FrozenFeatures, dense_iterations: int, depth_protocol: str = "all") -> TaskResult:
    """A linear head on the last layer's map, and its CLS token where there is one.

    depth_protocol: "all" for all known depths, or the benchmark that says which count.
    """
    number, judged = frozen.encoder.num_layers, PROTOCOLS.get(depth_protocol)
    train, test = (_annotated(frozen, split, last_layer(frozen), "depth") for split in ("train", "test"))
    farthest = _farthest(train.annotations, judged)
    map_name, cls_name = f"map_{number}", f"cls_{number}"
    result = linear_depth(
        train.features[map_name], train.annotations, test.features[map_name], test.annotations, farthest,
        train.features.get(cls_name), test.features.get(cls_name),
        iterations=dense_iterations, seed=frozen.seed, progress=frozen.progress,
        device=frozen.encoder.device, protocol=judged,
    )  # fmt: skip
    beside = " beside the CLS token" if frozen.encoder.has_cls else ""
    training = f"{dense_iterations:,} iterations of 16 (published: 38,400)"
    head = f"linear head on the last layer{beside} at {_size(frozen)}, {training}"
    return _depth_result(
        frozen, result, train, test, f"{head}, {judged or f'depths up to {farthest:.0f} m'}", farthest
    )


def run_depth_dpt(frozen: FrozenFeatures, dense_iterations: int, depth_protocol: str = "all") -> TaskResult:
    """A DPT head on four layers; a model with fewer gives its last one several times.

    depth_protocol: as in `run_depth`.
    """
    layers, judged = four_layers(frozen), PROTOCOLS.get(depth_protocol)
    train, test = (_annotated(frozen, split, layers, "depth") for split in ("train", "test"))
    read = (*layers, *layers[-1:] * (4 - len(layers)))
    farthest = _farthest(train.annotations, judged)
    result = dpt_depth(
        [train.features[f"map_{number}"] for number in read], train.annotations,
        [test.features[f"map_{number}"] for number in read], test.annotations, farthest,
        DPT_CHANNELS, dense_iterations, DPT_BATCH,
        seed=frozen.seed, progress=frozen.progress, device=frozen.encoder.device, protocol=judged,
    )  # fmt: skip
    training = f"{dense_iterations:,} iterations of {DPT_BATCH} (published: 38,400 of 16)"
    blocks = ", ".join(map(str, read))
    head = f"DPT head of {DPT_CHANNELS} channels (published: 256) on layers {blocks} at {_size(frozen)}, {training}"
    return _depth_result(
        frozen, result, train, test, f"{head}, {judged or f'depths up to {farthest:.0f} m'}", farthest
    )


def run_emergent_segmentation(frozen: FrozenFeatures) -> TaskResult:
    """The patches with most of the attention against the mask of the objects."""
    source, transform, maps, masks, kept, bad = (
        frozen.sources["test"],
        frozen.dense_transform,
        [],
        [],
        [],
        [],
    )
    for index in tqdm(frozen.indices["test"], "attention", disable=not frozen.progress, leave=False):
        what = ""
        try:
            image, what = source[index].image, "mask "
            mask = source.annotations.foreground(index)
        except UnreadableImage as error:
            bad.append(UnreadableSample(source.id_of(index), f"{what}{error.reason}"))
            continue
        attention = last_attention(frozen.encoder, transform([image]))
        maps.append(attention.maps)
        masks.append(mask)
        kept.append(index)
    frozen.note_unreadable("test", bad)
    if not maps:
        raise none_readable(source.description, bad)
    result = emergent_jaccard(torch.cat(maps), masks, progress=frozen.progress)
    rows = [
        [_shown(frozen, index), _white(mask), _white(keep_mass(heads.mean(0)))]
        for index, mask, heads in zip(kept[:SHOWN], masks, torch.cat(maps[:SHOWN]), strict=False)
    ]
    metrics = {
        "mean of the heads": result.mean_attention,
        "best head (oracle)": result.best_head,
        "best fixed head": max(result.heads),
        "chance": result.chance,
    }
    protocol = (
        f"Jaccard index of the object and the patches that hold 60 % of the attention of {QUERIES[attention.query]} in the last layer at {_size(frozen)}, "
        f"{result.images:,} images; oracle: the head is chosen for each image with its mask, as DINO publishes it"
    )
    return TaskResult(
        metrics,
        protocol,
        _sheet(rows, ["image", "object", "60 % of attention"]),
        {"heads": result.heads, "whole image": result.whole_image},
        {"test": len(kept)},
    )


class Annotated(NamedTuple):
    """features: name -> rows, one per annotation; kept: which images of the source they are."""

    features: dict[str, Tensor | StoredRows]
    annotations: list[Tensor]
    kept: list[int]


def _annotated(
    frozen: FrozenFeatures, split: str, layers: tuple[int, ...], kind: Literal["mask", "depth"]
) -> Annotated:
    """What a head learns from or is judged on: maps of images whose annotation can be read."""
    features = frozen.maps(split, layers)
    kept = frozen.kept(split, dense=True)
    rows, annotations = frozen.annotated_rows(split, kind)
    if len(rows) < len(kept):
        features = {
            name: value.only(rows) if isinstance(value, StoredRows) else value[rows]
            for name, value in features.items()
        }
    return Annotated(features, annotations, [kept[row] for row in rows])


def _counted(train: Annotated, test: Annotated) -> dict[str, int]:
    return {"train": len(train.kept), "test": len(test.kept)}


def _num_classes(frozen: FrozenFeatures, masks: list[Tensor]) -> int:
    names = frozen.sources["train"].annotations.mask_names
    if names:
        return len(names)
    return 1 + max(int(mask[mask != MASK_IGNORED].max()) for mask in masks if (mask != MASK_IGNORED).any())


def _farthest(depths: list[Tensor], judged: DepthProtocol | None) -> float:
    """The end of the bins: the benchmark's, or what the training images show, in whole metres."""
    return judged.max_depth if judged else float(max(1.0, max(depth.max() for depth in depths).ceil()))


def _depth_result(
    frozen: FrozenFeatures,
    result: DepthResult,
    train: Annotated,
    test: Annotated,
    protocol: str,
    farthest: float,
) -> TaskResult:
    rows = [
        [_shown(frozen, index), depth_picture(truth, farthest), depth_picture(prediction, farthest)]
        for index, truth, prediction in zip(test.kept, test.annotations, result.predictions, strict=False)
    ]
    metrics = {
        "RMSE (m)": result.rmse,
        "AbsRel (fraction)": result.abs_rel,
        "delta1": result.delta1,
        "delta2": result.delta2,
        "delta3": result.delta3,
    }
    picture = _sheet(rows, ["image", "truth", "prediction"])
    return TaskResult(metrics, protocol, picture, images=_counted(train, test))


def _size(frozen: FrozenFeatures) -> str:
    return "{} x {} pixels".format(*frozen.dense_transform.size)


def _shown(frozen: FrozenFeatures, index: int) -> Image.Image:
    image = frozen.sources["test"][index].image
    return to_picture(display(image[None] / 255 if image.dtype == torch.uint8 else image[None])[0])


def _white(mask: Tensor) -> Image.Image:
    return Image.fromarray((mask * 255).byte().cpu().numpy()).convert("RGB")


def _sheet(rows: Sequence[Sequence[Image.Image]], captions: list[str]) -> Image.Image:
    """The first rows, every tile as large as the image in front of it."""
    shown = [[tile.resize(row[0].size, Image.Resampling.NEAREST) for tile in row] for row in rows[:SHOWN]]
    return contact_sheet(shown, captions)
