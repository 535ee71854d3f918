"""LoRA in the language model of a fused model."""

import copy

import pytest
import torch

from fusion import FusionVlmForConditionalGeneration
from fusion.lora import lora_config

TEXTS = ["what is <image> here", "a dog runs", "<image><image> and <image> side by side"]  # 1, 0 and 3 images


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def answers(model, inputs):
    ids = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def test_lora_stays_in_the_language_model_and_the_connector_is_saved(vlm, pictures, tmp_path):
    peft = pytest.importorskip("peft")
    model, processor = vlm(vision=None)
    batch = processor(text=TEXTS, images=pictures[:4], return_tensors="pt", padding=True)
    kept = batch["attention_mask"].bool()
    before = logits(model, batch)
    adapted = peft.get_peft_model(copy.deepcopy(model), lora_config(model, rank=4))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert any(name.endswith("image_newline") for name in trained)
    assert all("language_model" in name for name in trained if "lora_" in name)
    assert not [name for name in trained if ".encoders." in name]
    adapted.train()
    adapted(**batch, labels=batch["input_ids"]).loss.backward()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data -= 0.1 * parameter.grad
    adapted.eval().save_pretrained(tmp_path)
    after = logits(adapted, batch)
    assert (after - before)[kept].abs().max() > 1e-3
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    assert torch.allclose(logits(again, batch)[kept], after[kept], atol=1e-5)
    merged = again.merge_and_unload()
    assert isinstance(merged, FusionVlmForConditionalGeneration)
    assert torch.allclose(logits(merged, batch)[kept], after[kept], atol=1e-4)
    assert answers(merged, batch) == answers(again, batch)
