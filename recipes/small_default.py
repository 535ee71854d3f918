"""The small default: two small ViTs for 64 px images, fused with a small language model whose tokenizer has the data's own words.
They stand in where no model is named.

Weights of so narrow models start at a standard deviation near 1 / sqrt(width), not at the 0.02 of large ones, and positions as sines, as strong as the patches:
drawn with that deviation they are 1 / 200 of a patch's variance, and what stands where is learnt late. Heads of the language model are wider than their share
of its width: Qwen3 normalises queries and keys, so that a head of width d starts with scores within sqrt(d), and a narrow one cannot look at one place
among hundreds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from encoders.base import Encoder
from encoders.preprocess import ImageTransform
from encoders.transformers_encoder import build_transformers
from fusion import assemble_vlm, fuse_encoders
from fusion.tiny import tiny_language_model
from pretrain.mae_weights import sincos_positions
from recipes.conversation_stream import first_conversations
from recipes.scene_turns import SCENE_WORDS
from recipes.stand_ins import drawn_scenes, train_connector, train_encoders, train_language_model
from recipes.vlm_models import FROM_SCRATCH
from vision_core.corpus_tokenizer import corpus_tokenizer
from vision_core.publishing import published
from vision_core.randomness import seed_of

SIDE, PATCH, INITIALIZER_RANGE = 64, 8, 0.08
GRID = SIDE // PATCH
TOKENS = GRID // 2  # rows and columns that the language model gets; among four times as many it is slower to find the one that a word means
CORPUS_ROWS = 500  # of each source, for the tokenizer
COPIES = 50  # of the scenes' words beside them: enough that each becomes one token
VIT = {
    "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192, "image_size": SIDE, "patch_size": PATCH,
    "initializer_range": INITIALIZER_RANGE,
}  # fmt: skip
ENCODERS = {"dinov2": VIT | {"mlp_ratio": 2, "layerscale_value": 1.0}, "siglip_vision_model": VIT}
LANGUAGE_MODEL = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "initializer_range": INITIALIZER_RANGE, "tie_word_embeddings": True,
}  # fmt: skip
# Behind the role stands a space: the first word of an answer is the token that it is within a text.
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|' + message['role'] + '|> ' + message['content'] + eos_token }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def small_encoders(seed: int) -> list[Encoder]:
    """Two untrained ViTs, of the kinds that are fused most."""
    encoders = []
    for kind, config in ENCODERS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "small encoder", kind))
            transform = ImageTransform((SIDE, SIDE))
            encoder = build_transformers(config | {"model_type": kind}, transform, dtype=torch.float32, untrained=True)
        (positions,) = (parameter for name, parameter in encoder.named_parameters() if "position_embedding" in name)
        with torch.no_grad():
            patches = positions.view(-1, positions.shape[-1])[-GRID * GRID :]
            patches.copy_(sincos_positions(GRID * GRID, positions.shape[-1])[0, 1:])
        encoders.append(encoder)
    return encoders


def small_language_model(texts: Iterable[str], seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An untrained Qwen3 and its tokenizer, for data with words like those of `texts`."""
    model, tokenizer = tiny_language_model("qwen3", seed, corpus_tokenizer(texts, ROLES, CHAT_TEMPLATE), **LANGUAGE_MODEL)
    setattr(model.config, FROM_SCRATCH, True)
    return model, tokenizer


def corpus(sources: Sequence[str]) -> Iterator[str]:
    """Texts of the first conversations of each source."""
    for text in sources:
        for conversation in first_conversations(text, CORPUS_ROWS):
            for message in conversation.messages:
                yield from filter(None, (message.text, message.thoughts))


def write_small_default(folder: Path, texts: Iterable[str], seed: int, stand_ins: bool = False, learn: bool = True) -> None:
    """The fused model and its processor, for data with words like those of `texts`: untrained, or `stand_ins` that know
    drawn scenes.

    learn: false leaves stand-ins untrained, of the same words and sizes.
    """
    encoders = small_encoders(seed)
    if stand_ins:
        texts = chain(texts, (f" {word}" for word in SCENE_WORDS * COPIES))
    if stand_ins and learn:
        scenes = drawn_scenes(SIDE, seed)
        train_encoders(encoders, scenes, seed)
    language_model, tokenizer = small_language_model(texts, seed)
    vision_model, _ = fuse_encoders(
        encoders,
        hidden_size=LANGUAGE_MODEL["hidden_size"],
        grid=TOKENS,
        connector_options={"width": 96, "num_heads": 4, "depth": 2},
        seed=seed,
    )
    model, processor = assemble_vlm(vision_model, language_model, tokenizer, num_sva_layers=2, sva_stride=2, zero_init_sva=True, seed=seed)
    if stand_ins and learn:
        train_language_model(model, processor, scenes, seed)
        train_connector(model, processor, scenes, seed)
    with published(folder) as aside:
        model.save_pretrained(aside)
        processor.save_pretrained(aside)
