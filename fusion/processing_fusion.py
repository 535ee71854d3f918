"""Text and images to the inputs of a fused vision-language model."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin
from transformers.processing_utils import MultiModalData

IMAGE_TOKEN = "<image>"

# Language models that can think are told not to unless they are asked, by enable_thinking=True: they are trained on answers without thoughts.
WITHOUT_THOUGHTS = "{%- set enable_thinking = enable_thinking | default(false) -%}\n"

# A message's content may be a list of parts, of which most language models' templates know nothing: here it becomes text, with the image's token for an
# image, before their own template sees it.
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

# Vicuna's, for language models without a template of their own
PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n' }}
{%- elif message['role'] == 'user' -%}{{ 'USER: ' + message['content'] + '\\n' }}
{%- else -%}{{ 'ASSISTANT: ' + message['content'] + eos_token + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


def chat_template_for(template: str | None) -> str:
    """A language model's own template, or a plain one, that takes images in messages and asks for answers without thoughts."""
    return WITHOUT_THOUGHTS + FLATTEN_CONTENT + (template or PLAIN_TEMPLATE)


class FusionProcessor(ProcessorMixin):
    """Called with text and images it returns `input_ids`, `attention_mask`, `pixel_values` and `image_sizes`.

    A text has one `<image>` for each of its images, which is repeated as often as the image has tokens; images may be a flat list in the order of
    their places. Raises ValueError where their numbers differ.
    """

    skip_tensor_conversion = ["pixel_values", "text_replacement_offsets"]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **kwargs: Any) -> None:
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        height, width = image_inputs["image_sizes"][image_idx].tolist()
        return self.image_token * self.image_processor.num_tokens(height, width)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """How many tokens images of these (height, width) will have; serving engines ask."""
        counts = [self.image_processor.num_tokens(height, width) for height, width in image_sizes or []]
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))
