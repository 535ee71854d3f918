"""The result of a task, and how its figures are shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

PARTS_IN_WORDS = {"train": "training", "test": "test"}


@dataclass(frozen=True)
class TaskResult:
    """What a task has measured.

    Attributes:
        metrics: name -> figure. The first one is the headline. Figures are percentages unless the
            name says another unit.
        protocol: how they were measured, in words.
        picture: of the first test images, or None.
        details: more, for the JSON.
        images: how many images were used, by part: those that could be read, and of the training
            images those that are not test images too.
    """

    metrics: dict[str, float]
    protocol: str
    picture: Image.Image | None = None
    details: dict[str, Any] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    @property
    def images_in_words(self) -> str:
        """`59 training and 21 test images`, or those of the one part that was used."""
        counted = (f"{count:,} {PARTS_IN_WORDS[part]}" for part, count in self.images.items())
        return f"{' and '.join(counted)} images"

    @property
    def headline(self) -> tuple[str, float]:
        """The name and the value of the first figure."""
        return next(iter(self.metrics.items()))

    def without_picture(self) -> dict[str, Any]:
        """All attributes but the picture, for JSON."""
        attributes = dict(vars(self))
        del attributes["picture"]
        return attributes


def figure_in_words(value: float) -> str:
    """A figure with three significant digits below 10, and one decimal above."""
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
