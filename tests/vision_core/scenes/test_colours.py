import numpy as np

from vision_core.scenes.colours import oklch_to_rgb


def test_oklch_of_white_black_and_red():
    assert np.allclose(oklch_to_rgb(1.0, 0.0, 0.0), 1.0, atol=1e-3)
    assert np.allclose(oklch_to_rgb(0.0, 0.0, 0.0), 0.0, atol=1e-6)
    assert np.allclose(oklch_to_rgb(0.62796, 0.25768, 29.234), [1.0, 0.0, 0.0], atol=1e-3)
