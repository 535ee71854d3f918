"""Which images an evaluation used: those that could not be read are named and counted, and those
that are shown twice are found."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vision_core.errors import UserError
from vision_core.images.source import UnreadableSample
from vision_core.unreadable import cure

MAX_BAD_FRACTION = 0.01  # as in pretraining
MOST_NAMED = 5
HASH_WORDS = 2  # int64 numbers of a content's hash


def check_share(bad: Sequence[UnreadableSample], looked_at: int, max_fraction: float, part: str) -> None:
    """Raise UserError where more than this share of `looked_at` images cannot be read.

    The images of each part are counted by themselves, because 13 unreadable ones among 16 test
    images spoil a figure however many training images there are. One image is forgiven unless the
    share is 0: a share of a small set is no finer.
    """
    allowed = max(max_fraction * looked_at, 1) if max_fraction else 0
    if len(bad) > allowed:
        raise UserError(
            f"{len(bad)} of {looked_at:,} {part} could not be read, more than "
            f"max_bad_fraction={max_fraction:g}: {in_words(bad)}; "
            f"{_cure_of(bad[0])}; or remove them, or raise --max_bad_fraction"
        )


def _cure_of(sample: UnreadableSample) -> str:
    """The cure of the first of a sample's reasons, which may be that of its mask or depth."""
    first = sample.reason.partition(", ")[0]
    return cure(first.removeprefix("mask ").removeprefix("depth "))


def none_readable(description: str, bad: Sequence[UnreadableSample]) -> UserError:
    """The error of a program that could read no image at all: the most frequent reason, the first
    such image and the cure."""
    if not bad:
        return UserError(f"{description} holds no image; name other images")
    counts = Counter(sample.reason for sample in bad)
    reason, count = counts.most_common(1)[0]
    first = next(sample for sample in bad if sample.reason == reason)
    others = "" if count == len(bad) else f", {count:,} of them by this reason"
    return UserError(
        f"none of {len(bad):,} images of {description} could be read{others}: "
        f"{first.id} ({reason}); {_cure_of(first)}"
    )


def in_words(bad: Sequence[UnreadableSample]) -> str:
    """The first names with their reasons, and how many more there are."""
    named = ", ".join(f"{sample.id} ({sample.reason})" for sample in bad[:MOST_NAMED])
    more = len(bad) - MOST_NAMED
    return f"{named} and {more:,} more" if more > 0 else named


def content_hash(view: Tensor) -> Tensor:
    """`[2]` int64 that only the same pixels have: a hash of type, shape and values of what an
    encoder is shown, before normalisation.

    It is a hash of pixels, not of a file's bytes: the same picture in another container, or with
    other metadata, is the same picture. A picture that was compressed anew has other pixels and
    counts as another one.
    """
    # processors compute SHA-256 in hardware, twice as fast as blake2b
    digest = hashlib.sha256(f"{view.dtype} {tuple(view.shape)}".encode())
    digest.update(view.contiguous().numpy())
    return torch.from_numpy(np.frombuffer(digest.digest(), dtype=np.int64)[:HASH_WORDS].copy())


def found_in(contents: Tensor, others: Tensor) -> Tensor:
    """`[n]` bool: which of the hashes `[n, 2]` are among `[m, 2]`."""
    known = set(map(tuple, others.tolist()))
    return torch.tensor([tuple(content) in known for content in contents.tolist()], dtype=torch.bool)
