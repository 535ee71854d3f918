import pytest

from vision_core.errors import UserError
from vision_core.images.pixel_options import pixel_options_text, take_pixel_options


@pytest.mark.parametrize("value", ["4,3,2", "4,3,2/3", "0,1/3", "1,1/3", "a/3", "1,2/", "/3"])
def test_bands_that_are_not_possible_are_refused(value):
    with pytest.raises(UserError, match="bands=.* is not possible; give different bands, counted from 1"):
        take_pixel_options("folder:x", {"bands": value})


@pytest.mark.parametrize(
    "text",
    [
        "scale=4095",
        "scale=-1000,400",
        "scale=p1,p99",
        "scale=full",
        "scale=0.1&nodata=-9999&bands=4,3,2/12&max_pixels=1000",
    ],
)
def test_pixel_options_as_text_read_back(text):
    options, others = take_pixel_options("x", dict(part.split("=") for part in text.split("&")))
    assert pixel_options_text(options) == text and not others
