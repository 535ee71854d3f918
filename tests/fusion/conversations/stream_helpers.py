"""Streams of numbered rows, as the tests of streams and of their mixtures read them."""

import io

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

FILES, ROWS = 3, 20  # of each file


def png(number):
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (16 + 8 * (number % 3), 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def row(name, number):
    turns = [
        {"role": "user", "content": f"which row is {name}?"},
        {"role": "assistant", "content": f"row {number}"},
    ]
    return {"messages": turns, "images": [png(number)] * [1, 0, 2][number % 3]}


def write_stream(folder, name="x", files=FILES, rows=ROWS, change=None):
    """Parquet files of numbered rows in row groups of 7; `change(number, row)` may spoil them.
    Their stream, in order."""
    folder.mkdir(exist_ok=True)
    for file in range(files):
        numbers = range(file * rows, (file + 1) * rows)
        content = [
            row(name, number) if change is None else change(number, row(name, number)) for number in numbers
        ]
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(content), folder / f"train-{file}.parquet", row_group_size=7
        )
    return f"parquet:{folder}/*.parquet?streaming=true"


def spoil(number, row):
    if number == 31:
        row["messages"] = row["messages"][:1]
    if number == 42:
        row["images"] = [{"bytes": b"no image", "path": None}]
    return row


def answer(conversation):
    """(whose row, its number)"""
    return conversation.messages[0].text.split()[-1].rstrip("?"), int(
        conversation.messages[1].text.split()[-1]
    )
