import numpy as np
import pytest

from vision_core.scenes.shapes import EXTENT, SHAPES


@pytest.mark.parametrize("name", list(SHAPES))
def test_shapes_have_similar_areas_and_stay_within_their_extent(name: str):
    at = (np.arange(300) + 0.5) / 100 - 1.5
    y, x = np.meshgrid(at, at, indexing="ij")
    for variations in ((0.0, 0.0), (0.99, 0.0), (0.0, 0.99), (0.5, 0.5)):
        inside = SHAPES[name](x, y, *variations) < 0
        assert 1.5 < inside.mean() * 9 < 2.7
        assert np.hypot(x, y)[inside].max() < EXTENT
