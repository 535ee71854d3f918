"""A first fused model from encoders and a language model."""

import pytest
from transformers import AutoProcessor

from fusion import assemble_vlm
from fusion.tiny import tiny_language_model
from vision_core.errors import UserError


def test_the_chat_template_takes_images_and_is_the_language_models_own(vlm, fused, pictures, tmp_path):
    language_model, tokenizer = tiny_language_model()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}|{{ m['content'] }}]{% endfor %}"
        "{% if add_generation_prompt %}[assistant|{% endif %}"
    )
    _, processor = assemble_vlm(fused()[0], language_model, tokenizer)
    processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    parts = [
        {"type": "image", "image": pictures[0]},
        {"type": "text", "text": "What?"},
        {"type": "image", "image": pictures[1]},
    ]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "[system|be brief][user|<image>\nWhat?<image>\n][assistant|"
    )
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    counts = [processor.image_processor.num_tokens(picture.height, picture.width) for picture in pictures[:2]]
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == sum(counts)
    plain = assemble_vlm(fused()[0], *tiny_language_model())[1]
    assert plain.apply_chat_template(messages, add_generation_prompt=True).endswith(
        "USER: <image>\nWhat?<image>\n\nASSISTANT:"
    )


def test_a_fused_model_is_no_language_model_of_another(fused, vlm):
    model, processor = vlm()
    with pytest.raises(UserError, match="is a fused vision-language model itself; name a language model"):
        assemble_vlm(fused()[0], model, processor.tokenizer)
