"""Measure variants of a computation side by side: seconds and peak memory of a turn.

Each variant has a process of its own, so that every peak is one variant's, and the variants take
turns, so that noise of the machine meets all alike.
"""

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm


class Turn(NamedTuple):
    """What one turn took."""

    seconds: float
    peak_bytes: int


def take_turns(
    serve: Callable[..., None], variants: Mapping[str, tuple[Any, ...]], turns: int
) -> dict[str, list[Turn]]:
    """Start `serve(*arguments, connection)` in a process for each variant, and let the variants
    take turns.

    `serve` answers every True that it receives with a `Turn`, and ends at False. The first turn of
    a variant warms it up and does not count.
    """
    context = multiprocessing.get_context("spawn")
    connections = {}
    for name, arguments in variants.items():
        connections[name], other_end = context.Pipe()
        context.Process(target=serve, args=(*arguments, other_end), daemon=True).start()
    results: dict[str, list[Turn]] = {name: [] for name in variants}
    for turn in tqdm(range(turns + 1), desc="turns"):
        for name, connection in connections.items():
            connection.send(True)
            result = connection.recv()
            if turn > 0:
                results[name].append(result)
    for connection in connections.values():
        connection.send(False)
    return results


def answer_turns(connection: Connection, device: str, step: Callable[[], None], from_zero: bool) -> None:
    """Answer each message with what `step` took.

    from_zero: count all memory of the process; otherwise what the step adds to the memory that is
    held before it.
    """
    while connection.recv():
        held = reset_peak(device)
        started = time.perf_counter()
        step()
        synchronize(device)
        seconds = time.perf_counter() - started
        peak = peak_bytes(device)
        connection.send(Turn(seconds, peak if from_zero else peak - held))


def medians(turns: list[Turn]) -> tuple[float, float]:
    """The median of the seconds, and that of the peaks in bytes."""
    seconds, peaks = zip(*turns, strict=True)
    return statistics.median(seconds), statistics.median(peaks)


def reset_peak(device: str) -> int:
    """Count the peak from here on; return the bytes that the process holds now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # What the allocator keeps for later would hide a part of the next peak.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _bytes_in_status("VmRSS")


def peak_bytes(device: str) -> int:
    """The most memory that this process has held since the last reset."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _bytes_in_status("VmHWM")


def _bytes_in_status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def product_rate(left: torch.Tensor, right: torch.Tensor) -> float:
    """Operations per second of the product `left @ right` of two matrices."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        left @ right
        synchronize(left.device.type)
        seconds.append(time.perf_counter() - started)
    rows, inner = left.shape
    return 2.0 * rows * inner * right.shape[1] / statistics.median(seconds[1:])


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
