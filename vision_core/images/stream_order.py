"""The order of a streamed data set: it is divided among readers and shuffled block by block, so that
each reader can continue after any row that it gave."""

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
    """A row of a stream.

    number: the number of the row among those that its reader gives in this pass.
    place: what `shuffled_rows` takes as `start` to continue after this row.
    """

    number: int
    row: dict
    place: Place


def share_of(dataset: Any, rank: int, world_size: int, worker: int, workers: int) -> Any | None:
    """The part of a `datasets.IterableDataset` that one data worker of one process reads; None for a
    worker without a shard.

    Processes get shards of their own where the number of shards is a multiple of the number of
    processes, and every `world_size`-th row otherwise. Shards are given to data workers here,
    because `datasets` cannot continue at a place in a share that it divided itself.
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
    """Give every row of a `datasets.IterableDataset` once: blocks of `block_size` rows are read,
    and each block is given in an order drawn from (names, block).

    A shuffle buffer of `datasets` is lost with the process: its rows come from anywhere before, and
    `state_dict` does not hold them. A block is known by the place where it began, so to continue
    costs the reading of one block at most, and what `datasets` reads to find it.

    Args:
        names: the seeds of the orders, such as epoch and reader.
        start: the `place` of a row that these rows gave before, with the same arguments; None for
            their beginning.
    """
    start = start or BEGINNING
    begin_of_block = start["rows"]
    taken = start["taken"]
    if begin_of_block is not None:
        rows.load_state_dict(begin_of_block)
    reading = _one_by_one(rows)
    for number in count(start["block"]):
        with _quiet_about_lost_rows():
            block = list(islice(reading, block_size))
        if not block:
            return
        order = numpy_generator(*names, number).permutation(len(block)).tolist()
        for turn in range(taken, len(block)):
            place = {"rows": begin_of_block, "block": number, "taken": turn + 1}
            yield PlacedRow(number * block_size + turn, block[order[turn]], place)
        begin_of_block = rows.state_dict()
        taken = 0


def _one_by_one(rows: Any) -> Iterator[dict]:
    """Give all rows of a share. Iterating over `rows` itself would divide them among the data
    workers once more."""
    if get_worker_info() is not None:
        # a forked worker has the lock of its parent, but not the thread that would release it
        fsspec.asyn.reset_lock()
    for batch in rows.iter(batch_size=1):
        yield {column: values[0] for column, values in batch.items()}


@contextmanager
def _quiet_about_lost_rows() -> Iterator[None]:
    """Silence the warning of `datasets` that the rows of a buffer are lost; it comes wherever
    reading continues, even for a buffer of one row, in which no row ever waits."""
    from datasets.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
