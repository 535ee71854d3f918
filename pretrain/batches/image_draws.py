"""The images of SigLIP and MAE in an exact order, with what is random in them a function of epoch
and index."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.one_kind import OneKind
from vision_core.images.source import ImageSource
from vision_core.randomness import numpy_generator

Item = dict[str, Any]


class ImageDraws(Dataset):
    """The images of `source`, once for every draw. Draw number `epoch * len(source) + index` is
    `make(image, epoch, index)`.

    Images are `[3, H, W]`, uint8, or float32 of 0..1 with `?scale=`. Raises UserError, which names
    the image, for one that cannot be read, or is of another kind than those before it.
    """

    def __init__(self, source: ImageSource, make: Callable[[Tensor, int, int], Item]) -> None:
        self.source = source
        self.make = make
        self.kind = OneKind()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: int) -> Item:
        epoch, index = divmod(draw, len(self.source))
        try:
            record = self.source[index]
        except UnreadableImage as error:
            raise UserError(
                f"{self.source.id_of(index)} cannot be read ({error}); mend it or take it out of the data"
            ) from None
        self.kind.look_at(record.image, record.id)
        return self.make(record.image, epoch, index)


class EpochOrder(Sampler[int]):
    """The draws of an epoch in an order that is a function of (seed, epoch)."""

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images = num_images
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls it before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[int]:
        order = numpy_generator("draws", self.seed, self.epoch).permutation(self.num_images)
        return iter((self.epoch * self.num_images + order).tolist())
