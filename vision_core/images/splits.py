"""The training and the test images of one data set, from one source text."""

from __future__ import annotations

import glob
import os
from itertools import chain
from typing import NamedTuple

from vision_core.errors import UserError
from vision_core.images.label_values import renumbered
from vision_core.images.open_source import open_source, parse_source
from vision_core.images.pixel_options import Scale
from vision_core.images.source import ImageSource
from vision_core.images.sources.hub import NoSuchSplit
from vision_core.images.sources.tar_shards import expand_braces
from vision_core.scenes.defaults import SCENE_SPLITS

SPLIT = "{split}"
SPLIT_NAMES = {
    "train": ("train", "database"),
    "test": ("test", "queries", "held_out", "validation", "val"),
}
SCENES_SPLIT = {"train": "train", "test": "held_out"}
# matches train.parquet and train-00000-of-00001.parquet, but not train_notes.parquet
PARQUET_NAMES = f"{SPLIT}[-.]*parquet"


class Splits(NamedTuple):
    """The images to learn from and the images to judge on."""

    train: ImageSource
    test: ImageSource


def open_splits(text: str, test_text: str | None = None, num_channels: int = 3) -> Splits:
    """Open both parts of the data set that `text` names, or `text` and `test_text` as they are.

    `{split}` in the text is replaced by train (or database) and by test (or queries, held_out,
    validation, val), whichever exists first. A folder with parquet files or sub-folders of these
    names needs no `{split}`. `scenes` without a split are training and held-out scenes.

    Raises UserError where a part is not found, is a stream, or the test images have other labels
    than the training images.
    """
    if test_text is not None:
        train = _open(text, num_channels)
        test = _open(test_text, num_channels, train.pixel_options.scale)
    else:
        train = _find(text, "train", num_channels)
        test = _find(text, "test", num_channels, train.pixel_options.scale)
    _number_alike(train, test)
    _check_labels(train, test)
    return Splits(train, test)


def _candidates(text: str, part: str) -> list[str]:
    """The source texts that may name a part, the likeliest first."""
    if SPLIT in text:
        return [text.replace(SPLIT, name) for name in SPLIT_NAMES[part]]
    folder, mark, tail = text.removeprefix("folder:").partition("?")
    if os.path.isdir(folder):
        where = _files_of_split(folder) + mark + tail
        return [where.replace(SPLIT, name) for name in SPLIT_NAMES[part]]
    kind, _, options = parse_source(text)
    if kind == "scenes" and "split" not in options:
        options = {"split": SCENES_SPLIT[part], **options}
        return ["scenes?" + "&".join(f"{name}={value}" for name, value in options.items())]
    raise UserError(
        f"dataset {text!r} is one set of images; write {SPLIT} where the name of a split stands, "
        "or name the test images by --test_dataset of recipes/evaluate_encoder.py"
    )


def _files_of_split(folder: str) -> str:
    """The source text of a folder's parquet files where it has some, else of its sub-folders."""
    parquet = f"{glob.escape(folder)}/{PARQUET_NAMES}"
    for name in chain.from_iterable(SPLIT_NAMES.values()):
        if glob.glob(parquet.replace(SPLIT, name)):
            return f"parquet:{parquet}"
    return f"folder:{folder}/{SPLIT}"


def _find(text: str, part: str, num_channels: int, auto_scale: Scale | None = None) -> ImageSource:
    """Open the first candidate that exists."""
    candidates = _candidates(text, part)
    reason = ""
    for candidate in candidates:
        if _may_exist(candidate):
            try:
                return _open(candidate, num_channels, auto_scale)
            except NoSuchSplit as error:  # a data set of the hub tells it in no other way
                reason = f" ({error})"
    raise UserError(
        f"no {part} images: none of {', '.join(candidates)} exists{reason}; "
        f"write {SPLIT} where the name of a split stands, "
        "or name both parts by --dataset and --test_dataset of recipes/evaluate_encoder.py"
    )


def _may_exist(text: str) -> bool:
    kind, where, options = parse_source(text)
    if kind == "scenes":
        return options.get("split") in SCENE_SPLITS
    if kind == "hf":
        return True
    patterns = [where]
    if kind == "wds":
        patterns = list(chain.from_iterable(map(expand_braces, where.split("::"))))
    return any(os.path.exists(pattern) or glob.glob(pattern, recursive=True) for pattern in patterns)


def _open(text: str, num_channels: int, auto_scale: Scale | None = None) -> ImageSource:
    source = open_source(text, num_channels, auto_scale)
    if not isinstance(source, ImageSource):
        raise UserError(
            f"{text} is a stream; evaluation needs a source with an index: leave out streaming=true"
        )
    return source


def _number_alike(train: ImageSource, test: ImageSource) -> None:
    """Give the test images the class numbers of the training images where classes are texts, which
    each part has numbered by itself."""
    if not (train.names_from_texts and test.names_from_texts) or train.class_names == test.class_names:
        return
    new = sorted(set(test.class_names) - set(train.class_names))
    if new:
        raise UserError(
            f"{len(new)} classes of the test images, such as {new[0]!r}, have no training image; "
            "name parts of one data set"
        )
    if test.labels is not None:
        test.labels = renumbered(test.labels, test.class_names, train.class_names)
    if test.multi_labels is not None:
        test.multi_labels = [
            sorted(renumbered(row, test.class_names, train.class_names)) for row in test.multi_labels
        ]
    test.class_names = train.class_names


def _check_labels(train: ImageSource, test: ImageSource) -> None:
    """Raise UserError where the test images have labels that the training images lack."""
    have_labels = train.labels is not None and test.labels is not None
    have_multi_labels = train.multi_labels is not None and test.multi_labels is not None
    if not have_labels and not have_multi_labels:
        return
    if train.class_names and test.class_names and train.class_names != test.class_names:
        only = sorted(set(train.class_names) ^ set(test.class_names))
        raise UserError(
            f"training and test images have other classes ({', '.join(only[:5]) or 'in another order'}); "
            "name parts of one data set"
        )
    if not have_labels:
        return  # the task for several classes leaves out those without a training image, and counts them
    new = sorted(set(test.labels) - set(train.labels))
    if new:
        name = test.class_names[new[0]] if test.class_names else new[0]
        raise UserError(
            f"{len(new)} labels of the test images, such as {name}, have no training image; "
            "name parts of one data set"
        )
