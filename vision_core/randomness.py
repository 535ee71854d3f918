"""Draw random numbers as functions of names, so that the step is the only state of a run's data."""

import hashlib

import numpy as np


def seed_of(*names: int | str) -> int:
    """A 63-bit seed that depends on every name, in order, and on nothing else.

    `seed_of(seed, "crops", epoch, sample)` is the same on every machine, in every worker, before
    and after a resume.
    """
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_generator(*names: int | str) -> np.random.Generator:
    """A NumPy generator seeded by `seed_of(*names)`."""
    return np.random.Generator(np.random.PCG64(seed_of(*names)))
