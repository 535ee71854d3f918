"""A check that images which share a batch or a comparison are of one kind: pictures of 8 bits, or
numbers in a scale of their own."""

import torch
from torch import Tensor

from vision_core.errors import UserError


class OneKind:
    """Compares the images that go to one model with the first of them.

    Without `?scale=` a file of 8 bits is read as uint8 of 0 to 255, which every model takes as 0 to
    1, and a file of floats is read as the numbers that it holds. A tensor with both of them would
    give a model wrong values.
    """

    def __init__(self) -> None:
        self.first: tuple[torch.dtype, str] | None = None

    def look_at(self, image: Tensor, name: str) -> None:
        """Check the next image, `[C, H, W]` as its source gives it. `name` is for messages.

        Raises UserError where its type differs from that of the first image.
        """
        if self.first is None:
            self.first = (image.dtype, name)
        dtype, first = self.first
        if image.dtype == dtype:
            return
        is_picture = image.dtype == torch.uint8
        picture = name if is_picture else first
        numbers = first if is_picture else name
        raise UserError(
            f"the data mixes pictures of 8 bits ({picture}) and numbers without a known range ({numbers}); "
            "give ?scale= in the source, such as ?scale=0,4095 or ?scale=p1,p99, or leave one of the two kinds out"
        )
