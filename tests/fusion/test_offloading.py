"""Weights that lie on the disk are brought when their layer is called, with a fused model and, where
it can do the same, with transformers' own Llava."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


DEVICE_MAPS = [
    {"": "cpu"},
    {"": "disk"},
    {"vision_model": "disk", "language_model": "cpu", "vision_sampler_layers": "disk"},
    {"vision_model": "cpu", "language_model": "disk", "vision_sampler_layers": "cpu"},
]


@pytest.fixture(params=["fused", "llava"])
def model_and_processor(request, vlm, tiny_llava):
    return vlm() if request.param == "fused" else tiny_llava()


def several_images(processor, pictures):
    texts = ["what is <image> here", "a dog and <image><image>"]
    return processor(text=texts, images=pictures[:3], return_tensors="pt", padding=True)


def loaded_on(folder, device_map, aside, **options):
    return AutoModelForImageTextToText.from_pretrained(
        folder, device_map=device_map, offload_folder=aside, **options
    ).eval()


@pytest.mark.parametrize("device_map", DEVICE_MAPS, ids=str)
@pytest.mark.parametrize("connector", ["sva", "resampler"])
def test_weights_on_disk(fused, vlm, pictures, tmp_path, device_map, connector):
    """timm's and open_clip's encoders, the aggregator's layers and the resampler's compute with
    weights of modules that they do not call."""
    encoders = (
        ("tiny:dinov2", "tiny:timm_siglip") if connector == "sva" else ("tiny:siglip", "tiny:open_clip_vit")
    )
    options = (
        {} if connector == "sva" else {"connector_options": {"width": 16, "num_heads": 4, "num_queries": 5}}
    )
    layers = {} if connector == "sva" else {"num_sva_layers": 0}
    model, processor = vlm(vision=fused(connector, encoders=encoders, **options), **layers)
    model.save_pretrained(tmp_path / "model")
    inputs = several_images(processor, pictures)
    known = {
        part: place
        for part, place in device_map.items()
        if not part or len(list(getattr(model, part).parameters()))
    }
    placed = loaded_on(tmp_path / "model", known, tmp_path / "aside")
    with torch.no_grad():
        torch.testing.assert_close(placed(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(placed.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))


def test_automatic_device_map(model_and_processor, pictures, tmp_path):
    """With memory for half of the model the rest goes to the disk, and no layer is cut in two."""
    model, processor = model_and_processor
    model.save_pretrained(tmp_path / "model")
    memory = sum(each.numel() * each.element_size() for each in model.parameters()) // 2
    placed = loaded_on(tmp_path / "model", "auto", tmp_path / "aside", max_memory={"cpu": memory})
    assert set(placed.hf_device_map.values()) == {"cpu", "disk"}
    whole = tuple(placed._no_split_modules)
    split = [
        name
        for name, each in placed.named_modules()
        if type(each).__name__ in whole and is_split(name, placed.hf_device_map)
    ]
    assert not split
    inputs = several_images(processor, pictures)
    with torch.no_grad():
        torch.testing.assert_close(placed(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(placed.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))


def is_split(name, device_map):
    return any(part.startswith(f"{name}.") for part in device_map)
