"""What a task gives."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class TaskResult:
    """metrics: name -> figure, the first one is the headline; percent unless the name says another
    unit. protocol: how it was measured, in words. picture: of the first test images, or None.
    details: more, for the JSON. images: how many were used, by part: those that could be read, and
    of the training images those that are no test images.
    """

    metrics: dict[str, float]
    protocol: str
    picture: Image.Image | None = None
    details: dict[str, Any] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    @property
    def images_in_words(self) -> str:
        """`59 training and 21 test images`, or those of the one part that was used."""
        words = {"train": "training", "test": "test"}
        counted = " and ".join(f"{count:,} {words[part]}" for part, count in self.images.items())
        return f"{counted} images"
