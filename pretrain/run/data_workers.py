"""Ends a run whose data workers die or hang, with the names of the images in flight."""

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.batches.order import BatchLayout, StepSampler
from vision_core.errors import UserError, first_line
from vision_core.images.source import ImageSource, ImageStream
from vision_core.processes.data_workers import end_data_workers, worker_deaths_unnoticed

NAMED_IN_FLIGHT = 8


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise in the main thread when waiting for data takes longer; 0 waits for ever. Unlike
    DataLoader's own timeout it also ends a wait for a worker that hangs while a tensor is fetched
    from it, and a hang in this process."""

    def give_up(_number, _frame):
        raise RuntimeError(f"DataLoader timed out after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def data_workers_watched(
    source: ImageSource | ImageStream, layout: BatchLayout, seed: int, step: Callable[[], int]
) -> Iterator[None]:
    """End the data workers with the block, however it ends, and turn torch's error of a worker that
    died or hangs into one line that names the images on which it may have.

    `step()` is the step in progress. torch may raise its error anywhere, from its handler of
    SIGCHLD.
    """
    try:
        yield
    except BaseException as error:
        with worker_deaths_unnoticed():  # or torch's handler would raise in the middle of what follows
            cause = _worker_death(error)
            if cause is None:
                raise
            images = _images_in_flight(source, layout, seed, step())
        raise UserError(_death_text(step() + 1, cause, images)) from None
    finally:
        end_data_workers()


def _death_text(step: int, cause: str, images: str) -> str:
    return (
        f"step {step}: {cause}; the images in flight began with {images or 'unknown ones'}. "
        "Killed: usually out of memory, lower dataloader_num_workers; timed out: look at the storage, "
        "or raise dataloader_timeout. --resume_from_checkpoint true goes on"
    )


def _worker_death(error: BaseException) -> str | None:
    """What `error` says of a data worker's death, None where it is about something else."""
    if str(error).startswith("DataLoader"):
        return first_line(error).rstrip(". ")
    # a worker that dies while the parent fetches a tensor from it is noticed as a broken connection
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).name == "resource_sharer.py":
            return f"a DataLoader worker died while it handed over a batch ({type(error).__name__})"
    return None


def _images_in_flight(source: ImageSource | ImageStream, layout: BatchLayout, seed: int, step: int) -> str:
    """Names of the first images of a step, '' for a stream."""
    if not isinstance(source, ImageSource):
        return ""
    draws = next(iter(StepSampler(len(source), layout, seed, step, step + 1)))
    return ", ".join(source.id_of(draw.index) for draw in draws[:NAMED_IN_FLIGHT])
