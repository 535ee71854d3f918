"""The processors that SigLIP and MAE train and publish with."""

import pytest
import torch

from pretrain import mae, siglip
from pretrain.run.complete_model import fit_processor, normalisation_of
from vision_core.images.open_source import open_source
from vision_core.images.pixel_options import PixelOptions, Scale


@pytest.mark.parametrize("name", ["mae", "siglip"])
def test_other_methods_feed_scaled_images_once(name):
    """Images of 0 to 1 are not divided by 255 again, in training or by the processor that is
    published."""
    values = torch.rand(3, 32, 32)
    source = open_source("scenes")
    source.pixel_options = PixelOptions(Scale("values", 0.0, 4095.0))
    if name == "mae":
        processor = fit_processor(mae.build_model(mae.MaeArguments(image_size=32))[1], source)
        fed = mae.collate(
            processor.image_mean, processor.image_std, [{"view": values, "noise": torch.rand(16)}]
        )["pixel_values"]
    else:
        processor = fit_processor(siglip.SiglipImageProcessor(size={"height": 32, "width": 32}), source)
        fed = processor([values], return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(figures).view(-1, 1, 1) for figures in normalisation_of(processor))
    torch.testing.assert_close(fed[0], (values - mean) / std, rtol=0, atol=1e-5)
    published = processor([values], return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    torch.testing.assert_close(published[0], fed[0], rtol=0, atol=1e-5)
