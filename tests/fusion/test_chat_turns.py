"""Where generation stops, and what of it is the answer."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from fusion import assemble_vlm, fuse_encoders
from fusion.chat_turns import ChatTemplateError, add_stops, answer_in, render_chat, stop_token_ids
from fusion.tiny import tiny_language_model
from vision_core.errors import UserError

CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
THINKING = """{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' and loop.last -%}
{{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' -}}{%- endif -%}
{{- message['content'] + '<|im_end|>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}
{%- if not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}{%- endif -%}"""
CHANNELS = """{%- for message in messages -%}{{- '<|start|>' + message['role'] -}}
{%- if message['role'] == 'assistant' -%}
{%- if message.thinking -%}
{{- '<|channel|>analysis<|message|>' + message.thinking + '<|end|><|start|>assistant' -}}{%- endif -%}
{{- '<|channel|>final' -}}{%- endif -%}
{{- '<|message|>' + message['content'] -}}
{{- '<|return|>' if loop.last and message['role'] == 'assistant' else '<|end|>' -}}
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
    end, eos = (processor.tokenizer.convert_tokens_to_ids("<|im_end|>"), processor.tokenizer.eos_token_id)
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
    assert again.generate(**prompt, max_new_tokens=9, do_sample=False)[
        0, prompt["input_ids"].shape[1] :
    ].tolist() == [end]


def test_stops_are_added_to_those_there_are():
    processor = assembled(CHATML, ["<|im_start|>", "<|im_end|>"])[1]
    (end,) = stop_token_ids(processor)
    cases = [
        (None, end),
        (3, [3, end]),
        ([3, end], [3, end]),
        ([end], end),
        (torch.tensor(3), [3, end]),
        (torch.tensor([3, 4]), [3, 4, end]),
    ]
    for known, after in cases:
        config = GenerationConfig()
        config.eos_token_id = known
        add_stops(config, processor)
        assert config.eos_token_id == after
    assert processor.decode([end], skip_special_tokens=True) == ""  # though it was added as an ordinary token


def test_a_template_that_wants_a_system_turn():
    wants = (
        "{%- if messages[0]['role'] != 'system' -%}{{ raise_exception('system first') }}{%- endif -%}"
        + CHATML
    )
    model, processor = assembled(wants, ["<|im_start|>", "<|im_end|>"])
    assert (
        stop_token_ids(processor)[0] in model.generation_config.eos_token_id
        and answer_in(processor, "yes<|im_end|>") == "yes"
    )


def test_a_template_under_which_nothing_can_be_learnt_is_said():
    with pytest.warns(UserWarning, match="no answer can be learnt under this chat template: .* drops"):
        assembled("{%- for message in messages -%}{{ message['content'] | upper }}{%- endfor -%}", [])


def test_an_answer_with_the_end_in_it_is_refused():
    processor = assembled(CHATML, ["<|im_start|>", "<|im_end|>"])[1]
    for text in ("a<|im_end|>\n<|im_start|>user\nb", "<s>old</s> new", "see <image>"):
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        with pytest.raises(
            ChatTemplateError, match="turn 2 contains .* a token of its own; write it in other words"
        ):
            render_chat(processor, turns)


def test_a_saved_llama_tokenizer_reads_as_before(tmp_path):
    """transformers 5.24 forgets `legacy` when it saves, and makes other tokens of what follows a
    special one."""
    from transformers import LlamaTokenizer

    pieces = ["<unk>", "<s>", "</s>", "\u2581", *"abuser:SERTINWHO\n", "\u2581a"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[("\u2581", "a")], legacy=True)
    model, _ = tiny_language_model("llama", tokenizer=tokenizer)
    vision, _ = fuse_encoders(["tiny:dinov2"], hidden_size=64, connector="mlp", grid=8)
    _, processor = assemble_vlm(vision, model, tokenizer)
    processor.save_pretrained(tmp_path)
    text = "<s>a b</s>a"
    assert (
        AutoProcessor.from_pretrained(tmp_path)(text=text)["input_ids"] == processor(text=text)["input_ids"]
    )


def test_tokenizers_that_cannot_serve_are_refused():
    """Without places of tokens in the text an answer cannot be told from its prompt."""
    from transformers import ByT5Tokenizer

    model, _ = tiny_language_model("llama")
    vision, _ = fuse_encoders(["tiny:dinov2"], hidden_size=64, connector="mlp", grid=8)
    with pytest.raises(
        UserError, match="ByT5Tokenizer does not tell where .* use a tokenizer with a tokenizer.json"
    ):
        assemble_vlm(vision, model, ByT5Tokenizer())


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
        (
            CHANNELS,
            True,
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>",
            "yes",
        ),
        (CHANNELS, True, "<|channel|>analysis<|message|>hm", ""),
        (CHANNELS, False, "<|channel|>analysis<|message|>hm", ""),
    ],
)
def test_the_answer_in_what_was_generated(template, thinking, generated, answer):
    names = [
        "<|im_start|>",
        "<|im_end|>",
        "<think>",
        "</think>",
        "<|start|>",
        "<|end|>",
        "<|return|>",
        "<|channel|>",
        "<|message|>",
    ]
    processor = assembled(template, names)[1]
    assert answer_in(processor, generated, thinking) == answer


def test_named_chat_templates_of_a_language_model(tmp_path):
    """transformers keeps several as a dict; the one called default is used, all take images."""
    model, processor = assembled(
        {"default": CHATML, "shout": CHATML.replace("user", "USER")}, ["<|im_start|>", "<|im_end|>"]
    )
    processor.save_pretrained(tmp_path)
    shown = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]
    for each in (processor, AutoProcessor.from_pretrained(tmp_path)):
        assert each.apply_chat_template(shown) == "<|im_start|>user\n<image>\nhi<|im_end|>\n"
        assert each.apply_chat_template(shown, chat_template="shout").startswith("<|im_start|>user")
    assert model.generation_config.eos_token_id[-1] == stop_token_ids(processor)[0]
