"""The order of a streamed data set: shared out to readers, shuffled block by block, so that each
can go on behind any row that it gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import Any, NamedTuple

import fsspec.asyn
from torch.utils.data import get_worker_info

from vision_core.randomness import numpy_generator

Place = dict[str, Any]  # plain values, for a checkpoint
BEGINNING: Place = {"rows": None, "block": 0, "taken": 0}


class PlacedRow(NamedTuple):
    """number: of the row among those that its reader gives in this pass. place: what
    `shuffled_rows` takes to go on behind it."""

    number: int
    row: dict
    place: Place


def share_of(dataset: Any, rank: int, world_size: int, worker: int, workers: int) -> Any | None:
    """What one data worker of one process reads of a `datasets.IterableDataset`; None for a worker
    without a shard.

    Processes get shards of their own where the number of shards is a multiple of theirs, and every
    `world_size`-th row otherwise. Shards are given to data workers here and not by `datasets` as it
    iterates, which cannot take up a place in a worker's share.
    """
    from datasets.distributed import split_dataset_by_node

    shards_for_all = dataset.num_shards % world_size == 0
    share = dataset.shard(world_size, rank, contiguous=False) if shards_for_all else dataset
    if worker >= share.num_shards:
        return None
    share = share.shard(workers, worker, contiguous=False)
    return share if shards_for_all else split_dataset_by_node(share, rank=rank, world_size=world_size)


def shuffled_rows(
    rows: Any, block_size: int, names: tuple, start: Place | None = None
) -> Iterator[PlacedRow]:
    """The rows of a `datasets.IterableDataset`, each once: `block_size` of them are read, then
    given in an order drawn from (names, block).

    A shuffle buffer of `datasets` is lost with the process: what is in it comes from anywhere
    before, and `state_dict` does not hold it. A block is known by the place where it began, so
    going on costs the reading of one block at most, and of what `datasets` reads to find it.

    Args:
        names: what the orders are drawn from, such as epoch and reader.
        start: the `place` of a row that these rows gave before, with the same arguments; None for
            their beginning.
    """
    start = start or BEGINNING
    if start["rows"] is not None:
        rows.load_state_dict(start["rows"])
    began, taken, reading = start["rows"], start["taken"], _one_by_one(rows)
    for number in count(start["block"]):
        with _no_word_of_lost_rows():
            block = list(islice(reading, block_size))
        if not block:
            return
        order = numpy_generator(*names, number).permutation(len(block)).tolist()
        for turn in range(taken, len(block)):
            place = {"rows": began, "block": number, "taken": turn + 1}
            yield PlacedRow(number * block_size + turn, block[order[turn]], place)
        began, taken = rows.state_dict(), 0


def _one_by_one(rows: Any) -> Iterator[dict]:
    """All rows of the share. Iterating `rows` itself would share them out again to the data
    workers."""
    if get_worker_info() is not None:
        fsspec.asyn.reset_lock()  # forked, it has the lock of its parent, and not the thread that would open it
    for batch in rows.iter(batch_size=1):
        yield {column: values[0] for column, values in batch.items()}


@contextmanager
def _no_word_of_lost_rows() -> Iterator[None]:
    """`datasets` warns that a buffer's rows are lost wherever it goes on, also with the buffer of
    one row, in which none ever waits."""
    from datasets.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
