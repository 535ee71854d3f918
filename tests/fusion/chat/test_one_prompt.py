"""A conversation has the same ids wherever it is asked: in training, by the card's call, by
transformers' pipeline, in evaluation, with any template."""

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import pipeline
from transformers.utils.chat_template_utils import Chat

from fusion.assemble import assemble_vlm, fuse_encoders
from fusion.card import VLM_SNIPPET
from fusion.chat_templates import CHAT_TEMPLATES
from fusion.conversations.conversation import Conversation, Message
from fusion.conversations.tokens import chat_messages, tokenise
from fusion.evaluation.answers import replies
from fusion.tiny import tiny_language_model, tiny_tokenizer

NAMES = (
    "qwen3",
    "qwen2_5",
    "gemma3",
    "llama3_1",
    "phi3",
    "deepseek_r1_distill",
    "gptoss",
    "llama2",
    "mistral",
    "zephyr",
    "plain",
    "vicuna_v1",
)
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
HISTORY = (
    Message("user", "<image>\nwhat is it?"),
    Message("assistant", "a cat", learnt=False),  # shown, as to whoever asks the second question
    Message("user", "sure?"),
)


@pytest.fixture(scope="module")
def model():
    language_model, tokenizer = tiny_language_model("llama")
    vision_model, _ = fuse_encoders(["tiny:dinov2"], hidden_size=64, connector="mlp", grid=8)
    return assemble_vlm(vision_model, language_model, tokenizer)[0]


@pytest.fixture(scope="module", params=NAMES)
def processor(request, chat_processor, template_named, tokens_of):
    """With a tokenizer that adds BOS by itself, as Llama's, Mistral's and Gemma's do."""
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    template = template_named(request.param)
    return chat_processor(template, tokens_of(template), tokenizer)


def as_parts(messages, picture):
    """As a user of transformers writes it."""
    shown = [
        {"type": "image", "image": picture},
        {"type": "text", "text": messages[0].text.removeprefix("<image>\n")},
    ]
    return [
        {"role": "user", "content": shown},
        *({"role": each.role, "content": each.text} for each in messages[1:]),
    ]


def test_every_path_asks_with_the_ids_of_training(processor, model, monkeypatch):
    image = torch.from_numpy(PICTURE).permute(2, 0, 1)
    trained = tokenise(
        Conversation("row 1", (*HISTORY, Message("assistant", "yes")), (image,)), processor, 2**20
    ).input_ids
    asked = as_parts(HISTORY, PICTURE)

    call = processor.apply_chat_template(
        [asked], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    by_call = call["input_ids"][0].tolist()
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    by_hand = processor(text=[text], images=[PICTURE], return_tensors="pt")["input_ids"][0].tolist()
    by_pipeline = pipeline("image-text-to-text", model=model, processor=processor).preprocess(Chat(asked))
    seen = {}
    monkeypatch.setattr(
        type(model), "generate", lambda self, **inputs: seen.update(inputs) or inputs["input_ids"]
    )
    replies(model, processor, [chat_messages(HISTORY)], [image])

    assert trained[: len(by_call)] == by_call
    assert by_hand == by_call
    assert by_pipeline["input_ids"][0].tolist() == by_call
    assert seen["input_ids"][0].tolist() == by_call
    assert by_call[0] == processor.tokenizer.bos_token_id
    begins_with_bos = text.startswith("<s>")
    assert (
        by_call.count(processor.tokenizer.bos_token_id) == 1 or begins_with_bos and "[INST]" in text
    )  # Llama-2 writes it before every question


def test_a_text_gets_bos_once(chat_processor):
    tokenizer = tiny_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    processor = chat_processor(CHAT_TEMPLATES["plain"], (), tokenizer)
    plain, begun, bare = (
        processor(text=text, **more)["input_ids"][0]
        for text, more in (("hi", {}), ("<s>hi", {}), ("hi", {"add_special_tokens": False}))
    )
    assert plain == begun == [1, *bare]  # and no end, which would close a prompt


def test_the_card_shows_the_call_that_is_tested():
    assert (
        "processor.apply_chat_template(" in VLM_SNIPPET
        and "tokenize=True" in VLM_SNIPPET
        and 'convert("RGB")' not in VLM_SNIPPET
    )
