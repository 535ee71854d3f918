"""Makes the crops and masks of every step from images: stateless draws, exact resume, unreadable
images skipped and named."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from pretrain.batches import NUM_GLOBAL_CROPS
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

Crops = tuple[list[Tensor], list[Tensor]]  # global, local


class StepMasks:
    """The block masks of the two global crops of one slot, drawn for a complete global batch from
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
        self.grid = grid
        self.global_batch = global_batch
        self.seed = seed
        self.probability = probability
        self.ratio = ratio
        self.exact = exact
        self._targets: tuple[int, np.ndarray] | None = None

    def __call__(self, step: int, slot: int) -> Tensor:
        """`[2, N]` bool. Crop `view` of slot `s` is crop `view * global_batch + s` of the batch
        whose ratios are stratified."""
        masks = []
        for view in range(NUM_GLOBAL_CROPS):
            crop = view * self.global_batch + slot
            target = int(self.targets(step)[crop])
            generator = numpy_generator(self.seed, "mask", step, crop)
            masks.append(block_mask(self.grid, target, generator, self.exact))
        return torch.from_numpy(np.stack(masks)).flatten(1)

    def targets(self, step: int) -> np.ndarray:
        """Masked patches wanted in each of the `2 * global_batch` crops."""
        if self._targets is None or self._targets[0] != step:
            targets = mask_targets(
                NUM_GLOBAL_CROPS * self.global_batch,
                self.grid[0] * self.grid[1],
                self.probability,
                ratio=self.ratio,
                generator=numpy_generator(self.seed, "mask targets", step),
                exact=self.exact,
            )
            self._targets = (step, targets)
        return self._targets[1]


class SampleMaker:
    """Makes the crops and masks of one image. Both are functions of the seed: crops of the epoch
    and the image, masks of the step and the slot."""

    def __init__(self, multicrop: Callable[[Tensor], Crops], masks: StepMasks, seed: int) -> None:
        self.multicrop = multicrop
        self.masks = masks
        self.seed = seed

    def sample(self, record: ImageRecord, draw: Draw, image_key: int | str) -> dict:
        """One sample of a batch. image_key: names the image in the seed of its crops."""
        global_crops, local_crops = self.crops(record.image, draw.epoch, image_key)
        return {
            "global_crops": global_crops,  # 2 x [C, H, W]
            "local_crops": local_crops,  # L x [C, h, w]
            "masks": self.masks(draw.step, draw.slot),  # [2, N]
            "id": record.id,
        }

    def crops(self, image: Tensor, epoch: int, image_key: int | str) -> Crops:
        """The global and local crops of `[C, H, W]`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, "crops", epoch, image_key))
            return self.multicrop(image)


class IndexedCrops(Dataset):
    """`source[draw.index]` as crops and masks. An unreadable image is named and another one is
    drawn from (seed, epoch, index)."""

    def __init__(self, source: ImageSource, maker: SampleMaker) -> None:
        self.source = source
        self.maker = maker
        self.kind = OneKind()

    def __getitem__(self, draw: Draw) -> dict:
        bad: list[tuple[str, str]] = []
        redraws = numpy_generator(self.maker.seed, "redraw", draw.epoch, draw.index)
        index = draw.index
        for _ in range(MAX_REDRAWS):
            try:
                record = self.source[index]
            except UnreadableImage as error:
                bad.append((self.source.id_of(index), error.reason))
                index = int(redraws.integers(len(self.source)))
                continue
            self.kind.look_at(record.image, record.id)
            return self.maker.sample(record, draw, draw.index) | {"bad": bad}
        name, reason = bad[-1]
        raise UserError(f"{MAX_REDRAWS} images in a row could not be read, the last was {name} ({reason})")


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
        maker: SampleMaker,
        layout: BatchLayout,
        first_step: int,
        places: dict[int, ReaderPlace] | None = None,
    ) -> None:
        self.stream = stream
        self.maker = maker
        self.kind = OneKind()
        self.layout = layout
        self.first_step = first_step
        self.places = places or {}

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        reader = worker.id if worker else 0
        readers = worker.num_workers if worker else 1
        place = self.places.get(reader) or ReaderPlace(reader, 0, self.first_step, None)
        draws = self._draws(place, readers)
        bad: list[tuple[str, str]] = []
        while True:
            before = place.samples
            begins_pass = place.record is None
            for record in self._records(place):
                if isinstance(record, UnreadableSample):
                    bad.append((record.id, record.reason))
                    continue
                self.kind.look_at(record.image, record.id)
                place = place._replace(samples=place.samples + 1, record=record.place)
                draw = next(draws)._replace(epoch=place.epoch)
                yield self.maker.sample(record, draw, record.id) | {"bad": bad, "place": place}
                bad = []
            if place.samples == before and begins_pass:
                return  # no shard for this worker; the others go on
            place = place._replace(epoch=place.epoch + 1, record=None)

    def _records(self, place: ReaderPlace) -> Iterator[ImageRecord | UnreadableSample]:
        """What is left of this process's share of a pass behind `place`."""
        return self.stream.records(self.layout.rank, self.layout.processes, place.epoch, place.record)

    def _draws(self, place: ReaderPlace, readers: int) -> Iterator[Draw]:
        """Step and slot of each record of a reader behind `place`: readers take turns, one
        micro-batch each."""
        micro_batch = place.reader + place.samples // self.layout.per_device * readers
        while True:
            step, part = divmod(micro_batch, self.layout.micro_batches)
            for slot in self.layout.slots(part):
                yield Draw(self.first_step + step, slot, 0, 0)
            micro_batch += readers


def collate(samples: list[dict]) -> dict:
    """A batch in crop-major order: the first crops of all images, then their second crops.

    global_crops `[2B, C, H, W]`, local_crops `[L*B, C, h, w]` or None, masks `[2B, N]`,
    mask_indices `[M]`, mask_weights `[M]`.
    """
    masks = torch.stack([sample["masks"] for sample in samples], dim=1).flatten(0, 1)
    bad: list[tuple[str, str]] = []
    for sample in samples:
        bad += sample["bad"]
    return {
        "global_crops": _crop_major([sample["global_crops"] for sample in samples]),
        "local_crops": _crop_major([sample["local_crops"] for sample in samples]),
        "masks": masks,
        "mask_indices": masks.flatten().nonzero().squeeze(1),
        "mask_weights": masked_token_weights(masks),
        "ids": [sample["id"] for sample in samples],
        "bad": bad,
        "place": samples[-1].get("place"),
    }


def _crop_major(crops_of_images: list[list[Tensor]]) -> Tensor | None:
    """The crops of B images, V of each `[C, H, W]`, as `[V*B, C, H, W]`; None where V is 0."""
    crops: list[Tensor] = []
    for crops_of_view in zip(*crops_of_images, strict=True):
        crops += crops_of_view
    return torch.stack(crops) if crops else None


def make_loader(
    source: ImageSource | ImageStream,
    multicrop: Callable[[Tensor], Crops],
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
    maker = SampleMaker(multicrop, masks, seed)
    if isinstance(source, ImageStream):
        began = places.began if places else first_step
        readers = places.readers if places else None
        crops = StreamedCrops(source, maker, layout, began, readers)
        return DataLoader(crops, batch_size=layout.per_device, drop_last=True, **settings)
    sampler = StepSampler(len(source), layout, seed, first_step, last_step)
    return DataLoader(IndexedCrops(source, maker), batch_sampler=sampler, **settings)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    leave_signals_to_parent()
