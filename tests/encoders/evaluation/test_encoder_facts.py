import pytest

from encoders import load_encoder
from encoders.evaluation.encoder_facts import training_paradigm, viewing_protocol


@pytest.mark.parametrize(
    ("source", "paradigm"),
    [
        ("tiny:dinov2", "self-distillation"),
        ("tiny:siglip", "image-text"),
        ("tiny:vit_mae", "reconstruction"),
        ("raw_pixels", "none"),
    ],
)
def test_the_paradigm_of_a_family(source, paradigm):
    assert training_paradigm(load_encoder(source)) == paradigm


def test_how_an_encoder_looks_at_images_in_words():
    encoder = load_encoder("raw_pixels")
    height, width = encoder.transform.size
    words = viewing_protocol(encoder)
    assert words.startswith(f"{height} x {width} pixels, ") and " interpolation; " in words
    assert words.endswith(f"; 1 layer of {encoder.width} of stride {encoder.stride}")
