"""The language model in 4 or 8 bits."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from fusion.quantization import quantization_config
from vision_core.errors import UserError


@pytest.mark.parametrize("bits", [4, 8])
def test_only_the_language_model_is_quantised(tmp_path, vlm, pictures, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model, processor = vlm()
    model.save_pretrained(tmp_path)
    quantised = AutoModelForImageTextToText.from_pretrained(
        tmp_path, quantization_config=quantization_config(bits)
    )
    kinds = {}
    for name, module in quantised.named_modules():
        if isinstance(module, torch.nn.Linear):
            kinds.setdefault(name.split(".")[0], set()).add(type(module) is torch.nn.Linear)
    assert kinds == {
        "vision_model": {True},
        "vision_sampler_layers": {True},
        "language_model": {True, False},
    }  # its head stays
    inputs = processor(text=["<image> what"], images=pictures[:1], return_tensors="pt")
    with torch.no_grad():
        difference = (quantised(**inputs).logits - model(**inputs).logits).abs().max()
    assert 0 < difference < 0.2


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(UserError, match="4 or 8 bits, not 3"):
        quantization_config(3)
