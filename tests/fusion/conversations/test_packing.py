"""Samples that share a row fit into it, and rows are few."""

import numpy as np
import pytest

from fusion.conversations.packing import pack_rows


def test_pack_rows():
    assert pack_rows([3, 9, 4, 2, 6], 10) == [[1], [4, 2], [0, 3]]
    generator = np.random.default_rng(0)
    for _ in range(50):
        lengths = generator.integers(1, 40, generator.integers(1, 30)).tolist()
        rows = pack_rows(lengths, max(lengths))
        assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
        assert all(sum(lengths[sample] for sample in row) <= max(lengths) for row in rows)
        fewest = -(-sum(lengths) // max(lengths))
        assert len(rows) <= 11 / 9 * fewest + len(lengths) ** 0.5 + 1
    with pytest.raises(ValueError, match="does not fit"):
        pack_rows([5, 11], 10)
