"""Shares of the attention, as numbers and as a picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.pictures import attention_shares, share_picture
from vision_core.errors import UserError


def test_attention_shares_sum_to_one_and_make_a_picture(vlm, fused, pictures):
    model, processor = vlm()
    inputs = processor(text=["<image> and <image>"], images=pictures[:2], return_tensors="pt")
    shares = attention_shares(model, **inputs)
    assert shares.shape == (4 * 4 + 4 * 2, 2)
    assert torch.allclose(shares.sum(1), torch.ones(len(shares)))
    picture = share_picture(model, pictures[:2], inputs)
    assert picture.width > 2 * 64
    vision, image_processor = fused()
    assert attention_shares(vision, **image_processor(pictures)).shape[1] == 2
    with pytest.raises(UserError, match="connector sva"):
        attention_shares(fused("channel_concat", encoder_grids=[4, 4])[0], **image_processor(pictures))


def test_the_picture_of_shares_shows_an_image_upright(fused, tmp_path):
    """As the encoders saw it, so that a share stands at its place."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.arange(64, dtype=np.uint8).repeat(3).reshape(1, 64, 3).repeat(32, axis=0) * 4)
    image.save(tmp_path / "turned.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    model, image_processor = fused()

    def shown(name):
        inputs = image_processor(tmp_path / name)
        return share_picture(model, [Image.open(tmp_path / name)], inputs)

    assert np.array_equal(np.asarray(shown("turned.png")), np.asarray(shown("upright.png")))


def test_shares_follow_the_attention(fused, pictures):
    """With keys of one encoder made large along the query, all attention goes there."""
    model, image_processor = fused()
    batch = image_processor(pictures[:1])
    for layer in model.connector.vision_sampler[0]:
        layer.attention.k_norms[0].weight.data.zero_()
        layer.attention.k_norms[1].weight.data.zero_()
    even = attention_shares(model, **batch)
    inside = torch.full((len(even),), 1 / 5)  # one key of the first encoder, four of the second
    assert (even[:, 0] >= inside - 1e-5).all()  # more where windows of the second are partly padding
    assert torch.allclose(even.amin(0)[0], torch.tensor(0.2), atol=1e-5)
