"""The training and the test images of one data set, from one text."""

from __future__ import annotations

import glob
import os
from typing import NamedTuple

from vision_core.errors import UserError
from vision_core.images.label_values import renumbered
from vision_core.images.open_source import open_source, parse_source
from vision_core.images.pixel_options import Scale
from vision_core.images.source import ImageSource
from vision_core.images.sources.hub import NoSuchSplit
from vision_core.images.sources.tar_shards import expand_braces
from vision_core.scenes.layout import SPLITS as SCENE_SPLITS

SPLIT = "{split}"
NAMES = {"train": ("train", "database"), "test": ("test", "queries", "held_out", "validation", "val")}
SCENES = {"train": {"split": "train", "count": "10000"}, "test": {"split": "held_out", "count": "2000"}}
PARQUET_NAMES = (
    f"{SPLIT}[-.]*parquet"  # train.parquet and train-00000-of-00001.parquet, but not train_notes.parquet
)


class Splits(NamedTuple):
    """What is learnt from, and what is judged on."""

    train: ImageSource
    test: ImageSource


def open_splits(text: str, test_text: str | None = None, num_channels: int = 3) -> Splits:
    """Both parts of the data set that `text` names, or `text` and `test_text` as they are.

    `{split}` in the text stands for train (or database) and test (or queries, held_out, validation,
    val), whichever is there first. A folder with parquet files or sub-folders of these names needs
    no `{split}`. `scenes` without a split are 10,000 training and 2,000 held-out ones.

    Raises UserError where a part is not found, is a stream, or the test images have other labels
    than the training images.
    """
    if test_text is not None:
        train = _open(text, num_channels)
        test = _open(test_text, num_channels, train.pixel_options.scale)
    else:
        train = _find(text, "train", num_channels)
        test = _find(text, "test", num_channels, train.pixel_options.scale)
    splits = Splits(train, test)
    _number_alike(*splits)
    _check_labels(*splits)
    return splits


def _candidates(text: str, part: str) -> list[str]:
    """The sources that may hold a part, the likeliest first."""
    if SPLIT in text:
        return [text.replace(SPLIT, name) for name in NAMES[part]]
    folder, mark, tail = text.removeprefix("folder:").partition("?")
    if os.path.isdir(folder):
        parquet = f"{glob.escape(folder)}/{PARQUET_NAMES}"
        is_parquet = any(
            glob.glob(parquet.replace(SPLIT, name)) for names in NAMES.values() for name in names
        )
        where = f"parquet:{parquet}" if is_parquet else f"folder:{folder}/{SPLIT}"
        return [f"{where}{mark}{tail}".replace(SPLIT, name) for name in NAMES[part]]
    kind, _, options = parse_source(text)
    if kind == "scenes" and "split" not in options:
        return [_scenes({**SCENES[part], **options})]
    raise UserError(
        f"dataset {text!r} is one set of images; write {SPLIT} where the name of a split stands, or name the test images by "
        "--test_dataset of recipes/evaluate_encoder.py"
    )


def _find(text: str, part: str, num_channels: int, auto_scale: Scale | None = None) -> ImageSource:
    """The first candidate that exists."""
    candidates, reason = _candidates(text, part), ""
    for each in candidates:
        if _may_exist(each):
            try:
                return _open(each, num_channels, auto_scale)
            except NoSuchSplit as error:  # the only way in which a data set of the hub tells
                reason = f" ({error})"
    raise UserError(
        f"no {part} images: none of {', '.join(candidates)} exists{reason}; write {SPLIT} where the name of a split stands, "
        "or name both parts by --dataset and --test_dataset of recipes/evaluate_encoder.py"
    )


def _may_exist(text: str) -> bool:
    kind, where, options = parse_source(text)
    if kind == "scenes":
        return options.get("split") in SCENE_SPLITS
    patterns = (
        [where] if kind != "wds" else [each for part in where.split("::") for each in expand_braces(part)]
    )
    return kind == "hf" or any(os.path.exists(each) or glob.glob(each, recursive=True) for each in patterns)


def _open(text: str, num_channels: int, auto_scale: Scale | None = None) -> ImageSource:
    source = open_source(text, num_channels, auto_scale)
    if not isinstance(source, ImageSource):
        raise UserError(
            f"{text} is a stream; evaluation needs a source with an index: leave out streaming=true"
        )
    return source


def _scenes(options: dict[str, str]) -> str:
    return "scenes?" + "&".join(f"{name}={value}" for name, value in options.items())


def _number_alike(train: ImageSource, test: ImageSource) -> None:
    """Where classes are texts, each part has numbered its own: the test images take the numbers of
    the training images."""
    if not (train.names_from_texts and test.names_from_texts) or train.class_names == test.class_names:
        return
    new = sorted(set(test.class_names) - set(train.class_names))
    if new:
        raise UserError(
            f"{len(new)} classes of the test images, such as {new[0]!r}, have no training image; name parts of one data set"
        )
    if test.labels is not None:
        test.labels = renumbered(test.labels, test.class_names, train.class_names)
    if test.multi_labels is not None:
        test.multi_labels = [
            sorted(renumbered(row, test.class_names, train.class_names)) for row in test.multi_labels
        ]
    test.class_names = train.class_names


def _check_labels(train: ImageSource, test: ImageSource) -> None:
    no_numbers = train.labels is None or test.labels is None
    no_lists = train.multi_labels is None or test.multi_labels is None
    if no_numbers and no_lists:
        return
    if train.class_names and test.class_names and train.class_names != test.class_names:
        only = sorted(set(train.class_names) ^ set(test.class_names))
        raise UserError(
            f"training and test images have other classes ({', '.join(only[:5]) or 'in another order'}); name parts of one data set"
        )
    if no_numbers:
        return  # of several classes an image, those without a training image are left out by the task, which counts them
    new = sorted(set(test.labels) - set(train.labels))
    if new:
        name = test.class_names[new[0]] if test.class_names else new[0]
        raise UserError(
            f"{len(new)} labels of the test images, such as {name}, have no training image; name parts of one data set"
        )
