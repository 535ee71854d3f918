import numpy as np
import pytest

from vision_core.scenes.textures import TEXTURES, smooth_noise


@pytest.mark.parametrize("name", list(TEXTURES))
def test_textures_mix_both_tones(name: str):
    at = np.linspace(-4, 4, 160, dtype=np.float32)
    noise = smooth_noise(
        np.random.default_rng(0).uniform(-1, 1, (14, 14)).astype(np.float32), (at + 4) * 1.6, (at + 4) * 1.6
    )
    v, u = np.meshgrid(at, at, indexing="ij")
    mix = TEXTURES[name](u, v, 0.05, noise)
    assert mix.shape == (160, 160) and mix.min() >= 0 and mix.max() <= 1
    assert 0.15 < mix.mean() < 0.85 and mix.std() > 0.2


def test_smooth_noise_passes_through_its_lattice():
    lattice = np.random.default_rng(0).uniform(-1, 1, (5, 5))
    assert np.allclose(smooth_noise(lattice, np.arange(5.0), np.arange(5.0)), lattice)
    between = smooth_noise(lattice, np.array([1.25]), np.array([2.0]))[0, 0]
    eased = 3 * 0.25**2 - 2 * 0.25**3
    assert np.isclose(between, lattice[1, 2] * (1 - eased) + lattice[2, 2] * eased)
