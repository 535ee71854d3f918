"""The tools around transformers' models, each with a fused model and, where it can do the same,
beside transformers' own Llava."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, pipeline

from fusion import assemble_vlm
from fusion.image_reading import decoder_layers
from fusion.tiny import tiny_language_model
from vision_core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module", params=["fused", "llava"])
def model_and_processor(request, vlm, tiny_llava):
    return vlm() if request.param == "fused" else tiny_llava()


@pytest.fixture(scope="module")
def fused_vlm(vlm):
    return vlm()


def one_image(processor, pictures):
    return processor(text=["what is <image> here"], images=pictures[:1], return_tensors="pt")


def several_images(processor, pictures):
    texts = ["what is <image> here", "a dog and <image><image>"]
    return processor(text=texts, images=pictures[:3], return_tensors="pt", padding=True)


def test_the_base_model_is_what_the_head_reads(model_and_processor, pictures):
    model, processor = model_and_processor
    inputs = several_images(processor, pictures)
    with torch.no_grad():
        states = model.base_model(**inputs).last_hidden_state
        assert torch.equal(model.get_output_embeddings()(states), model(**inputs).logits)
    assert model.base_model is not model


def test_a_prompt_in_chunks_of_any_size(model_and_processor, pictures):
    """Chunks of 1 token cut every image, and leave some with the end of a row alone."""
    model, processor = model_and_processor
    inputs = several_images(processor, pictures)
    for beams in (1, 2):
        whole = model.generate(**inputs, **GREEDY, num_beams=beams)
        for size in (1, 5, 7, 1000):
            assert torch.equal(
                model.generate(**inputs, **GREEDY, num_beams=beams, prefill_chunk_size=size), whole
            )


@pytest.mark.filterwarnings("error:var")
def test_a_chunk_sees_its_own_windows(fused_vlm, pictures):
    """Logits behind a prompt in chunks, which greedy tokens would hide."""
    model, processor = fused_vlm
    inputs = several_images(processor, pictures)
    options = {
        "max_new_tokens": 1,
        "output_logits": True,
        "return_dict_in_generate": True,
        "do_sample": False,
    }
    whole = model.generate(**inputs, **options).logits[0]
    for size in (1, 3, 11):
        assert (
            model.generate(**inputs, **options, prefill_chunk_size=size).logits[0] - whole
        ).abs().max() < 1e-5


def test_assisted_generation_is_greedy(model_and_processor, pictures):
    model, processor = model_and_processor
    inputs = one_image(processor, pictures)
    assistant, _ = tiny_language_model(
        seed=3, tokenizer=processor.tokenizer, num_hidden_layers=2, hidden_size=32
    )
    alone = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY, assistant_model=assistant), alone)
    assert torch.equal(model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=3), alone)


def chat(picture, text):
    return [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}
    ]


def test_pipeline_in_batches(model_and_processor, pictures):
    model, processor = model_and_processor
    asked = ["what?", "what is in the picture?", "is it a dog?"]
    messages = [chat(picture, text) for picture, text in zip(pictures, asked, strict=False)]
    generator = pipeline("image-text-to-text", model=model, processor=processor)
    options = {"return_full_text": False, "generate_kwargs": GREEDY}
    together = generator(text=messages, batch_size=3, **options)
    alone = [generator(text=each, **options) for each in messages]
    assert [each[0]["generated_text"] for each in together] == [each[0]["generated_text"] for each in alone]
    texts = [f"<image> {text}" for text in asked]
    plain = generator(images=pictures[:3], text=texts, **options)
    inputs = processor(text=texts, images=pictures[:3], return_tensors="pt", padding=True)
    answers = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert [each["generated_text"] for each in plain] == processor.batch_decode(
        answers, skip_special_tokens=True
    )


def test_pipeline_from_a_folder(fused_vlm, pictures, tmp_path):
    model, processor = fused_vlm
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    generator = pipeline("image-text-to-text", model=str(tmp_path))
    messages = [chat(picture, "what?") for picture in pictures[:4]]
    answers = generator(text=messages, batch_size=3, return_full_text=False, generate_kwargs=GREEDY)
    assert len(answers) == 4 and all(each[0]["generated_text"] for each in answers)


DEVICE_MAPS = [
    {"": "cpu"},
    {"": "disk"},
    {"vision_model": "disk", "language_model": "cpu", "vision_sampler_layers": "disk"},
    {"vision_model": "cpu", "language_model": "disk", "vision_sampler_layers": "cpu"},
]


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


@pytest.fixture
def talks_of_images(vlm):
    """A model to which an image's token is by far the likeliest next token, whatever was said, and
    its processor."""
    model, processor = vlm()
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[model.config.image_token_id] = 1e4
    return model, processor


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "top_p": 0.1},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_beams": 2},
        {"do_sample": True, "num_return_sequences": 2},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "prompt_lookup_num_tokens": 3},
        {"do_sample": False, "prefill_chunk_size": 4},
    ],
    ids=str,
)
def test_an_images_token_is_never_said(talks_of_images, pictures, options):
    model, processor = talks_of_images
    single = "prompt_lookup_num_tokens" in options
    inputs = one_image(processor, pictures) if single else several_images(processor, pictures)
    said = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, **options)[
        :, inputs["input_ids"].shape[1] :
    ]
    assert said.shape[1] == 6 and model.config.image_token_id not in said
    assert model.generation_config.suppress_tokens is None, "what is saved says nothing of this"


def test_an_assistant_that_talks_of_images(talks_of_images, pictures):
    model, processor = talks_of_images
    inputs = one_image(processor, pictures)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    alone = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, assistant_model=model.language_model), alone)
    with pytest.raises(
        UserError, match="a fused model cannot be one; pass assistant_model=its.language_model"
    ):
        model.generate(**inputs, **options, assistant_model=model)


def test_a_stray_image_token_behind_a_prompt_is_a_token_like_any_other(fused_vlm, pictures):
    model, processor = fused_vlm
    inputs = several_images(processor, pictures)
    stray = torch.tensor([[5], [model.config.image_token_id]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        logits = model(input_ids=stray, past_key_values=cache, attention_mask=mask).logits
    assert torch.isfinite(logits).all()
    without = {name: value for name, value in inputs.items() if name not in ("pixel_values", "image_sizes")}
    with pytest.raises(UserError, match="places for image tokens and 0 images"):
        model.generate(**without, **GREEDY)


def test_rows_of_images_are_cut_like_tensors(fused_vlm):
    """Every row of several images, in any order, has the token, and each cell the windows, that it
    had."""
    model, processor = fused_vlm
    generator = np.random.default_rng(1)
    pictures = [
        Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8))
        for shape in [(60, 80), (90, 30)]
    ]
    with torch.no_grad():
        images = model.get_image_features(**processor.image_processor(pictures)).pooler_output
    joined = torch.cat([image.reshape(-1, image.shape[-1]) for image in images])
    rows = torch.from_numpy(generator.permutation(len(joined))[:7])
    part = joined[rows]
    windows = [(image, number) for image in images for number in range(int(image.cells.sum()))]
    cells = [int(joined.cells[:row].sum()) for row in rows.tolist() if joined.cells[row]]
    assert torch.equal(part.tokens, torch.cat([image.tokens for image in images])[rows])
    assert len(part.windows.image_index) == len(cells) == int(part.cells.sum())
    for place, cell in enumerate(cells):
        image, number = windows[cell]
        for ours, theirs in zip(part.windows.tokens, image.windows.tokens, strict=True):
            assert torch.equal(ours[place], theirs[number])
        assert torch.equal(part.windows.context[part.windows.image_index[place]], image.windows.context[0])


def test_layers_are_found_with_and_without_the_head(fused_vlm):
    model, _ = fused_vlm
    assert decoder_layers(model.language_model) is decoder_layers(model.base_model.language_model)


def test_a_fused_model_is_no_language_model_of_another(fused, fused_vlm):
    model, processor = fused_vlm
    with pytest.raises(UserError, match="is a fused vision-language model itself; name a language model"):
        assemble_vlm(fused()[0], model, processor.tokenizer)


def test_distributed_data_parallel_on_a_loaded_model(runs, vlm, tiny_llava, tmp_path):
    """Plain where every batch has images. A batch of text alone reaches no connector, here as in
    Llava, which DDP has to be told to look for."""
    for name, (model, processor) in {"fused": vlm(), "llava": tiny_llava()}.items():
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    wanted = [f"plain:{tmp_path / 'fused'}", f"text:{tmp_path / 'fused'}", f"text:{tmp_path / 'llava'}"]
    torchrun = ["torchrun", "--standalone", "--nproc_per_node", "2"]
    worker = Path(__file__).with_name("two_process_worker.py")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    runs.finish(
        runs.launch(
            torchrun, worker, tmp_path / "result.json", *wanted, environment=environment, folder=tmp_path
        )
    )
    results = json.loads((tmp_path / "result.json").read_text())
    assert list(results) == wanted
    for result in results.values():
        assert len(result["losses"]) == 2 and result["losses"][0] > 0
        assert result["sums"][0] == result["sums"][1], "the processes' models differ"
