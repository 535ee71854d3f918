"""A reader of a stream goes on behind any row that it gave, as if it had never stopped."""

import json
from functools import partial
from itertools import islice, product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vision_core.images.stream_order import share_of, shuffled_rows

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module", params=[1, 5])
def shards(request, tmp_path_factory):
    """An opened stream of the numbers from 0, in files and row groups of several lengths."""
    folder, number = tmp_path_factory.mktemp("rows"), 0
    for file in range(request.param):
        length = 9 + 2 * file
        table = pa.table({"number": range(number, number + length)})
        pq.write_table(table, folder / f"train-{file}.parquet", row_group_size=4)
        number += length
    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), split="train", streaming=True), number


def share(stream, rank: int, world_size: int, epoch: int, worker: int = 0, workers: int = 1):
    rows = share_of(stream, rank, world_size, worker, workers)
    if rows is None:
        return None
    rows = rows.shuffle(seed=0, buffer_size=1)
    rows.set_epoch(epoch)
    return rows


@pytest.mark.parametrize("block_size", [1, 4, 100])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (2, 1), (5, 1), (1, 3), (2, 2)])
def test_going_on_is_as_never_having_stopped(
    shards, monkeypatch, world_size: int, workers: int, block_size: int
) -> None:
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    stream, total = shards
    seen = []
    for reader in product(range(world_size), range(workers)):
        ask = partial(share, stream, reader[0], world_size, 3, reader[1], workers)
        if ask() is None:
            continue
        given = list(shuffled_rows(ask(), block_size, ("a", *reader)))
        assert [row.number for row in given] == list(range(len(given)))
        for stop in range(1, len(given) + 1, 3):
            place = json.loads(json.dumps(given[stop - 1].place))
            rest = shuffled_rows(ask(), block_size, ("a", *reader), place)
            assert [row[:2] for row in rest] == [row[:2] for row in given[stop:]]
        seen += [row.row["number"] for row in given]
    assert sorted(seen) == list(range(total))


def test_a_block_is_shuffled_and_holds_rows_of_all_shards(shards, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    stream, total = shards
    first, again = (
        [row.row["number"] for row in islice(shuffled_rows(share(stream, 0, 1, epoch), 10, ("b", epoch)), 10)]
        for epoch in (1, 2)
    )
    assert first != again and first != sorted(first)
    if total > 9:  # five files, which take turns
        assert len({number // 10 for number in first}) > 2


def test_nothing_is_said_of_lost_rows(shards, caplog, monkeypatch) -> None:
    """`datasets` would say that the rows of a buffer are lost, where none was in one."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    stream, _ = shards
    place = list(shuffled_rows(share(stream, 0, 1, 3), 2, ("c",)))[4].place
    datasets.utils.logging.enable_propagation()
    next(shuffled_rows(share(stream, 0, 1, 3), 2, ("c",), place))
    datasets.utils.logging.disable_propagation()
    assert not caplog.records
