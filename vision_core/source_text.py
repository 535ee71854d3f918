"""What names a source of conversations: `kind:where?option=value&option=value`. Imports nothing
heavy."""

from collections.abc import Mapping

from vision_core.errors import UserError

COLUMN_OPTIONS = ("question", "answer", "thoughts", "caption", "image")
ROW_OPTIONS = {"images", "follow_links", "max_pixels", "http", "weight", *COLUMN_OPTIONS}
STREAM_OPTIONS = {"stream", "shuffle_buffer"}
OPTIONS = {
    "llava": ROW_OPTIONS,
    "messages": ROW_OPTIONS,
    "parquet": ROW_OPTIONS | STREAM_OPTIONS,
    "hf": ROW_OPTIONS | STREAM_OPTIONS | {"split", "revision"},
    "scenes": {"count", "size", "seed", "split", "turns", "weight"},
}


def parse_source(
    text: str,
    known: Mapping[str, set[str]] = OPTIONS,
    what: str = "conversations",
) -> tuple[str, str, dict[str, str]]:
    """(kind, where, options). known: the names of options by kind. Raises UserError for another
    kind or option."""
    head, _, tail = text.partition("?")
    kind, colon, where = head.partition(":")
    if kind not in known or (kind != "scenes" and not where):
        raise UserError(
            f"{text!r} names no {what}; write KIND:WHERE with a kind of {', '.join(known)}"
        )
    options = dict(item.partition("=")[::2] for item in tail.split("&")) if tail else {}
    unknown = sorted(set(options) - known[kind])
    if unknown:
        options_of_kind = ", ".join(sorted(known[kind])) or "none"
        raise UserError(
            f"{text!r}: unknown option {unknown[0]!r}; options of {kind}: {options_of_kind}"
        )
    return kind, where, options


def is_stream(text: str) -> bool:
    """Whether a source is to be read as it arrives. Raises UserError for options that contradict
    each other."""
    options = parse_source(text)[2]
    asked = options.get("stream", "false")
    if asked not in ("true", "false"):
        raise UserError(f"{text!r}: stream={asked} is neither true nor false")
    if asked == "false" and "shuffle_buffer" in options:
        cure = "leave it out, or add stream=true"
        raise UserError(
            f"{text!r}: shuffle_buffer is of streams, all others are shuffled whole; {cure}"
        )
    return asked == "true"
