"""A tiny untrained language model with a tokenizer, made by the real libraries, for use where no
checkpoint is at hand."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from vision_core.errors import UserError
from vision_core.randomness import seed_of

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3")
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """Make a tokenizer with one token for each byte and three special ones."""
    alphabet = [*SPECIAL_TOKENS.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = dict(zip(alphabet, range(len(alphabet)), strict=True))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)


def tiny_language_model(
    family: str = "llama", seed: int = 0, tokenizer: PreTrainedTokenizerBase | None = None, **sizes: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make an untrained causal language model of `family`, one of `FAMILIES`, and its tokenizer.

    tokenizer: by default one token for each byte. sizes: values in place of those in `SIZES`.
    Raises UserError for another family.
    """
    if family not in FAMILIES:
        raise UserError(f"tiny:{family} does not exist; the families are {', '.join(FAMILIES)}")
    if tokenizer is None:
        tokenizer = tiny_tokenizer()
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **{**SIZES, **sizes}, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "language model"))
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
    return model, tokenizer
