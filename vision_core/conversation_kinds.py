"""Lists the kinds of sources of conversations and the options of each.

It imports nothing heavy, so that programs refuse a mistyped source before they load torch.
"""

from collections.abc import Collection, Mapping

from vision_core.errors import UserError
from vision_core.source_text import refuse_unknown, split_options, true_or_false

COLUMN_OPTIONS = ("question", "answer", "thoughts", "caption", "image")
ROW_OPTIONS = ("images", "follow_links", "max_pixels", "http", "weight", *COLUMN_OPTIONS)
STREAM_OPTIONS = ("streaming", "shuffle_buffer")
CONVERSATION_KINDS: dict[str, tuple[str, ...]] = {
    "llava": ROW_OPTIONS,
    "messages": ROW_OPTIONS,
    "parquet": (*ROW_OPTIONS, *STREAM_OPTIONS),
    "hf": (*ROW_OPTIONS, *STREAM_OPTIONS, "split", "revision"),
    "scenes": ("count", "size", "seed", "split", "turns", "weight"),
}


def parse_conversations(
    text: str, kinds: Mapping[str, Collection[str]] = CONVERSATION_KINDS, what: str = "conversations"
) -> tuple[str, str, dict[str, str]]:
    """A source text as (kind, where, options).

    kinds: the options of each kind.
    what: the name of what the text opens, for messages.
    Raises UserError for an unknown kind or option, and where the text names no place.
    """
    head, options = split_options(text, repr(text))
    kind, _, where = head.partition(":")
    if kind not in kinds or (kind != "scenes" and not where):
        known = ", ".join(kinds)
        raise UserError(f"{text!r} names no {what}; write KIND:WHERE with a kind of {known}")
    refuse_unknown(options, kinds[kind], repr(text), kind)
    return kind, where, options


def is_stream(text: str) -> bool:
    """Whether a source of conversations is read as it arrives (`streaming=true`).

    Raises UserError for options that contradict each other.
    """
    options = parse_conversations(text)[2]
    streamed = true_or_false(options, "streaming", repr(text))
    if not streamed and "shuffle_buffer" in options:
        reason = "only streams have a shuffle_buffer, all other sources are shuffled completely"
        raise UserError(f"{text!r}: {reason}; leave it out, or add streaming=true")
    return streamed
