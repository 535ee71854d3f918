"""Chat templates: what is put around a language model's own template, and templates for language
models that have none.

A template writes the first token of a text (BOS) itself where the tokenizer would add one. So
whoever tokenises its text needs to know nothing about BOS.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from vision_core.errors import UserError
from vision_core.files.text_files import read_text

MAX_TEMPLATE_BYTES = 2**20

# Language models that can think are told not to, unless enable_thinking=True asks for it: most of
# them are trained here on answers without thoughts.
WITHOUT_THOUGHTS = "{%- set enable_thinking = enable_thinking | default(false) -%}\n"

# A message's content may be a list of parts, which most language models' templates do not know. Here
# the list becomes text, with the image's token for an image, before their own template sees it.
FLATTEN_CONTENT = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set text = namespace(whole='') -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{%- set text.whole = text.whole + '<image>\\n' -%}
{%- elif part['type'] == 'text' -%}{%- set text.whole = text.whole + part['text'] -%}
{%- else -%}{{ raise_exception('a message has a part of type ' + part['type'] + '; known: image, text') }}
{%- endif -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(message, content=text.whole)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""

BOS = "{{- bos_token -}}\n"

# This project's own template: roles have Vicuna's names, and each turn is a line.
PLAIN = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n' }}
{%- elif message['role'] == 'user' -%}{{ 'USER: ' + message['content'] + '\\n' }}
{%- else -%}{{ 'ASSISTANT: ' + message['content'] + eos_token + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""

_SYSTEM_OR = """\
{%%- if messages and messages[0]['role'] == 'system' -%%}
{%%- set system = messages[0]['content'] -%%}{%%- set turns = messages[1:] -%%}
{%%- else -%%}
{%%- set system = %r -%%}{%%- set turns = messages -%%}
{%%- endif -%%}
"""

# The template of Vicuna v1.1 (FastChat `vicuna_v1.1`), with which LLaVA-1.5 and Cambrian-1-13B were
# trained (`--version v1`).
VICUNA_V1 = (
    _SYSTEM_OR
    % (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    + """\
{{- system + ' ' -}}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}{{- 'USER: ' + message['content'] + ' ' -}}
{%- else -%}{{- 'ASSISTANT: ' + message['content'] + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
)

# The templates of Cambrian-1 (cambrian/conversation.py: conv_llama_3, conv_chatml_direct, conv_phi3)
# for the checkpoints of 8B, 34B and 3B. The line breaks and spaces in the system prompt of the first
# one are those that the released model was trained with; it has no line break behind a header.
_CAMBRIAN = (
    "You are Cambrian, a highly intelligent multimodal AI trained by NYU Vision X.{0}"
    "As a multimodal AI, you have the ability to process and analyze images. "
    "Whenever an image is present in the conversation, very carefully examine it and consider its content "
    "when formulating your response.{1}"
    "You should give concise responses to very simple questions, but provide thorough responses "
    "to more complex and open-ended questions.{2}"
)
CAMBRIAN_LLAMA3 = (
    _SYSTEM_OR % _CAMBRIAN.format(" \n    ", "\n    ", " ")
    + """\
{{- '<|begin_of_text|><|start_header_id|>system<|end_header_id|>' + system + '<|eot_id|>' -}}
{%- for message in turns -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>' + message['content'] + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>' -}}{%- endif -%}
"""
)
CAMBRIAN_CHATML = (
    _SYSTEM_OR % _CAMBRIAN.format(" ", " ", "")
    + """\
{{- '<|im_start|>system\\n' + system + '<|im_end|>' -}}
{%- for message in turns -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
)
CAMBRIAN_PHI3 = (
    _SYSTEM_OR % "You are a helpful AI assistant."
    + """\
{{- '<|system|>\\n' + system + '<|end|>' -}}
{%- for message in turns -%}
{{- '\\n<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n<|assistant|>\\n' -}}{%- endif -%}
"""
)

CHAT_TEMPLATES = {
    "plain": PLAIN,
    "vicuna_v1": VICUNA_V1,
    "cambrian_llama3": CAMBRIAN_LLAMA3,
    "cambrian_chatml": CAMBRIAN_CHATML,
    "cambrian_phi3": CAMBRIAN_PHI3,
}


def named_template(name: str) -> str:
    """Return a template of `CHAT_TEMPLATES`, or the text of a .jinja file.

    Raises UserError for any other name.
    """
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    known = ", ".join(CHAT_TEMPLATES)
    if not name.endswith(".jinja"):
        raise UserError(f"there is no chat template {name!r}; known: {known}, or the path of a .jinja file")
    cure = f"name a file of text, or one of {known}"
    return read_text(name, f"the chat template {name}", cure, most_bytes=MAX_TEMPLATE_BYTES)


def chat_template_for(
    template: str | dict[str, str] | None, tokenizer: PreTrainedTokenizerBase
) -> str | dict[str, str]:
    """Complete a language model's own template, or the plain one: it then takes images in messages,
    asks for answers without thoughts, and begins with BOS where the tokenizer would add one.

    Where a language model has several named templates, each of them is completed.
    """
    if isinstance(template, dict):
        return {name: chat_template_for(each, tokenizer) for name, each in template.items()}
    complete = WITHOUT_THOUGHTS + FLATTEN_CONTENT + (template or PLAIN)
    if adds_bos(tokenizer) and not _writes_bos(complete, tokenizer):
        return BOS + complete
    return complete


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts BOS in front of a text by itself."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x")["input_ids"][:1] == [bos]


def _writes_bos(template: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    messages = [{"role": "user", "content": "x"}]
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception:  # a template raises what it likes; the processor adds BOS to texts without it
        return True
    return text.startswith(tokenizer.bos_token)
