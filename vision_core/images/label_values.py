"""Interpret the values of a label column: class numbers, class names, or several classes of each
image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

from vision_core.errors import UserError

USUAL_LABELS = ("label", "labels")  # the first that is there
TASK_OF_LISTS = "several classes an image: for the task multi_label"


@dataclass(frozen=True)
class Labels:
    """The labels of a source's images.

    labels: one class number per image, or None.
    multi_labels: the numbers of all classes of each image, or None.
    class_names: the names of the classes, or None.
    from_texts: whether the classes are texts that were numbered in sorted order, so that another
        part of the data may number them differently.
    why_none: why a column that is there holds no labels, in words.
    """

    labels: list[int] | None = None
    multi_labels: list[list[int]] | None = None
    class_names: list[str] | None = None
    from_texts: bool = False
    why_none: str = ""

    def described(self) -> str:
        """The text that follows the number of images in a source's description."""
        if self.labels:
            return f", {len(set(self.labels))} classes"
        if self.multi_labels is not None:
            used = set(chain.from_iterable(self.multi_labels))
            return f", {len(used)} classes, {TASK_OF_LISTS}"
        return f", no labels: {self.why_none}" if self.why_none else ""


def read_labels(
    values: list,
    column: str,
    asked_for: bool,
    names: list[str] | None = None,
    texts_are_classes: bool = False,
) -> Labels:
    """Interpret the values of `column`, one for each image: numbers, texts, or lists of either.

    Whole numbers, also as floats, are class numbers. Each text is a class, numbered in sorted
    order. Lists hold the classes of an image. Rows of one length that hold zeros and ones, and in
    which a number comes twice, are marks for each class.

    Args:
        asked_for: whether the user named the column; then what is wrong with it is a `UserError`,
            otherwise it is `why_none`.
        names: the names of the class numbers, where the data has them.
        texts_are_classes: take texts as classes even where more than half of them differ, which
            otherwise suggests captions or ids.
    """
    try:
        return _interpret(values, column, names, texts_are_classes)
    except UserError as error:
        if asked_for:
            raise
        return Labels(why_none=str(error))


def _interpret(values: list, column: str, names: list[str] | None, texts_are_classes: bool) -> Labels:
    known = [value for value in values if value is not None]
    if any(isinstance(value, list | tuple) for value in known):
        return _from_lists(values, column, names)
    if any(isinstance(value, str) for value in known):
        return _from_texts(values, column, texts_are_classes)
    numbers = [_whole_number(value, column) for value in values]
    _check_missing(_count_missing(numbers), values, column)
    return Labels(labels=numbers, class_names=names)


def renumbered(labels: Sequence[int], own: Sequence[str], others: Sequence[str]) -> list[int]:
    """The numbers of the names `own` as numbers of the same names in `others`. Raises KeyError for a
    name that is not there."""
    number_of_name = {name: number for number, name in enumerate(others)}
    return [number_of_name[own[label]] for label in labels]


def _from_texts(values: list, column: str, texts_are_classes: bool) -> Labels:
    _check_missing(sum(not value for value in values), values, column)
    texts = [str(value) for value in values]
    names = sorted(set(texts))
    if len(names) > len(texts) / 2 and not texts_are_classes:
        raise UserError(
            f"column {column!r} holds no whole numbers, "
            f"and {len(names):,} different texts in {len(texts):,} rows are no classes; "
            "name a column of classes by ?label=COLUMN"
        )
    return Labels(labels=_numbers_of(texts, names), class_names=names, from_texts=True)


def _from_lists(values: list, column: str, names: list[str] | None) -> Labels:
    rows = [_as_list(value) for value in values]
    if any(isinstance(item, str) for item in chain.from_iterable(rows)):
        return _from_lists_of_texts(rows)
    numbers = []
    for row in rows:
        numbers.append([_whole_number(item, column) for item in row])
    _check_missing(sum(map(_count_missing, numbers)), values, column)
    if _are_marks(numbers):
        numbers = [_marked_places(row) for row in numbers]
    return Labels(multi_labels=[sorted(set(row)) for row in numbers], class_names=names)


def _from_lists_of_texts(rows: list[list]) -> Labels:
    texts = [list(map(str, row)) for row in rows]
    names = sorted(set(chain.from_iterable(texts)))
    multi_labels = [sorted(set(_numbers_of(row, names))) for row in texts]
    return Labels(multi_labels=multi_labels, class_names=names, from_texts=True)


def _as_list(value: Any) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _are_marks(rows: list[list[int]]) -> bool:
    """Whether the rows hold a mark for each class and not class numbers.

    A list of class numbers holds none of them twice; a row of marks, of three classes or more,
    always does.
    """
    have_one_length = len(set(map(len, rows))) == 1
    hold_zeros_and_ones = all(set(row) <= {0, 1} for row in rows)
    return have_one_length and hold_zeros_and_ones and any(len(set(row)) < len(row) for row in rows)


def _marked_places(marks: list[int]) -> list[int]:
    return list(compress(range(len(marks)), marks))


def _whole_number(value: Any, column: str) -> int | None:
    if value is None or value != value:  # NaN marks a missing value in a column of floats
        return None
    if isinstance(value, float) and not value.is_integer():
        raise UserError(
            f"column {column!r} holds no whole numbers but measurements such as {value:g}; "
            "round them into classes, or name another column"
        )
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(
            f"column {column!r} holds no whole numbers, texts or lists of them "
            f"but {type(value).__name__}; name another column"
        ) from None


def _numbers_of(texts: list[str], names: list[str]) -> list[int]:
    number_of_name = {name: number for number, name in enumerate(names)}
    return [number_of_name[text] for text in texts]


def _count_missing(numbers: list[int | None]) -> int:
    return sum(number is None or number < 0 for number in numbers)


def _check_missing(missing: int, values: list, column: str) -> None:
    if missing:
        raise UserError(
            f"column {column!r}: {missing} of {len(values)} labels are missing or negative; "
            "name another column"
        )


def may_hold_labels(arrow_type: Any) -> bool:
    """Whether a column of this pyarrow type holds numbers, texts or lists of them; nothing is
    read."""
    from pyarrow import types

    if types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type):
        arrow_type = arrow_type.value_type
    if types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    is_number = types.is_integer(arrow_type) or types.is_boolean(arrow_type) or types.is_floating(arrow_type)
    is_text = types.is_string(arrow_type) or types.is_large_string(arrow_type)
    return is_number or is_text or types.is_null(arrow_type)


def label_column(types: dict[str, Any], wanted: str | None) -> str | None:
    """Choose the column of labels by name and pyarrow type: the one that is wanted, else `label` or
    `labels`, or None.

    Raises UserError where the wanted column holds something else.
    """
    if wanted is None:
        usual = (name for name in USUAL_LABELS if name in types and may_hold_labels(types[name]))
        return next(usual, None)
    if not may_hold_labels(types[wanted]):
        raise UserError(
            f"column {wanted!r} holds no whole numbers, texts or lists of them; name another by ?label=COLUMN"
        )
    return wanted
