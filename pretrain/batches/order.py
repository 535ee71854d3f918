"""Orders the images: the place of each image in the global batch of every step is a function of the
seed and the step alone."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from vision_core.errors import UserError
from vision_core.randomness import numpy_generator


class Draw(NamedTuple):
    """One image of one step: `slot` is its place in the global batch, `index` its place in the
    source."""

    step: int
    slot: int
    epoch: int
    index: int


class BatchLayout(NamedTuple):
    """How a global batch is shared out: `micro_batches` per step, `processes` side by side,
    `per_device` images each."""

    per_device: int
    micro_batches: int
    processes: int
    rank: int

    @property
    def global_batch(self) -> int:
        """Images of a step, over all processes."""
        return self.per_device * self.micro_batches * self.processes

    def check(self, num_images: int) -> None:
        """Raise `UserError` where a global batch needs more images than there are."""
        if num_images < self.global_batch:
            fits = num_images // (self.micro_batches * self.processes)
            cure = "give more images, or start fewer processes"
            if fits:
                cure = f"lower --per_device_train_batch_size to {fits} at most"
            raise UserError(
                f"the dataset has {num_images} images, fewer than the global batch of {self.global_batch} "
                f"(per_device_train_batch_size x gradient_accumulation_steps x processes); {cure}"
            )

    def slots(self, micro_batch: int) -> range:
        """The places in the global batch that this process fills in one micro-batch."""
        start = (micro_batch * self.processes + self.rank) * self.per_device
        return range(start, start + self.per_device)


class StepSampler(Sampler[list[Draw]]):
    """Gives the batches of `Draw`s for steps `first_step .. last_step - 1`, a function of (seed,
    step) alone.

    An epoch is a seeded permutation divided into full global batches; the remainder of fewer images
    than a batch is left to the next epoch's permutation.
    """

    def __init__(
        self, num_images: int, layout: BatchLayout, seed: int, first_step: int, last_step: int
    ) -> None:
        layout.check(num_images)
        self.num_images = num_images
        self.layout = layout
        self.seed = seed
        self.first_step = first_step
        self.last_step = last_step
        self.steps_per_epoch = num_images // layout.global_batch

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.layout.micro_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch = -1
        order = np.empty(0, dtype=np.int64)
        for step in range(self.first_step, self.last_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = numpy_generator(self.seed, "order", epoch).permutation(self.num_images)
            start = step % self.steps_per_epoch * self.layout.global_batch
            for micro_batch in range(self.layout.micro_batches):
                slots = self.layout.slots(micro_batch)
                yield [Draw(step, slot, epoch, int(order[start + slot])) for slot in slots]
