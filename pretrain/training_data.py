"""The images of every step: stateless draws, exact order and resume, unreadable images skipped and named."""

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from pretrain.ibot_loss import masked_token_weights
from pretrain.masking import block_mask, mask_targets
from pretrain.stream_places import ReaderPlace, StreamPlaces
from vision_core.data_workers import end_data_workers, leave_signals_to_parent, worker_deaths_unnoticed
from vision_core.distributed import gather_objects
from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.one_kind import OneKind
from vision_core.images.sources import ImageRecord, ImageSource, ImageStream, UnreadableSample
from vision_core.images.unreadable import cure
from vision_core.randomness import numpy_generator, seed_of
from vision_core.run_folder import RunFolder

MAX_REDRAWS = 20
NAMED_IN_FLIGHT = 8

Crops = tuple[list[torch.Tensor], list[torch.Tensor]]


class Draw(NamedTuple):
    """One image of one step: `slot` is its place in the global batch, `index` its place in the source."""

    step: int
    slot: int
    epoch: int
    index: int


class BatchLayout(NamedTuple):
    """How a global batch is shared out: `micro_batches` per step, `processes` side by side, `per_device` images each."""

    per_device: int
    micro_batches: int
    processes: int
    rank: int

    @property
    def global_batch(self) -> int:
        return self.per_device * self.micro_batches * self.processes

    def check(self, num_images: int) -> None:
        """Raise `UserError` where a global batch needs more images than there are."""
        if num_images < self.global_batch:
            fits = num_images // (self.micro_batches * self.processes)
            cure = f"lower --per_device_train_batch_size to {fits} at most" if fits else "give more images, or start fewer processes"
            raise UserError(
                f"the dataset has {num_images} images, fewer than the global batch of {self.global_batch} "
                f"(per_device_train_batch_size x gradient_accumulation_steps x processes); {cure}"
            )

    def slots(self, micro_batch: int) -> range:
        """The places in the global batch that this process fills in one micro-batch."""
        start = (micro_batch * self.processes + self.rank) * self.per_device
        return range(start, start + self.per_device)


class StepSampler(Sampler[list[Draw]]):
    """Batches of `Draw`s for steps `first_step .. last_step - 1`; a function of (seed, step) alone.

    An epoch is a seeded permutation cut into whole global batches; the remainder of fewer images than a batch is left to the next
    epoch's permutation.
    """

    def __init__(self, num_images: int, layout: BatchLayout, seed: int, first_step: int, last_step: int) -> None:
        layout.check(num_images)
        self.num_images, self.layout, self.seed = num_images, layout, seed
        self.first_step, self.last_step = first_step, last_step
        self.steps_per_epoch = num_images // layout.global_batch

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.layout.micro_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.first_step, self.last_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = numpy_generator(self.seed, "order", epoch).permutation(self.num_images)
            start = step % self.steps_per_epoch * self.layout.global_batch
            for micro_batch in range(self.layout.micro_batches):
                slots = self.layout.slots(micro_batch)
                yield [Draw(step, slot, epoch, int(order[start + slot])) for slot in slots]


class StepMasks:
    """The block masks of the two global crops of one slot, drawn for the whole global batch from (seed, step, slot)."""

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
        """[2, N] bool; crop `view` of slot `s` is crop `view * global_batch + s` of the batch whose ratios are stratified."""
        crops = [view * self.global_batch + slot for view in range(2)]
        masks = [
            block_mask(self.grid, int(self.targets(step)[crop]), numpy_generator(self.seed, "mask", step, crop), self.exact)
            for crop in crops
        ]
        return torch.from_numpy(np.stack(masks)).flatten(1)

    def targets(self, step: int) -> np.ndarray:
        """Masked patches wanted in each of the `2 * global_batch` crops."""
        if self._targets is None or self._targets[0] != step:
            generator = numpy_generator(self.seed, "mask targets", step)
            num_patches = self.grid[0] * self.grid[1]
            drawn = mask_targets(2 * self.global_batch, num_patches, self.probability, self.ratio, generator, self.exact)
            self._targets = (step, drawn)
        return self._targets[1]


def cut(record: ImageRecord, multicrop: Callable[[torch.Tensor], Crops], masks: StepMasks, draw: Draw, seed: int, key) -> dict:
    """The crops and masks of one image. `key` names the image in the seed of its crops."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "crops", draw.epoch, key))
        global_crops, local_crops = multicrop(record.image)
    return {"global_crops": global_crops, "local_crops": local_crops, "masks": masks(draw.step, draw.slot), "id": record.id}


class IndexedCrops(Dataset):
    """`source[draw.index]` as crops and masks. An unreadable image is named and another one is drawn from (seed, epoch, index)."""

    def __init__(self, source: ImageSource, multicrop: Callable[[torch.Tensor], Crops], masks: StepMasks, seed: int) -> None:
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
        raise UserError(f"{MAX_REDRAWS} images in a row could not be read, the last was {bad[-1][0]} ({bad[-1][1]})")


class StreamedCrops(IterableDataset):
    """Crops of a stream's records, pass after pass. The order is the stream's and depends on the number of readers.

    Every sample says where its reader is behind it; `places` holds that of each reader from which a resumed run goes on. A reader
    without a place begins a new pass, numbered by the step at which the run began to read so.
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
                yield cut(record, self.multicrop, self.masks, draw, self.seed, record.id) | {"bad": bad, "place": place}
                bad = []
            if samples == before and start is None:
                return  # no shard for this worker; the others go on
            epoch, start = epoch + 1, None

    def _draws(self, micro_batch: int, readers: int) -> Iterator[Draw]:
        """Step and slot of each record of this reader from `micro_batch` on: readers take turns, one micro-batch each."""
        while True:
            step, part = divmod(micro_batch, self.layout.micro_batches)
            for slot in self.layout.slots(part):
                yield Draw(self.first_step + step, slot, 0, 0)
            micro_batch += readers


def collate(samples: list[dict]) -> dict:
    """A batch in crop-major order: global_crops [2B, ...], local_crops [L*B, ...] or None, masks [2B, N] and their flat positions."""

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


class BadImageWatch:
    """Names the unreadable images of all processes in the run's bad_samples.jsonl and stops the run above a share of the draws.

    The share counts once at least `MIN_DRAWS` images were drawn, or as many bad ones as the share allows of them. Batches are
    remembered by `look_at` and counted by `report`, which every process calls at the same step.
    """

    MIN_DRAWS = 1000

    def __init__(self, max_fraction: float, run: RunFolder | None) -> None:
        self.max_fraction, self.run = max_fraction, run
        self.drawn, self.bad = 0, 0
        self._drawn_here, self._bad_here = 0, []

    def look_at(self, batch: dict) -> None:
        """Remember what a batch of `collate` says of its draws."""
        self._drawn_here += len(batch["ids"]) + len(batch["bad"])
        self._bad_here += batch["bad"]

    def forget(self, batches: list[dict]) -> None:
        """Take back `look_at` of the last `batches`, which a resumed run will draw again."""
        self._drawn_here -= sum(len(batch["ids"]) + len(batch["bad"]) for batch in batches)
        del self._bad_here[len(self._bad_here) - sum(len(batch["bad"]) for batch in batches) :]

    def report(self) -> None:
        """Name and count what was remembered; raises `UserError` above the share."""
        shares = gather_objects((self._drawn_here, self._bad_here))
        self._drawn_here, self._bad_here = 0, []
        bad = [sample for _, samples in shares for sample in samples]
        self.drawn += sum(drawn for drawn, _ in shares)
        self.bad += len(bad)
        for name, reason in bad:
            if self.run is not None:
                self.run.append_bad_sample(name, reason)
        if bad and self.bad > self.max_fraction * max(self.drawn, self.MIN_DRAWS):
            name, reason = bad[-1]
            raise UserError(
                f"{self.bad} of {self.drawn} images drawn are unreadable, more than max_bad_fraction={self.max_fraction}; the last is "
                f"{name} ({reason}), bad_samples.jsonl names them all; {cure(reason)}; or remove them, or raise max_bad_fraction"
            )

    def state_dict(self) -> dict:
        """The counts, for a checkpoint; after `report`."""
        return {"drawn": self.drawn, "bad": self.bad}

    def load_state_dict(self, state: dict) -> None:
        """Go on counting from `state_dict`."""
        self.drawn, self.bad = state["drawn"], state["bad"]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise in the main thread when waiting for data takes longer. Unlike DataLoader's own timeout it also ends a wait for a worker
    that hangs while a tensor is fetched from it, and a hang in this process."""

    def give_up(number, frame):
        raise RuntimeError(f"DataLoader timed out after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def data_workers_watched(source: ImageSource | ImageStream, layout: BatchLayout, seed: int, step: Callable[[], int]) -> Iterator[None]:
    """End the data workers with the block, however it ends, and turn torch's error of a worker that died or hangs into one line
    that names the images on which it may have.

    `step()` is the step in progress. torch may raise its error anywhere, from its handler of SIGCHLD.
    """
    try:
        yield
    except BaseException as error:
        with worker_deaths_unnoticed():  # or torch's handler would raise in the middle of what follows
            cause = _worker_death(error)
            if cause is None:
                raise
            images = _images_in_flight(source, layout, seed, step())
        raise UserError(
            f"step {step() + 1}: {cause}; the images in flight began with {images or 'unknown ones'}. Killed: usually out of memory, lower "
            "dataloader_num_workers; timed out: look at the storage, or raise dataloader_timeout. --resume_from_checkpoint true goes on"
        ) from None
    finally:
        end_data_workers()


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
    """Batches of this process for steps `first_step .. last_step - 1`, `layout.micro_batches` per step. A stream goes on from `places`."""
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


def _worker_death(error: BaseException) -> str | None:
    """What `error` says of a data worker's death, None where it is about something else."""
    if str(error).startswith("DataLoader"):
        return str(error).splitlines()[0].rstrip(". ")
    # a worker that dies while the parent fetches a tensor from it is noticed as a broken connection
    if any(Path(frame.filename).name == "resource_sharer.py" for frame in traceback.extract_tb(error.__traceback__)):
        return f"a DataLoader worker died while it handed over a batch ({type(error).__name__})"
    return None


def _images_in_flight(source: ImageSource | ImageStream, layout: BatchLayout, seed: int, step: int) -> str:
    """Names of the first images of a step, '' for a stream."""
    if not isinstance(source, ImageSource):
        return ""
    draws = next(iter(StepSampler(len(source), layout, seed, step, step + 1)))
    return ", ".join(source.id_of(draw.index) for draw in draws[:NAMED_IN_FLIGHT])


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    leave_signals_to_parent()
