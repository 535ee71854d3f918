"""The two paths of the Spatial Vision Aggregator side by side: seconds and peak memory of a forward
and backward pass.

    python benchmarks/sva_speed.py

The shapes are those of Cambrian-1-8B: 576 queries, 1 + 1 + 1 + 16 keys each, width 1024, 3 layers
of the connector and 10 layers in a language model of width 4096. The peak is that of the complete
step above weights and inputs: activations, and the gradients as they come.
"""

import argparse
import sys
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.side_by_side import answer_turns, medians, product_rate, take_turns
from fusion.connectors.cross_attention import AttentionPath, VisionCrossAttentionLayer
from fusion.connectors.windows import VisionWindows

QUERIES = 576
WINDOWS = (1, 1, 1, 16)
WIDTH = 1024
HIDDEN_SIZE = 4096
CONNECTOR_LAYERS = 3
LLM_LAYERS = 10
QUERY_WIDTHS = [WIDTH] * CONNECTOR_LAYERS + [HIDDEN_SIZE] * LLM_LAYERS
# name of a mode: (attention path, whether its activations are checkpointed)
MODES = {"plain": ("plain", False), "fast": ("fast", False), "fast, checkpointed": ("fast", True)}


def make(images: int, device: str) -> tuple[torch.nn.ModuleList, VisionWindows, torch.Tensor]:
    """All layers, what they look at, and the states of the language model's image positions."""
    torch.manual_seed(0)
    with torch.device(device):
        layers = torch.nn.ModuleList()
        for query_width in QUERY_WIDTHS:
            layers.append(VisionCrossAttentionLayer(query_width, WIDTH, 16, WINDOWS))
        tokens = tuple(torch.randn(images * QUERIES, size, WIDTH, requires_grad=True) for size in WINDOWS)
        context = torch.randn(images, WIDTH, requires_grad=True)
        image_index = torch.arange(images).repeat_interleave(QUERIES)
        windows = VisionWindows(tokens, (None,) * len(WINDOWS), context, image_index)
        return layers, windows, torch.randn(images * QUERIES, HIDDEN_SIZE)


def step(
    layers: torch.nn.ModuleList, windows: VisionWindows, states: torch.Tensor, attention_path: AttentionPath
) -> None:
    """One forward and backward pass. Its gradients are freed, so that the next pass starts without
    them."""
    tokens = tuple(each.detach().requires_grad_() for each in windows.tokens)
    windows = VisionWindows(tokens, windows.masks, windows.context, windows.image_index)
    queries = torch.ones(1, WIDTH, device=states.device)
    for layer in layers[:CONNECTOR_LAYERS]:
        queries = layer(queries, windows, attention_path)
    for layer in layers[CONNECTOR_LAYERS:]:
        states = layer(states, windows, attention_path)
    (queries.square().mean() + states.square().mean()).backward()
    layers.zero_grad(set_to_none=True)


def serve(mode: str, images: int, device: str, connection: Connection) -> None:
    """The process of one mode: a step for every message."""
    attention_path, is_checkpointed = MODES[mode]
    layers, windows, states = make(images, device)
    for layer in layers:
        layer.gradient_checkpointing = is_checkpointed
    one_step = partial(step, layers, windows, states, attention_path)
    answer_turns(connection, device, one_step, from_zero=False)


def plain_flops(images: int) -> float:
    """Operations of the products of a plain step, forward and backward."""
    keys_and_values = 2 * sum(WINDOWS) * WIDTH
    per_query = 0
    for query_width in QUERY_WIDTHS:
        per_query += 2 * WIDTH * (keys_and_values + 5 * WIDTH + 2 * query_width)
    return 3.0 * images * QUERIES * per_query


def largest_product_rate(images: int, device: str) -> float:
    """Operations per second of the product that makes the keys of the largest windows."""
    tokens = torch.randn(images * QUERIES * max(WINDOWS), WIDTH, device=device)
    weight = torch.randn(WIDTH, WIDTH, device=device)
    return product_rate(tokens, weight.T)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    variants = {mode: (mode, args.images, args.device) for mode in MODES}
    results = take_turns(serve, variants, args.turns)
    print(
        f"{args.images} image(s) on {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    plain_seconds, plain_peak = medians(results["plain"])
    step_rate = plain_flops(args.images) / plain_seconds
    rate = largest_product_rate(args.images, args.device)
    print(
        f"plain: {step_rate / 1e9:.0f} GFLOP/s; its largest product alone, forward: {rate / 1e9:.0f} GFLOP/s"
    )
    for mode, turns in results.items():
        seconds, peak = medians(turns)
        print(
            f"{mode:19s} {seconds:6.2f} s, {plain_seconds / seconds:4.2f} x as fast; "
            f"{peak / 2**20:5.0f} MiB, {peak / plain_peak:4.2f} of the memory"
        )


if __name__ == "__main__":
    main()
