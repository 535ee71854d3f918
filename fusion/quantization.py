"""Quantise the language model of a fused model to 4 or 8 bits, and nothing else."""

from transformers import BitsAndBytesConfig

from vision_core.errors import UserError

NOT_QUANTISED = ["vision_model", "vision_sampler_layers", "lm_head"]


def quantization_config(bits: int) -> BitsAndBytesConfig:
    """Make the config for `from_pretrained(..., quantization_config=...)` of a fused vision-language
    model: its language model without the head has 4 or 8 bits.

    Encoders, connector and the layers that look into the encoders again stay as they are. Raises
    UserError for other numbers of bits.
    """
    if bits not in (4, 8):
        raise UserError(f"a language model is quantised to 4 or 8 bits, not {bits}")
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        llm_int8_skip_modules=NOT_QUANTISED,
        bnb_4bit_quant_type="nf4",
    )
