"""Images that share a batch, or a comparison, are of one kind: pictures of 8 bits, or numbers in a
scale of their own."""

import torch
from torch import Tensor

from vision_core.errors import UserError


class OneKind:
    """Looks at the images that go to one model, one after the other, and remembers the first.

    Without `?scale=` a file of 8 bits is read as uint8 of 0 to 255, which every model takes as 0 to
    1, and a file of floats as the numbers that it holds. In one tensor each of them would be taken
    for the other.
    """

    def __init__(self) -> None:
        self.first: tuple[torch.dtype, str] | None = None

    def look_at(self, image: Tensor, name: str) -> None:
        """image: `[C, H, W]` as its source gives it; name: for messages. Raises UserError for one
        of another type than the first."""
        if self.first is None:
            self.first = (image.dtype, name)
        dtype, first = self.first
        if image.dtype == dtype:
            return
        picture, numbers = (name, first) if image.dtype == torch.uint8 else (first, name)
        raise UserError(
            f"the data mixes pictures of 8 bits ({picture}) and numbers without a known range ({numbers}); give ?scale= in the source, "
            "such as ?scale=0,4095 or ?scale=p1,p99, or leave one of the two kinds out"
        )
