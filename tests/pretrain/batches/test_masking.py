"""Block masks: counts, shapes of blocks, stratified targets, the published bound."""

import numpy as np
import pytest

from pretrain.batches.masking import block_mask, mask_targets, max_masked_tokens


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (6, 12), (4, 4)])
def test_published_masks_stay_at_or_below_their_target_and_exact_ones_meet_it(grid):
    patches = grid[0] * grid[1]
    for number in range(100):
        generator = np.random.default_rng(number)
        target = int(generator.integers(0, patches // 2))
        published = block_mask(grid, target, generator)
        assert published.shape == grid and published.sum() <= target
        assert block_mask(grid, target, generator, exact=True).sum() == target


def test_masks_are_blocks_and_come_close_to_their_target():
    """Neighbours agree as they do in blocks, and on average most of the target is covered."""
    covered, smoothness = [], []
    for number in range(200):
        mask = block_mask((16, 16), 100, np.random.default_rng(number))
        covered.append(mask.sum())
        smoothness.append((mask[:, 1:] == mask[:, :-1]).mean())
    assert np.mean(smoothness) > 0.8  # neighbours that agree; random scatter of this density has about 0.52
    assert 85 < np.mean(covered) <= 100


def test_targets_are_stratified():
    targets = mask_targets(128, 256, 0.5, (0.1, 0.5), np.random.default_rng(0))
    masked = np.sort(targets[targets > 0])
    assert len(targets) == 128 and len(masked) == 64
    edges = np.linspace(0.1, 0.5, 65)
    for value, low, high in zip(masked, edges[:-1], edges[1:], strict=True):
        assert int(256 * low) <= value <= int(256 * high)
    totals = [
        mask_targets(128, 256, 0.5, (0.1, 0.5), np.random.default_rng(seed)).sum() for seed in range(50)
    ]
    assert np.std(totals) / np.mean(totals) < 0.01


@pytest.mark.parametrize(
    ("batch", "patches", "bound"),
    [(64, 256, 4941), (64, 196, 3771), (32, 256, 2496), (32, 196, 1906), (12, 256, 967), (12, 196, 739)],
)
def test_the_published_bound(batch, patches, bound):
    assert max_masked_tokens(2 * batch, patches, 0.5, (0.1, 0.5)) == bound
    exact = mask_targets(2 * batch, patches, 0.5, (0.1, 0.5), np.random.default_rng(0), exact=True)
    assert exact.sum() == bound
