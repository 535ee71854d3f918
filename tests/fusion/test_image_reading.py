"""How a language model is made to read images."""

from fusion.image_reading import decoder_layers


def test_layers_are_found_with_and_without_the_head(vlm):
    model, _ = vlm()
    assert decoder_layers(model.language_model) is decoder_layers(model.base_model.language_model)
