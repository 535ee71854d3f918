"""What the cards of SigLIP and MAE say about their images."""

import pytest

from pretrain import mae, siglip
from pretrain.run.complete_model import fit_processor
from pretrain.run.feeding import feeding
from vision_core.images.open_source import open_source
from vision_core.images.pixel_options import PixelOptions, Scale


@pytest.mark.parametrize("name", ["mae", "siglip"])
def test_cards_of_other_methods_feed_scaled_images(name):
    """And a processor of another run is set both ways."""
    loading = {"mae": mae, "siglip": siglip}[name].LOADING
    card = feeding(loading, 3, PixelOptions(Scale("values", 0.0, 4095.0)), True)
    assert (
        "load_image" not in card
        and 'open_source("folder:path/to/images?scale=4095", num_channels=3)[0].image' in card
    )
    assert feeding(loading, 3, PixelOptions(), False) == loading
    processor = siglip.SiglipImageProcessor(size={"height": 32, "width": 32}, do_rescale=False)
    assert fit_processor(processor, open_source("scenes")).do_rescale
