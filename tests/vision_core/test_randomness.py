import subprocess
import sys
from pathlib import Path

import numpy as np

from vision_core.randomness import numpy_generator, seed_of


def test_same_names_same_seed_in_another_process():
    """Python's own hash of text differs from process to process; this one must not."""
    code = "from vision_core.randomness import seed_of; print(seed_of(7, 'crops', 3, 11))"
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == seed_of(7, "crops", 3, 11)


def test_every_name_and_its_place_and_type_count():
    names = [
        (0, "crops", 1, 2),
        (0, "crops", 2, 1),
        (0, "masks", 1, 2),
        (1, "crops", 1, 2),
        (0, "crops", 12),
        (0, "crops", "1", 2),
        (0,),
    ]
    assert len({seed_of(*each) for each in names}) == len(names)


def test_seeds_fit_torch_and_are_spread_evenly():
    seeds = [seed_of(0, "crops", epoch, sample) for epoch in range(20) for sample in range(500)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    ones = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds]).mean(axis=0)
    assert abs(ones - 0.5).max() < 0.03  # six standard deviations of 10,000 fair coins


def test_neighbouring_generators_are_independent():
    draws = np.stack([numpy_generator(0, index).standard_normal(1000) for index in range(20)])
    correlations = np.corrcoef(draws) - np.eye(20)
    assert abs(correlations).max() < 0.16  # five standard deviations
    assert (numpy_generator(0, 3).standard_normal(1000) == draws[3]).all()
