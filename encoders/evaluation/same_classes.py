"""Whether the labels of two sources mean the same: class numbers are compared by their names."""

from __future__ import annotations

from collections.abc import Sequence

from vision_core.images.source import ImageSource

MOST_NAMED = 4


def classes_problem(bank: ImageSource, queries: ImageSource) -> str | None:
    """Why the labels of `bank` do not serve the task that `queries` set, in words, or None.

    Every class of the queries must be one of the bank's, by its name; the bank may have more of
    them, and numbers of its own. Numbers without names are compared as they are. Names cannot be
    compared with numbers, so that is a problem too.
    """
    if (bank.class_names is None) != (queries.class_names is None):
        return _names_and_numbers(bank, queries)
    in_bank = _used_classes(bank)
    missing = sorted(set(_used_classes(queries)) - set(in_bank), key=str)
    if missing:
        return (
            f"the queries' classes {_listed(missing)} ({queries.description}) "
            f"are not among {_listed(in_bank)} ({bank.description})"
        )
    return None


def _names_and_numbers(bank: ImageSource, queries: ImageSource) -> str:
    named = bank if bank.class_names else queries
    numbered = queries if named is bank else bank
    return (
        f"{named.description} names its classes and {numbered.description} has numbers alone, "
        "which may mean others"
    )


def numbers_in_bank(bank: ImageSource, queries: ImageSource) -> dict[int, int]:
    """Label of `queries` -> the bank's label of the same class, for sources without a
    `classes_problem`."""
    used = set(queries.labels)
    if bank.class_names is None:
        return {label: label for label in used}
    numbers = {name: number for number, name in enumerate(bank.class_names)}
    return {label: numbers[queries.class_names[label]] for label in used}


def _used_classes(source: ImageSource) -> list[str] | list[int]:
    """The names of the classes that have an image, or their numbers where they have no names."""
    numbers = sorted(set(source.labels))
    return numbers if source.class_names is None else [source.class_names[number] for number in numbers]


def _listed(names: Sequence[str | int]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(map(str, names[:MOST_NAMED]))
    more = len(names) - MOST_NAMED
    return f"{shown} and {more:,} more" if more > 0 else shown
