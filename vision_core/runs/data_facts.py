"""Remember the data of a run in its checkpoints, and say in one line what has changed since.

A run that goes on with other images or rows takes another course than without the stop, and nothing
else of the run would say so. Looked at are the names, sizes and times of change of files, never
their content: images that rows of conversations name are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vision_core.errors import UserError
from vision_core.images.source import ImageSource, ImageStream

ChangedData = Literal["note", "refuse"]
WHAT_FOLLOWS = {
    "count": "what is drawn from here on is another choice than without the stop",
    "content": "what is drawn from here on is not what was there before",
    "times": "a copy, or other content under the same names, with which the course would be another one",
}


@dataclass(frozen=True)
class DataFacts:
    """Of one source of a run.

    name: the option that names it, with a number where there are several. description: one line for
    people. count: of images or rows, None for a stream. unit: what is counted. content: a hash over
    names and sizes, which a copy elsewhere has too. times: a hash over times of change, "" where
    there are none.
    """

    name: str
    description: str
    count: int | None
    unit: str
    content: str
    times: str


def image_facts(name: str, source: ImageSource | ImageStream) -> DataFacts:
    """Of a source of images; of one of which a part is held out, the whole. Looks up every file
    once."""
    whole = getattr(source, "source", source)
    count = len(whole) if isinstance(whole, ImageSource) else None
    content, times = whole.state_of_files()
    return DataFacts(name, whole.description, count, "images", content, times)


def facts_as_json(facts: Iterable[DataFacts]) -> list[dict[str, Any]]:
    """For a checkpoint."""
    return [asdict(each) for each in facts]


def data_changes(before: Sequence[Mapping[str, Any]] | None, now: Iterable[DataFacts]) -> str:
    """What has changed since `facts_as_json` gave `before`, in words, or "". Older checkpoints hold
    no facts, and None stands for them."""
    known = {each["name"]: each for each in before or ()}
    changes = [(facts.name, _change(known[facts.name], facts)) for facts in now if facts.name in known]
    return "; ".join(f"{name} has {change}" for name, change in changes if change)


def tell_changed_data(
    checkpoint: str, before: Sequence[Mapping[str, Any]] | None, now: Iterable[DataFacts], wanted: ChangedData
) -> list[str]:
    """Lines for the user of a run that goes on from `checkpoint`. Raises UserError where data has
    changed and `wanted` is "refuse"."""
    changes = data_changes(before, now)
    if changes and wanted == "refuse":
        raise UserError(
            f"the data has changed since {checkpoint}: {changes}; put it back, or go on with it by "
            "--changed_data note"
        )
    return [f"note            the data has changed since {checkpoint}: {changes}"] if changes else []


def _change(before: Mapping[str, Any], now: DataFacts) -> str:
    """In what a source differs, beginning with its largest difference, or ""."""
    if before["count"] != now.count and None not in (before["count"], now.count):
        difference = now.count - before["count"]
        more = "more" if difference > 0 else "fewer"
        return (
            f"{abs(difference):,} {now.unit} {more} ({now.count:,} instead of {before['count']:,}): "
            f"{WHAT_FOLLOWS['count']}"
        )
    if before["content"] != now.content:
        number = "the same number" if now.count is not None else "a stream"
        return f"{number}, other names or sizes: {WHAT_FOLLOWS['content']}"
    if before["times"] != now.times:
        return f"the same names and sizes, written anew since: {WHAT_FOLLOWS['times']}"
    return ""
