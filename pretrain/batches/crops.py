"""The crops and masks of every step: stateless draws, exact resume, unreadable images skipped and
named."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from pretrain.batches.masking import block_mask, mask_targets
from pretrain.batches.order import BatchLayout, Draw, StepSampler
from pretrain.batches.stream_places import ReaderPlace, StreamPlaces
from pretrain.losses.ibot import masked_token_weights
from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.one_kind import OneKind
from vision_core.images.source import ImageRecord, ImageSource, ImageStream, UnreadableSample
from vision_core.processes.data_workers import leave_signals_to_parent
from vision_core.randomness import numpy_generator, seed_of

MAX_REDRAWS = 20


Crops = tuple[list[torch.Tensor], list[torch.Tensor]]


class StepMasks:
    """The block masks of the two global crops of one slot, drawn for the whole global batch from
    (seed, step, slot)."""

    def __init__(
        self,
        grid: tuple[int, int],
        global_batch: int,
        seed: int,
        probability: float = 0.5,
        ratio: tuple[float, float] = (0.1, 0.5),
        exact: bool = False,
    ) -> None:
        self.grid, self.global_batch, self.seed = grid, global_batch, seed
        self.probability, self.ratio, self.exact = probability, ratio, exact
        self._targets: tuple[int, np.ndarray] | None = None

    def __call__(self, step: int, slot: int) -> torch.Tensor:
        """[2, N] bool; crop `view` of slot `s` is crop `view * global_batch + s` of the batch whose
        ratios are stratified."""
        crops = [view * self.global_batch + slot for view in range(2)]
        masks = [
            block_mask(
                self.grid,
                int(self.targets(step)[crop]),
                numpy_generator(self.seed, "mask", step, crop),
                self.exact,
            )
            for crop in crops
        ]
        return torch.from_numpy(np.stack(masks)).flatten(1)

    def targets(self, step: int) -> np.ndarray:
        """Masked patches wanted in each of the `2 * global_batch` crops."""
        if self._targets is None or self._targets[0] != step:
            generator = numpy_generator(self.seed, "mask targets", step)
            num_patches = self.grid[0] * self.grid[1]
            drawn = mask_targets(
                2 * self.global_batch, num_patches, self.probability, self.ratio, generator, self.exact
            )
            self._targets = (step, drawn)
        return self._targets[1]


def cut(
    record: ImageRecord,
    multicrop: Callable[[torch.Tensor], Crops],
    masks: StepMasks,
    draw: Draw,
    seed: int,
    key,
) -> dict:
    """The crops and masks of one image. `key` names the image in the seed of its crops."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "crops", draw.epoch, key))
        global_crops, local_crops = multicrop(record.image)
    return {
        "global_crops": global_crops,
        "local_crops": local_crops,
        "masks": masks(draw.step, draw.slot),
        "id": record.id,
    }


class IndexedCrops(Dataset):
    """`source[draw.index]` as crops and masks. An unreadable image is named and another one is
    drawn from (seed, epoch, index)."""

    def __init__(
        self, source: ImageSource, multicrop: Callable[[torch.Tensor], Crops], masks: StepMasks, seed: int
    ) -> None:
        self.source, self.multicrop, self.masks, self.seed = source, multicrop, masks, seed
        self.kind = OneKind()

    def __getitem__(self, draw: Draw) -> dict:
        bad: list[tuple[str, str]] = []
        redraws = numpy_generator(self.seed, "redraw", draw.epoch, draw.index)
        index = draw.index
        for _ in range(MAX_REDRAWS):
            try:
                record = self.source[index]
            except UnreadableImage as error:
                bad.append((self.source.id_of(index), error.reason))
                index = int(redraws.integers(len(self.source)))
                continue
            self.kind.look_at(record.image, record.id)
            return cut(record, self.multicrop, self.masks, draw, self.seed, draw.index) | {"bad": bad}
        raise UserError(
            f"{MAX_REDRAWS} images in a row could not be read, the last was {bad[-1][0]} ({bad[-1][1]})"
        )


class StreamedCrops(IterableDataset):
    """Crops of a stream's records, pass after pass. The order is the stream's and depends on the
    number of readers.

    Every sample says where its reader is behind it; `places` holds that of each reader from which a
    resumed run goes on. A reader without a place begins a new pass, numbered by the step at which
    the run began to read so.
    """

    def __init__(
        self,
        stream: ImageStream,
        multicrop: Callable[[torch.Tensor], Crops],
        masks: StepMasks,
        seed: int,
        layout: BatchLayout,
        first_step: int,
        places: dict[int, ReaderPlace] | None = None,
    ) -> None:
        self.stream, self.multicrop, self.masks, self.seed = stream, multicrop, masks, seed
        self.kind = OneKind()
        self.layout, self.first_step, self.places = layout, first_step, places or {}

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        reader, readers = (worker.id, worker.num_workers) if worker else (0, 1)
        at = self.places.get(reader) or ReaderPlace(reader, 0, self.first_step, None)
        samples, epoch, start = at.samples, at.epoch, at.record
        draws, bad = self._draws(reader + samples // self.layout.per_device * readers, readers), []
        while True:
            before = samples
            for record in self.stream.records(self.layout.rank, self.layout.processes, epoch, start):
                if isinstance(record, UnreadableSample):
                    bad.append((record.id, record.reason))
                    continue
                self.kind.look_at(record.image, record.id)
                samples += 1
                draw = next(draws)._replace(epoch=epoch)
                place = ReaderPlace(reader, samples, epoch, record.place)
                yield cut(record, self.multicrop, self.masks, draw, self.seed, record.id) | {
                    "bad": bad,
                    "place": place,
                }
                bad = []
            if samples == before and start is None:
                return  # no shard for this worker; the others go on
            epoch, start = epoch + 1, None

    def _draws(self, micro_batch: int, readers: int) -> Iterator[Draw]:
        """Step and slot of each record of this reader from `micro_batch` on: readers take turns,
        one micro-batch each."""
        while True:
            step, part = divmod(micro_batch, self.layout.micro_batches)
            for slot in self.layout.slots(part):
                yield Draw(self.first_step + step, slot, 0, 0)
            micro_batch += readers


def collate(samples: list[dict]) -> dict:
    """A batch in crop-major order: global_crops [2B, ...], local_crops [L*B, ...] or None, masks
    [2B, N] and their flat positions."""

    def crop_major(name: str) -> torch.Tensor | None:
        crops = [crop for view in zip(*(sample[name] for sample in samples), strict=True) for crop in view]
        return torch.stack(crops) if crops else None

    masks = torch.stack([sample["masks"] for sample in samples], dim=1).flatten(0, 1)
    return {
        "global_crops": crop_major("global_crops"),
        "local_crops": crop_major("local_crops"),
        "masks": masks,
        "mask_indices": masks.flatten().nonzero().squeeze(1),
        "mask_weights": masked_token_weights(masks),
        "ids": [sample["id"] for sample in samples],
        "bad": [bad for sample in samples for bad in sample["bad"]],
        "place": samples[-1].get("place"),
    }


def make_loader(
    source: ImageSource | ImageStream,
    multicrop: Callable[[torch.Tensor], Crops],
    masks: StepMasks,
    layout: BatchLayout,
    seed: int,
    first_step: int,
    last_step: int,
    num_workers: int,
    pin_memory: bool = False,
    places: StreamPlaces | None = None,
) -> DataLoader:
    """Batches of this process for steps `first_step .. last_step - 1`, `layout.micro_batches` per
    step. A stream goes on from `places`."""
    settings = {
        "collate_fn": collate,
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "worker_init_fn": _start_worker,
        "prefetch_factor": 4 if num_workers else None,
    }
    if isinstance(source, ImageStream):
        began, readers = (places.began, places.readers) if places else (first_step, None)
        crops = StreamedCrops(source, multicrop, masks, seed, layout, began, readers)
        return DataLoader(crops, batch_size=layout.per_device, drop_last=True, **settings)
    sampler = StepSampler(len(source), layout, seed, first_step, last_step)
    return DataLoader(IndexedCrops(source, multicrop, masks, seed), batch_sampler=sampler, **settings)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    leave_signals_to_parent()
