"""Check that values read from somebody else's JSON have the types that a dataclass declares."""

from __future__ import annotations

import math
import reprlib
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vision_core.errors import UserError
from vision_core.printable import shortened

SHOWN_OF_A_VALUE = 60


def check_types(dataclass_type: type, values: Any, name: str) -> None:
    """Raise UserError, which begins with `name`, where `values` is no mapping or one of them has
    another type than the field of its name.

    Fields are bool, int, float, str, dict, Literal, tuple (a list in JSON) of those, or one of
    these `| None`. Keys that are no fields are left to whoever makes the object.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{name} is {_shown(values)}, not an object with keys")
    hints = get_type_hints(dataclass_type)
    for key, value in values.items():
        if key in hints and not is_of(value, hints[key]):
            raise UserError(
                f"{name} says {key} = {_shown(value)}, which is not of the type {_type_name(hints[key])}"
            )


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a type; whole numbers are floats too, lists are tuples, and no
    number is infinite or NaN."""
    origin = get_origin(hint)
    inner = get_args(hint)
    if origin in (Union, types.UnionType):
        return any(is_of(value, each) for each in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, list | tuple) and _are_of(value, inner)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _are_of(values: Any, hints: tuple[Any, ...]) -> bool:
    if hints[-1] is Ellipsis:
        return all(is_of(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(
        is_of(value, hint) for value, hint in zip(values, hints, strict=True)
    )


def _shown(value: Any) -> str:
    return shortened(reprlib.repr(value), SHOWN_OF_A_VALUE)


def _type_name(hint: Any) -> str:
    return (
        hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
    )
