"""Which cells an image covers, against fractions and against the released arithmetic."""

from fractions import Fraction

import pytest
import torch

from fusion.connectors.geometry import ImageLayout, image_box
from vision_core.errors import UserError

SIZES = [
    (60, 80),
    (80, 60),
    (1, 1),
    (1, 30),
    (30, 1),
    (480, 640),
    (333, 1000),
    (999, 1000),
    (1000, 999),
    (7, 5),
    (64, 64),
]


@pytest.mark.parametrize("grid", [1, 2, 3, 8, 24, 96])
@pytest.mark.parametrize("size", SIZES)
def test_a_cell_counts_when_it_overlaps_the_image(size, grid):
    height, width = size
    side = max(size)
    top, left = (side - height) // 2, (side - width) // 2
    box = image_box(height, width, grid)
    for j in range(grid):
        low, high = Fraction(j * side, grid), Fraction((j + 1) * side, grid)
        assert (box.top <= j < box.bottom) == (low < top + height and high > top)
        assert (box.left <= j < box.right) == (low < left + width and high > left)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_a_coarse_cell_counts_exactly_where_a_fine_one_in_it_does(size, ratio):
    layout = ImageLayout((size,))
    fine = layout.mask(6 * ratio)[0].unflatten(0, (6, ratio)).unflatten(2, (6, ratio)).any(3).any(1)
    assert torch.equal(fine, layout.mask(6)[0])


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (333, 1000), (500, 500), (100, 300)])
@pytest.mark.parametrize("grid", [24, 96])
def test_the_published_arithmetic_floors_twice(size, grid):
    height, width = size
    box = image_box(height, width, grid, rule="published")
    if width > height:
        scaled = int(height * (grid / width))
        assert box == ((grid - scaled) // 2, grid - (grid - scaled) // 2, 0, grid)
    elif height > width:
        scaled = int(width * (grid / height))
        assert box == (0, grid, (grid - scaled) // 2, grid - (grid - scaled) // 2)
    else:
        assert box == (0, grid, 0, grid)


def test_the_published_arithmetic_leaves_nothing_of_a_thin_image_and_says_so():
    with pytest.raises(UserError, match=r"20 x 1000 .*mask_rule='exact'"):
        image_box(20, 1000, 24, rule="published")
    assert image_box(20, 1000, 24).rows == 2


def test_no_pixels_are_refused_and_squashed_images_cover_all():
    with pytest.raises(UserError, match="no content"):
        image_box(0, 5, 4)
    assert image_box(5, 50, 4, fit="squash") == (0, 4, 0, 4)


def test_cells_are_numbered_image_by_image_and_row_by_row():
    layout = ImageLayout.of(torch.tensor([[2, 4], [4, 4]]))
    assert layout.cells(4).tolist() == [4, 5, 6, 7, 8, 9, 10, 11, *range(16, 32)]
    assert layout.mask(4).sum((1, 2)).tolist() == [8, 16]
