"""The pixels of images for several encoders as one tensor."""

import pytest
import torch

from fusion.pixel_layout import join_views, split_views
from vision_core.errors import UserError

SIZES = [(32, 32), (48, 48)]


def test_joined_views_come_apart_again():
    views = [torch.randn(2, 3, *size) for size in SIZES]
    joined = join_views(views)
    assert joined.shape == (2, 9984)
    assert all(map(torch.equal, split_views(joined, SIZES), views))


def test_pixels_of_other_encoders_are_refused():
    with pytest.raises(
        UserError,
        match=r"has 27 numbers for each image, and the encoders see 3 x 32 x 32, 3 x 48 x 48, which are 9984",
    ):
        split_views(torch.zeros(2, 27), SIZES)
