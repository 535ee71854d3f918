"""Draws block masks of patches for iBOT (BEiT's block masking; DINOv2 `data/masking.py`,
`data/collate.py`)."""

import math

import numpy as np

MIN_BLOCK = 4  # patches
BLOCK_ASPECT = (0.3, 1 / 0.3)
TRIES = 10


def block_mask(
    grid: tuple[int, int], target: int, generator: np.random.Generator, exact: bool = False
) -> np.ndarray:
    """A bool mask `[height, width]` of rectangular blocks that covers at most `target` patches, or
    exactly `target` with `exact`.

        while covered < target:
            up to 10 times:
                area uniform in [4, remaining], aspect log-uniform in [0.3, 1 / 0.3],
                a block of that shape at a random place
                take it if it covers between 1 and `remaining` new patches
                (remaining: target - covered, at most half of the grid)
            stop where none of the 10 was taken
        with `exact` (DINOv3): mask the missing patches at random
    """
    mask = np.zeros(grid, dtype=bool)
    most = int(0.5 * grid[0] * grid[1])
    covered = 0
    while covered < target:
        added = _add_block(mask, min(target - covered, most), generator)
        if not added:
            break
        covered += added
    if exact and covered < target:
        free = np.flatnonzero(~mask)
        mask.flat[generator.choice(free, target - covered, replace=False)] = True
    return mask


def _add_block(mask: np.ndarray, remaining: int, generator: np.random.Generator) -> int:
    """Add one block to `mask`. Returns the patches that it newly covers, 0 where none of the tries
    fits."""
    height, width = mask.shape
    log_low = math.log(BLOCK_ASPECT[0])
    log_high = math.log(BLOCK_ASPECT[1])
    for area_draw, aspect_draw, top_draw, left_draw in generator.random((TRIES, 4)):
        area = MIN_BLOCK + area_draw * (remaining - MIN_BLOCK)
        aspect = math.exp(log_low + aspect_draw * (log_high - log_low))
        rows = round(math.sqrt(area * aspect))
        columns = round(math.sqrt(area / aspect))
        if rows >= height or columns >= width:
            continue
        top = int(top_draw * (height - rows + 1))
        left = int(left_draw * (width - columns + 1))
        block = mask[top : top + rows, left : left + columns]
        new = block.size - int(np.count_nonzero(block))
        if 0 < new <= remaining:
            block[:] = True
            return new
    return 0


def mask_targets(
    num_crops: int,
    num_patches: int,
    probability: float,
    ratio: tuple[float, float],
    generator: np.random.Generator,
    exact: bool = False,
) -> np.ndarray:
    """How many patches to mask in each crop of a batch, `[num_crops]`. They are stratified, so that
    the batch's total hardly varies.

        n = int(num_crops * probability)
        edges = linspace(*ratio, n + 1)
        masked crop i: int(num_patches * uniform(edges[i], edges[i + 1])),
            with `exact` int(num_patches * edges[i + 1])
        the other crops: 0; all shuffled
    """
    masked = int(num_crops * probability)
    edges = np.linspace(*ratio, masked + 1)
    shares = edges[1:] if exact else generator.uniform(edges[:-1], edges[1:])
    targets = np.zeros(num_crops, dtype=np.int64)
    targets[:masked] = num_patches * shares
    return generator.permutation(targets)


def max_masked_tokens(
    num_crops: int, num_patches: int, probability: float, ratio: tuple[float, float]
) -> int:
    """The published upper bound of masked patches in a batch, the same at every step: the sum of
    int(num_patches * edges[i + 1])."""
    masked = int(num_crops * probability)
    return sum(int(num_patches * edge) for edge in np.linspace(*ratio, masked + 1)[1:])
