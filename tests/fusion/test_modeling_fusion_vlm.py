"""A language model that reads the tokens of several encoders: generation, caching, training,
peft."""

import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText

from fusion import assemble_vlm
from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.tiny import FAMILIES, tiny_language_model
from vision_core.errors import UserError

TEXTS = ["what is <image> here", "a dog runs", "<image><image> and <image> side by side"]  # 1, 0 and 3 images


@pytest.fixture(scope="module")
def model_and_processor(vlm):
    return vlm()


def mixed_batch(processor, pictures, **options):
    return processor(text=TEXTS, images=pictures[:4], return_tensors="pt", padding=True, **options)


def single(processor, pictures, index):
    first = [0, 1, 1][index]
    images = pictures[first : first + TEXTS[index].count("<image>")]
    return processor(text=[TEXTS[index]], images=images or None, return_tensors="pt")


def answers(model, inputs, **options):
    ids = model.generate(
        **inputs, **{"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, **options}
    )
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


def logits(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options).logits


def calls_of_vision_layers(model):
    """A list that grows by one with every call of a layer inside the language model."""
    calls = []
    for layer in model.vision_sampler_layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_is_single_and_cached_is_uncached_in_every_family(vlm, pictures, family):
    model, processor = vlm(family)
    batch = mixed_batch(processor, pictures)
    together = answers(model, batch)
    for index in range(len(TEXTS)):
        assert answers(model, single(processor, pictures, index)) == together[index : index + 1]
    assert answers(model, batch, use_cache=False) == together


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_with_a_cache_are_those_without(vlm, pictures, family):
    model, processor = vlm(family)
    inputs = single(processor, pictures, 2)
    whole = logits(model, inputs)
    more = torch.tensor([[5, 9]])
    ids = torch.cat([inputs["input_ids"], more], dim=1)
    uncached = logits(model, {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        cached = model(input_ids=more, past_key_values=cache, attention_mask=torch.ones_like(ids)).logits
    assert (cached - uncached[:, -2:]).norm() <= 1e-4 * uncached[:, -2:].norm()
    assert (whole - uncached[:, :-2]).norm() <= 1e-4 * whole.norm()


def test_beams_and_several_sequences_see_their_own_images(model_and_processor, pictures):
    model, processor = model_and_processor
    batch = mixed_batch(processor, pictures)
    together = answers(model, batch, num_beams=3, num_return_sequences=2)
    for index in range(len(TEXTS)):
        alone = answers(model, single(processor, pictures, index), num_beams=3, num_return_sequences=2)
        assert alone == together[2 * index : 2 * index + 2]


def test_images_change_the_answer_and_none_stays_behind(model_and_processor, pictures):
    model, processor = model_and_processor
    text_only = single(processor, pictures, 1)
    before = logits(model, text_only)
    one = single(processor, pictures, 0)
    other = processor(text=[TEXTS[0]], images=[pictures[0].transpose(1)], return_tensors="pt")
    assert (logits(model, one) - logits(model, other)).abs().max() > 1e-3
    answers(model, one)
    assert torch.equal(logits(model, text_only), before)
    assert not [
        name
        for name, value in vars(model).items()
        if isinstance(value, torch.Tensor | list) and name != "_modules"
    ]


def test_decode_steps_cost_nothing(vlm, pictures):
    model, processor = vlm()
    calls = calls_of_vision_layers(model)
    encoded = []
    model.vision_model.connector.register_forward_hook(lambda *_: encoded.append(1))
    inputs = single(processor, pictures, 0)
    answers(model, inputs, max_new_tokens=12, min_new_tokens=12)
    assert len(calls) == len(model.config.sva_layers)
    assert len(encoded) == 1
    answers(model, single(processor, pictures, 1))
    assert len(calls) == len(model.config.sva_layers)
    hooks = [layer._forward_hooks for layer in model.language_model.model.layers]
    assert not any(hooks)


def test_layers_in_the_language_model_change_image_positions_from_their_layer_on(vlm, pictures):
    model, processor = vlm(num_sva_layers=1, sva_start=1)
    inputs = single(processor, pictures, 0)
    with torch.no_grad():
        with_layer = model(**inputs, output_hidden_states=True).hidden_states
        model.config.num_sva_layers = 0
        without = model(**inputs, output_hidden_states=True).hidden_states
    model.config.num_sva_layers = 1
    image = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output[0]
    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten()[image.cells]
    changed = [(one - other)[0].abs().amax(1) > 0 for one, other in zip(with_layer, without, strict=True)]
    assert not any(each.any() for each in changed[:2])
    assert changed[2].nonzero().flatten().tolist() == places.tolist()  # newlines keep their states


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_training_reaches_every_new_part_whichever_side_is_padded(vlm, pictures, family):
    model, processor = vlm(family, sizes={"num_hidden_layers": 4})
    results = {}
    for side in ("left", "right"):
        batch = mixed_batch(processor, pictures, padding_side=side)
        # nothing is asked of padding, nor about the first token, which padding on the left would be
        # asked to predict
        unasked = (
            (batch["attention_mask"] == 0)
            | (batch["attention_mask"].cumsum(1) == 1)
            | (batch["input_ids"] == model.config.image_token_id)
        )
        labels = batch["input_ids"].masked_fill(unasked, -100)
        model.zero_grad()
        output = model(**batch, labels=labels)
        output.loss.backward()
        new = {
            **dict(model.vision_model.connector.named_parameters()),
            **dict(model.vision_sampler_layers.named_parameters()),
        }
        assert [
            name for name, each in new.items() if each.grad is None or not each.grad.abs().sum() > 0
        ] == []
        assert all(parameter.grad is None for parameter in model.vision_model.encoders.parameters())
        results[side] = (output.loss.detach(), {name: each.grad.clone() for name, each in new.items()})
    assert torch.allclose(results["left"][0], results["right"][0], rtol=1e-5)
    for name, gradient in results["left"][1].items():
        assert (gradient - results["right"][1][name]).norm() <= 1e-4 * gradient.norm() + 1e-7


def test_checkpointing_gives_the_same_gradients(vlm, pictures):
    model, processor = vlm()
    batch = mixed_batch(processor, pictures)
    gradients = []
    for checkpointed in (False, True):
        twin = copy.deepcopy(model).train()
        if checkpointed:
            twin.gradient_checkpointing_enable()
            assert all(
                layer.gradient_checkpointing
                for layer in twin.modules()
                if isinstance(layer, VisionCrossAttentionLayer)
            )
        calls = calls_of_vision_layers(twin)
        twin(**batch, labels=batch["input_ids"]).loss.backward()
        assert len(calls) == 2
        gradients.append({name: each.grad for name, each in twin.named_parameters() if each.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-7), name


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_attention_implementations_agree(tmp_path, model_and_processor, pictures, implementation):
    model, processor = model_and_processor
    model.save_pretrained(tmp_path)
    other = AutoModelForImageTextToText.from_pretrained(
        tmp_path, attn_implementation={"text_config": implementation}
    )
    assert other.language_model.config._attn_implementation == implementation
    batch = mixed_batch(processor, pictures)
    kept = batch["attention_mask"].bool()
    assert torch.allclose(logits(other, batch)[kept], logits(model, batch)[kept], atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_saved_is_in_memory_bit_for_bit_in_a_fresh_process(runs, tmp_path, vlm, pictures, family):
    model, processor = vlm(family, sizes={"tie_word_embeddings": family != "llama"})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = mixed_batch(processor, pictures)
    for index, picture in enumerate(pictures[:4]):
        picture.save(tmp_path / f"{index}.png")
    script = f"""
import torch
from PIL import Image
import fusion
from transformers import AutoModelForImageTextToText, AutoProcessor
folder = {str(tmp_path)!r}
processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
images = [Image.open(f"{{folder}}/{{index}}.png") for index in range(4)]
batch = processor(text={TEXTS!r}, images=images, return_tensors="pt", padding=True)
with torch.no_grad():
    torch.save(model(**batch).logits, folder + "/logits.pt")
"""
    runs.finish(runs.start_plain(script, project=True))
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits(model, batch))


def test_type_and_device_map(tmp_path, model_and_processor, pictures):
    model, processor = model_and_processor
    model.save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    batch = mixed_batch(processor, pictures)
    kept = batch["attention_mask"].bool()
    assert torch.allclose(logits(half, batch)[kept].float(), logits(model, batch)[kept], atol=0.1)
    assert "LlamaDecoderLayer" in half._no_split_modules


def test_bad_input(model_and_processor, pictures, vlm, fused):
    model, processor = model_and_processor
    batch = mixed_batch(processor, pictures)
    without = {name: value for name, value in batch.items() if name not in ("pixel_values", "image_sizes")}
    with pytest.raises(
        UserError,
        match=r"places for image tokens and 0 images have 0 \(none\); make text and images with one call",
    ):
        model(**without)
    fewer = {**batch, "pixel_values": batch["pixel_values"][:2], "image_sizes": batch["image_sizes"][:2]}
    with pytest.raises(UserError, match="places for image tokens and 2 images have"):
        model(**fewer)
    with pytest.raises(UserError, match="image_sizes is missing"):
        model(**{**batch, "image_sizes": None})
    with pytest.raises(UserError, match="holds no images"):
        model(
            **{**without, "pixel_values": batch["pixel_values"][:0], "image_sizes": batch["image_sizes"][:0]}
        )
    right = mixed_batch(processor, pictures, padding_side="right")
    with pytest.raises(UserError, match="needs padding on the left"):
        model.generate(**right)
    with pytest.raises(ValueError, match="number of images passed"):
        processor(text=["two <image><image>"], images=pictures[:1])
    with pytest.raises(UserError, match="reads 64; fuse the encoders with hidden_size=64"):
        vlm(vision=fused(hidden_size=32))
    with pytest.raises(UserError, match=r"layers 0, 3 .* only 2 \(0 to 1\)"):
        vlm(sva_stride=3, sizes={"num_hidden_layers": 2})
    with pytest.raises(UserError, match="needs the connector sva, not channel_concat"):
        vlm(vision=fused("channel_concat", encoder_grids=[4, 4]))
    with pytest.raises(UserError, match="pass tokenizer="):
        assemble_vlm(fused()[0], tiny_language_model()[0])


def test_tensors_have_the_names_that_older_checkpoints_have(model_and_processor):
    model, _ = model_and_processor
    parts = {".".join(name.split(".")[:2]) for name in model.state_dict()}
    of_vision = {
        "vision_model.connector",
        "vision_model.encoders",
        "vision_sampler_layers.0",
        "vision_sampler_layers.1",
    }
    assert parts == of_vision | {"language_model.lm_head", "language_model.model"}


def test_thin_and_tiny_images_are_read(model_and_processor, pictures):
    model, processor = model_and_processor
    thin = pictures[0].resize((300, 10))
    inputs = processor(text=["<image><image>"], images=[pictures[4], thin], return_tensors="pt")
    assert torch.isfinite(logits(model, inputs)).all()
