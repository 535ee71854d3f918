"""What a task gives."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class TaskResult:
    """metrics: name -> figure, the first one is the headline; percent unless the name says another unit. protocol: how it was measured, in words. picture:
    of the first test images, or None. details: more, for the JSON.
    """

    metrics: dict[str, float]
    protocol: str
    picture: Image.Image | None = None
    details: dict[str, Any] = field(default_factory=dict)
