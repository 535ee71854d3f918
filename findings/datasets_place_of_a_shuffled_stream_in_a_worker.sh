#!/usr/bin/env bash
# datasets 5.2.0 with torch 2.15.0: in a DataLoader's worker, the place of a shuffled stream cannot be taken up again.
#
# One would guess: what IterableDataset.state_dict() gives, load_state_dict() of the same stream takes, wherever both are called;
#   so a worker that sends its place along with its batches can go on from it after a kill.
# What happens: without shuffle(), or in the main process, it goes on with the next row. Behind shuffle(), also with a buffer of
#   one row, the same two calls in a worker of two end in "IndexError: list index out of range" at the first row: the state
#   speaks of the worker's own shards, and is loaded into the stream before the shards are divided.
# Whom it hurts: those who train on a shuffled stream with data workers and keep the place in their checkpoints by themselves:
#   it is found out on the day of the first resume.
# Way round: divide the shards among the workers yourself, and read with IterableDataset.iter(batch_size), which does not divide.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q uv
"$work/venv/bin/uv" pip install -q --python "$work/venv/bin/python" datasets==5.2.0 torch==2.15.0
cat > "$work/places.py" <<'PY'
import logging
import sys

import datasets
from torch.utils.data import DataLoader, IterableDataset

folder = sys.argv[1]
logging.getLogger("datasets").setLevel(logging.ERROR)
datasets.disable_progress_bars()


def opened(shuffled):
    stream = datasets.load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True)
    return stream.shuffle(seed=0, buffer_size=1) if shuffled else stream


class Resumed(IterableDataset):
    """Three rows, and whether the stream opened anew goes on behind them as the first one does."""

    def __init__(self, shuffled):
        self.shuffled = shuffled

    def __iter__(self):
        stream, again = opened(self.shuffled), opened(self.shuffled)
        rows = iter(stream)
        for _ in range(3):
            next(rows)
        again.load_state_dict(stream.state_dict())
        try:
            yield "goes on" if next(iter(again)) == next(rows) else "another row"
        except IndexError as error:
            yield f"IndexError: {error}"


if __name__ == "__main__":
    for number in range(4):
        rows = {"n": list(range(100 * number, 100 * number + 100))}
        datasets.Dataset.from_dict(rows).to_parquet(f"{folder}/{number}.parquet")
    seen = {}
    for shuffled in (False, True):
        for workers in (0, 2):
            seen[shuffled, workers] = set(DataLoader(Resumed(shuffled), batch_size=None, num_workers=workers))
            print(f"shuffled {shuffled}, workers {workers}: {', '.join(seen[shuffled, workers])}")
    fails = seen.pop((True, 2)) == {"IndexError: list index out of range"}
    sys.exit(0 if fails and all(each == {"goes on"} for each in seen.values()) else "places are taken up now: this finding is over")
PY
HF_HUB_OFFLINE=1 HF_HOME="$work/home" "$work/venv/bin/python" "$work/places.py" "$work"
# Seen (2026-11-28):
# shuffled False, workers 0: goes on
# shuffled False, workers 2: goes on
# shuffled True, workers 0: goes on
# shuffled True, workers 2: IndexError: list index out of range
