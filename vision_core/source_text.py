"""The grammar of source texts, `KIND:WHERE?option=value&option=value`: images, conversations,
tasks and encoders are all named this way. Imports nothing heavy.

A reader splits the options off with `split_options`, finds out the kind, and calls
`refuse_unknown`. `name` is how messages call the text, for example `dataset 'hf:x?y=z'`.
"""

import difflib
import re
from collections.abc import Collection, Mapping

from vision_core.errors import UserError


def split_options(text: str, name: str) -> tuple[str, dict[str, str]]:
    """`HEAD?a=b&c=d` as (HEAD, {a: b, c: d}).

    A `?` without `option=` behind it belongs to the head, where it may be part of a glob pattern.

    Raises UserError for an option without a value and for one that is given twice.
    """
    head, tail = re.fullmatch(r"(.*?)(?:\?(\w+=[^?]*))?", text, re.DOTALL).groups(default="")
    options: dict[str, str] = {}
    for item in tail.split("&") if tail else []:
        key, _, value = item.partition("=")
        if not value:
            raise UserError(f"{name}: option {key!r} has no value; write {key}=VALUE once")
        if key in options:
            raise UserError(f"{name}: option {key!r} is given twice; write {key}=VALUE once")
        options[key] = value
    return head, options


def refuse_unknown(options: Mapping[str, str], known: Collection[str], name: str, kind: str) -> None:
    """Raise UserError for an option that a source of this kind does not have, with the nearest
    that it has."""
    for key in options:
        if key not in known:
            listed = ", ".join(known) or "none"
            raise UserError(
                f"{name}: unknown option {key!r}{did_you_mean(key, known)}; options of {kind}: {listed}"
            )


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`, did you mean 'x'?` where a known word is spelt like this one, and otherwise nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def true_or_false(options: Mapping[str, str], key: str, name: str, default: bool = False) -> bool:
    """The value of an option that is `true` or `false`. Raises UserError for any other text."""
    value = options.get(key, str(default).lower())
    if value not in ("true", "false"):
        raise UserError(f"{name}: {key}={value} is neither true nor false")
    return value == "true"


def whole_number(options: Mapping[str, str], key: str, name: str, default: int) -> int:
    """The value of an option that is a whole number from 0. Raises UserError for any other text."""
    value = options.get(key, str(default))
    if not re.fullmatch(r"[0-9]+", value):
        raise UserError(f"{name}: {key}={value} is no whole number")
    return int(value)
