"""Turn text and images into the inputs of a fused vision-language model."""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData

from fusion.chat_templates import adds_bos
from fusion.stub import ClassesOfAPackage

IMAGE_TOKEN = "<image>"


class FusionProcessor(ClassesOfAPackage, ProcessorMixin):
    """Turns text and images into `input_ids`, `attention_mask`, `pixel_values` and `image_sizes`.

    A text has one `<image>` for each of its images, which is repeated as often as the image has
    tokens. Images may be a flat list in the order of their places. A text begins with exactly one
    BOS where the tokenizer adds one, whether a chat template wrote it or not. Raises ValueError
    where the numbers of images and places differ.
    """

    skip_tensor_conversion = ["text_replacement_offsets"]

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if hasattr(tokenizer, "legacy"):
            # transformers 5.24 saves Llama's tokenizers without this setting, and afterwards reads
            # other tokens behind special ones.
            tokenizer.init_kwargs["legacy"] = tokenizer.legacy
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self, images: Any = None, text: Any = None, add_special_tokens: bool = True, **kwargs: Any
    ) -> BatchFeature:
        """Process texts and images, see the class. add_special_tokens: False takes texts as they
        are, without BOS."""
        if isinstance(text, str) and add_special_tokens:
            text = self.with_bos(text)
        elif text is not None and add_special_tokens:
            text = [self.with_bos(each) for each in text]
        return super().__call__(images=images, text=text, add_special_tokens=False, **kwargs)

    def with_bos(self, text: str) -> str:
        """Put BOS in front of the text where the tokenizer would add one and the text has none."""
        bos = self.tokenizer.bos_token
        if bos is None or text.startswith(bos) or not adds_bos(self.tokenizer):
            return text
        return bos + text

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        height, width = image_inputs["image_sizes"][image_idx].tolist()
        return self.image_token * self.image_processor.num_tokens(height, width)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Tell serving engines how many tokens images of these sizes (height, width) will have."""
        counts = [self.image_processor.num_tokens(height, width) for height, width in image_sizes or []]
        return MultiModalData(num_image_tokens=counts, num_image_patches=[1] * len(counts))
