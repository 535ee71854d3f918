"""Whether the labels of two sources mean the same: class numbers are compared by their names."""

from __future__ import annotations

from collections.abc import Sequence

from vision_core.images.source import ImageSource

NAMED = 4


def classes_problem(bank: ImageSource, queries: ImageSource) -> str | None:
    """Why the labels of `bank` are none of the task that `queries` set, in words, or None.

    Every class of the queries must be one of the bank's, by its name; the bank may have more of
    them, and numbers of its own. Numbers without names are compared as they are. Names against
    numbers say nothing, and so they are a problem too.
    """
    ours, theirs = _used_classes(bank), _used_classes(queries)
    if (bank.class_names is None) != (queries.class_names is None):
        named, numbered = (bank, queries) if bank.class_names else (queries, bank)
        return f"{named.description} names its classes and {numbered.description} has numbers alone, which may mean others"
    if missing := sorted(set(theirs) - set(ours), key=str):
        return f"the queries' classes {_listed(missing)} ({queries.description}) are not among {_listed(ours)} ({bank.description})"
    return None


def numbers_in_bank(bank: ImageSource, queries: ImageSource) -> dict[int, int]:
    """Label of `queries` -> the bank's label of the same class, for sources without a
    `classes_problem`."""
    if bank.class_names is None:
        return {label: label for label in set(queries.labels)}
    numbers = {name: number for number, name in enumerate(bank.class_names)}
    return {label: numbers[queries.class_names[label]] for label in set(queries.labels)}


def _used_classes(source: ImageSource) -> list[str] | list[int]:
    """Names, or numbers where there are none, of the classes that have an image."""
    numbers = sorted(set(source.labels))
    return numbers if source.class_names is None else [source.class_names[number] for number in numbers]


def _listed(names: Sequence[str | int]) -> str:
    shown = ", ".join(map(str, names[:NAMED]))
    return shown + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
