"""Only what the assistant says is learnt, whatever the language model's chat template makes of
it."""

from dataclasses import replace

import pytest
import torch

from fusion import assemble_vlm, fuse_encoders
from fusion.conversations.conversation import BadRow, Conversation, Message
from fusion.conversations.tokens import tokenise
from fusion.labels import LABEL_IGNORED
from fusion.tiny import tiny_language_model
from vision_core.errors import UserError

# The shapes of well-known templates, as their model cards describe them.
CHATML = """{%- if messages[0]['role'] != 'system' -%}{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
LLAMA3 = """{{- bos_token -}}{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"""
MISTRAL = """{{- bos_token -}}{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- '[INST] ' + message['content'] + ' [/INST]' -}}
{%- elif message['role'] == 'assistant' -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}{%- endfor -%}"""
GEMMA = """{{- bos_token -}}{%- if messages[0]['role'] == 'system' -%}
{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for message in messages -%}{%- set role = 'model' if message['role'] == 'assistant' else 'user' -%}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""
PHI3 = """{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"""
QWEN3 = """{%- set seen = namespace(question=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set seen.question = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' and loop.index0 > seen.question -%}
{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{{ message['content'] + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking -%}
{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}"""
ENDS = {
    "chatml": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "gemma": "<end_of_turn>",
    "phi3": "<|end|>",
    "none": "</s>",
}
TEMPLATES = {
    "chatml": CHATML,
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi3": PHI3,
    "none": None,
}


def processor_with(template):
    model, tokenizer = tiny_language_model("llama")
    ending = (
        ENDS[next(name for name, text in TEMPLATES.items() if text == template)]
        if template in TEMPLATES.values()
        else "</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [ending]})
    tokenizer.chat_template = template
    vision, _ = fuse_encoders(["tiny:dinov2"], hidden_size=64, connector="mlp", grid=8)
    return assemble_vlm(vision, model, tokenizer)[1]


@pytest.fixture(scope="module", params=TEMPLATES)
def named_processor(request):
    return request.param, processor_with(TEMPLATES[request.param])


def talk(*texts, images=0):
    messages = tuple(
        Message("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts)
    )
    return Conversation(
        "file.json, row 1", messages, tuple(torch.zeros(3, 64, 64, dtype=torch.uint8) for _ in range(images))
    )


def learnt_texts(tokens, processor):
    """The stretches that are learnt, decoded."""
    stretches, current = [], []
    for token, label in zip(tokens.input_ids, tokens.labels, strict=True):
        if label == LABEL_IGNORED:
            stretches, current = [*stretches, current] if current else stretches, []
        else:
            assert token == label
            current.append(token)
    return [processor.tokenizer.decode(each) for each in [*stretches, current] if each]


def test_answers_and_their_ends_are_learnt(named_processor):
    name, processor = named_processor
    # the first answer is in the question as well, the second is the first again, and one ends as a
    # role does
    tokens = tokenise(
        talk("is yes a word?", "yes", "assistant\n", "yes", "say \n user", "a user"), processor, 2048
    )
    assert [text.strip() for text in learnt_texts(tokens, processor)] == [
        f"{text}{ENDS[name]}" for text in ("yes", "yes", "a user")
    ]


def test_what_a_template_puts_around_answers_is_not_learnt(named_processor):
    """Not the empty thoughts before the last answer either, in which "in" stands as well."""
    name, processor = named_processor
    for answer in ("in", "hi"):
        assert [
            text.strip()
            for text in learnt_texts(tokenise(talk("which?", answer), processor, 2048), processor)
        ] == [answer + ENDS[name]]


def test_text_is_the_templates(named_processor):
    """As it shows an earlier answer to a later question; a learnt one stands behind the prompt that
    asks for it (Qwen3's has empty thoughts)."""
    _, processor = named_processor
    conversation = talk("what?", "that", "and?", "this")
    earlier = replace(conversation.messages[1], learnt=False)
    conversation = replace(
        conversation, messages=(conversation.messages[0], earlier, *conversation.messages[2:])
    )
    messages = [{"role": message.role, "content": message.text} for message in conversation.messages]
    text = processor.apply_chat_template(messages)
    tokens = tokenise(conversation, processor, 2048)
    assert tokens.input_ids == processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_answer_stands_behind_the_prompt_that_asks_for_it(named_processor):
    """Also the first of several; what the next question's prompt shows of it is the template's
    affair."""
    _, processor = named_processor
    prompt = processor.apply_chat_template([{"role": "user", "content": "what?"}], add_generation_prompt=True)
    ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tokens = tokenise(talk("what?", "that", "and?", "this"), processor, 2048)
    assert tokens.input_ids[: len(ids)] == ids and tokens.labels[len(ids)] != LABEL_IGNORED


def test_training_sees_what_generation_will(named_processor):
    """The prompt of a question is the beginning of what was trained on."""
    _, processor = named_processor
    prompt = processor.apply_chat_template([{"role": "user", "content": "what?"}], add_generation_prompt=True)
    ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tokens = tokenise(talk("what?", "that"), processor, 2048)
    assert tokens.input_ids[: len(ids)] == ids and all(
        label == LABEL_IGNORED for label in tokens.labels[: len(ids)]
    )


def test_images_take_their_places(named_processor):
    _, processor = named_processor
    tokens = tokenise(talk("<image>\n<image>\nwhich?", "that", images=2), processor, 2048)
    each = processor.image_processor.num_tokens(64, 64)
    places = [place for place, token in enumerate(tokens.input_ids) if token == processor.image_token_id]
    assert len(places) == 2 * each and all(tokens.labels[place] == LABEL_IGNORED for place in places)


def test_too_long_names_row_and_cure(named_processor):
    _, processor = named_processor
    length = len(tokenise(talk("what?", "that"), processor, 2048).input_ids)
    assert tokenise(talk("what?", "that"), processor, length)
    with pytest.raises(
        BadRow, match=rf"file.json, row 1: {length} tokens are more than max_length={length - 1}"
    ):
        tokenise(talk("what?", "that"), processor, length - 1)


def test_a_template_that_drops_answers_is_refused():
    processor = processor_with(
        "{%- for message in messages -%}{{ message['content'] | upper }}{%- endfor -%}"
    )
    with pytest.raises(UserError, match="chat template"):
        tokenise(talk("what?", "that"), processor, 2048)


def test_a_template_that_puts_words_before_answers_is_refused():
    processor = processor_with(
        "{%- for message in messages -%}{{ message['role'] + ': ' }}"
        "{%- if message['role'] == 'assistant' -%}{{ 'I think ' }}{%- endif -%}"
        "{{ message['content'] + eos_token }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'assistant: ' }}{%- endif -%}"
    )
    with pytest.raises(UserError, match="chat template"):
        tokenise(talk("what?", "think"), processor, 2048)


def test_a_template_that_refuses_a_role_says_so():
    conversation = Conversation(
        "file.json, row 1", (Message("system", "be brief"), Message("user", "a"), Message("assistant", "b"))
    )
    with pytest.raises(BadRow, match="row 1.*System role not supported"):
        tokenise(conversation, processor_with(GEMMA), 2048)
