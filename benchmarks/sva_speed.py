"""The two paths of the Spatial Vision Aggregator side by side: seconds and peak memory of a forward
and backward pass.

    python benchmarks/sva_speed.py

The shapes are those of Cambrian-1-8B: 576 queries, 1 + 1 + 1 + 16 keys each, width 1024, 3 layers
of the connector and 10 layers in a language model of width 4096. The modes take turns, each in a
process of its own, so that noise of the machine meets all alike and every peak is one mode's. The
peak is that of the whole step above weights and inputs: activations, and the gradients as they
come.
"""

import argparse
import ctypes
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from tqdm import tqdm

from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.connectors.windows import VisionWindows

QUERIES, WINDOWS, WIDTH, HIDDEN, CONNECTOR_LAYERS, LLM_LAYERS = (576, (1, 1, 1, 16), 1024, 4096, 3, 10)
MODES = {"plain": ("plain", False), "fast": ("fast", False), "fast, checkpointed": ("fast", True)}


def make(images: int, device: str) -> tuple[torch.nn.ModuleList, VisionWindows, torch.Tensor]:
    """All layers, what they look at, and the states of the language model's image positions."""
    torch.manual_seed(0)
    with torch.device(device):
        widths = [WIDTH] * CONNECTOR_LAYERS + [HIDDEN] * LLM_LAYERS
        layers = torch.nn.ModuleList(VisionCrossAttentionLayer(width, WIDTH, 16, WINDOWS) for width in widths)
        tokens = tuple(torch.randn(images * QUERIES, size, WIDTH, requires_grad=True) for size in WINDOWS)
        context = torch.randn(images, WIDTH, requires_grad=True)
        image = torch.arange(images).repeat_interleave(QUERIES)
        return (
            layers,
            VisionWindows(tokens, (None,) * len(WINDOWS), context, image),
            torch.randn(images * QUERIES, HIDDEN),
        )


def step(layers: torch.nn.ModuleList, windows: VisionWindows, states: torch.Tensor, path: str) -> None:
    """One forward and backward pass; the gradients of the one before are gone."""
    layers.zero_grad(set_to_none=True)
    windows = VisionWindows(
        tuple(each.detach().requires_grad_() for each in windows.tokens),
        windows.masks,
        windows.context,
        windows.image_index,
    )
    queries = torch.ones(1, WIDTH, device=states.device)
    for layer in layers[:CONNECTOR_LAYERS]:
        queries = layer(queries, windows, path)
    for layer in layers[CONNECTOR_LAYERS:]:
        states = layer(states, windows, path)
    (queries.square().mean() + states.square().mean()).backward()


def peak_bytes(device: str) -> int:
    """The most memory that this process has held since the last reset."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


def held_bytes(device: str) -> int:
    """What it holds now; the peak is counted from here on."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(
        0
    )  # what the allocator keeps for later would hide part of the next peak
    Path("/proc/self/clear_refs").write_text("5")
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )


def serve(mode: str, images: int, device: str, turns: Connection) -> None:
    """A process of one mode: a step for every message, answered with its seconds and its peak above
    what lay there before."""
    path, checkpointed = MODES[mode]
    layers, windows, states = make(images, device)
    for layer in layers:
        layer.gradient_checkpointing = checkpointed
    while turns.recv():
        layers.zero_grad(set_to_none=True)
        before, started = held_bytes(device), time.perf_counter()
        step(layers, windows, states, path)
        if device == "cuda":
            torch.cuda.synchronize()
        turns.send((time.perf_counter() - started, peak_bytes(device) - before))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for mode in MODES:
        pipes[mode], other = context.Pipe()
        context.Process(target=serve, args=(mode, args.images, args.device, other), daemon=True).start()
    results = {mode: [] for mode in MODES}
    for turn in tqdm(range(args.turns + 1), desc="turns"):
        for mode, pipe in pipes.items():
            pipe.send(True)
            seconds_and_bytes = pipe.recv()
            if turn:  # the first one warms up
                results[mode].append(seconds_and_bytes)
    for pipe in pipes.values():
        pipe.send(False)
    print(
        f"{args.images} image(s) on {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    plain_seconds, plain_peak = medians(results["plain"])
    rate = matmul_rate(args.images, args.device)
    print(
        f"plain: {plain_flops(args.images) / plain_seconds / 1e9:.0f} GFLOP/s; its largest product alone, forward: {rate / 1e9:.0f} GFLOP/s"
    )
    for mode, done in results.items():
        seconds, peak = medians(done)
        print(
            f"{mode:19s} {seconds:6.2f} s, {plain_seconds / seconds:4.2f} x as fast; {peak / 2**20:5.0f} MiB, {peak / plain_peak:4.2f} of the memory"
        )


def plain_flops(images: int) -> float:
    """Of the products of a plain step, forward and backward."""
    per_layer = [
        2 * WIDTH * (2 * sum(WINDOWS) * WIDTH + 5 * WIDTH + 2 * width)
        for width in [WIDTH] * CONNECTOR_LAYERS + [HIDDEN] * LLM_LAYERS
    ]
    return 3.0 * images * QUERIES * sum(per_layer)


def matmul_rate(images: int, device: str) -> float:
    """Operations per second of the product that makes the keys of the largest windows."""
    tokens, weight = (
        torch.randn(images * QUERIES * max(WINDOWS), WIDTH, device=device),
        torch.randn(WIDTH, WIDTH, device=device),
    )
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        tokens @ weight.T
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2.0 * len(tokens) * WIDTH**2 / statistics.median(seconds)


def medians(done: list[tuple[float, int]]) -> tuple[float, float]:
    """Of seconds and of bytes."""
    return statistics.median(each[0] for each in done), statistics.median(each[1] for each in done)


if __name__ == "__main__":
    main()
