"""Where generation stops, and what of it is the answer."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from fusion import assemble_vlm, fuse_encoders
from fusion.chat_turns import add_stops, answer_in, stop_token_ids
from fusion.tiny import tiny_language_model

CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
THINKING = """{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' and loop.last -%}{{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' -}}{%- endif -%}
{{- message['content'] + '<|im_end|>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}
{%- if not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}{%- endif -%}"""
CHANNELS = """{%- for message in messages -%}{{- '<|start|>' + message['role'] -}}
{%- if message['role'] == 'assistant' -%}
{%- if message.thinking -%}{{- '<|channel|>analysis<|message|>' + message.thinking + '<|end|><|start|>assistant' -}}{%- endif -%}
{{- '<|channel|>final' -}}{%- endif -%}
{{- '<|message|>' + message['content'] + ('<|return|>' if loop.last and message['role'] == 'assistant' else '<|end|>') -}}
{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"""


def assembled(template, tokens):
    """A base model, whose only stop is its tokenizer's end of text, with a chat template."""
    model, tokenizer = tiny_language_model("llama")
    tokenizer.add_tokens(tokens)
    tokenizer.chat_template = template
    vision, _ = fuse_encoders(["tiny:dinov2"], hidden_size=64, connector="mlp", grid=8)
    return assemble_vlm(vision, model, tokenizer)


def test_generation_stops_where_training_ends_answers(tmp_path):
    model, processor = assembled(CHATML, ["<|im_start|>", "<|im_end|>"])
    end, eos = processor.tokenizer.convert_tokens_to_ids("<|im_end|>"), processor.tokenizer.eos_token_id
    assert stop_token_ids(processor) == [end] and model.generation_config.eos_token_id == [eos, end]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    head = torch.zeros_like(again.get_output_embeddings().weight)
    assert again.generation_config.eos_token_id == [eos, end]
    with torch.no_grad():  # a model that says nothing but the end of an answer
        head[end] = again.get_input_embeddings().weight.mean(0)
        again.get_output_embeddings().weight.copy_(head)
    prompt = AutoProcessor.from_pretrained(tmp_path)(text="hi", return_tensors="pt")
    logits = again(**prompt).logits[0, -1]
    if logits[end] < 0:
        with torch.no_grad():
            again.get_output_embeddings().weight[end] *= -1
    assert again.generate(**prompt, max_new_tokens=9, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist() == [end]


@pytest.mark.parametrize(
    ("known", "after"), [(None, [7]), (3, [3, 7]), ([3, 7], [3, 7]), ([7], 7)], ids=["none", "one", "has it", "only it"]
)
def test_stops_are_added_to_those_there_are(known, after, monkeypatch):
    monkeypatch.setattr("fusion.chat_turns.stop_token_ids", lambda processor: [7])
    config = GenerationConfig(eos_token_id=known)
    add_stops(config, None)
    assert config.eos_token_id == (after if isinstance(after, int) or len(after) > 1 else after[0])


@pytest.mark.parametrize(
    ("template", "thinking", "generated", "answer"),
    [
        (CHATML, False, "yes<|im_end|>", "yes"),
        (CHATML, False, " yes", "yes"),
        (THINKING, False, "yes<|im_end|>\nmore", "yes"),
        (THINKING, True, "<think>\nyes or no\n</think>\n\nno<|im_end|>", "no"),
        (THINKING, True, "<think>\nyes or no", ""),
        (THINKING, True, "no<|im_end|>", "no"),
        (CHANNELS, False, "<|channel|>final<|message|>yes<|return|>", "yes"),
        (CHANNELS, True, "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>", "yes"),
        (CHANNELS, True, "<|channel|>analysis<|message|>hm", ""),
    ],
)
def test_the_answer_in_what_was_generated(template, thinking, generated, answer):
    names = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|start|>", "<|end|>", "<|return|>", "<|channel|>", "<|message|>"]
    processor = assembled(template, names)[1]
    assert answer_in(processor, generated, thinking) == answer


def test_named_chat_templates_of_a_language_model(tmp_path):
    """transformers keeps several as a dict; the one called default is used, all take images."""
    model, processor = assembled({"default": CHATML, "shout": CHATML.replace("user", "USER")}, ["<|im_start|>", "<|im_end|>"])
    processor.save_pretrained(tmp_path)
    shown = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]
    for each in (processor, AutoProcessor.from_pretrained(tmp_path)):
        assert each.apply_chat_template(shown) == "<|im_start|>user\n<image>\nhi<|im_end|>\n"
        assert each.apply_chat_template(shown, chat_template="shout").startswith("<|im_start|>user")
    assert model.generation_config.eos_token_id[-1] == stop_token_ids(processor)[0]
