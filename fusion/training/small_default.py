"""The small default: the fused model that is trained where the user names none.

It has two small ViTs for 64 px images and a small language model whose tokenizer has the data's own
words. `write_small_default` makes it; with `stand_ins` its parts then learn what published parts
bring along, in the order and for the reasons that fusion/training/stand_ins.py gives.

The sizes are chosen for minutes of training, and three things differ from large models:

* Weights start at a standard deviation near 1 / sqrt(width), not at 0.02, which is right for widths
  in the thousands.
* Positions start as sines, as strong as the patches. Drawn with the weights' deviation they are 1 /
  200 of a patch's variance, and where things are is learned late.
* Heads of the language model are wider than their share of its width. Qwen3 normalises queries and
  keys, so a head of width d starts with scores within sqrt(d), and a narrow one cannot look at one
  place among hundreds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from encoders.adapters.transformers_encoder import build_transformers
from encoders.base import Encoder
from encoders.mae_weights import sincos_positions
from encoders.preprocess import ImageTransform
from fusion import FusionProcessor, FusionVlmForConditionalGeneration, assemble_vlm, fuse_encoders
from fusion.conversations.scene_turns import SCENE_WORDS
from fusion.conversations.stream import first_conversations
from fusion.tiny import tiny_language_model
from fusion.training.stand_ins import draw_scenes, train_connector, train_encoders, train_language_model
from vision_core.corpus_tokenizer import corpus_tokenizer
from vision_core.randomness import seed_of
from vision_core.runs.publishing import published

SIDE = 64  # of an image, in pixels
PATCH = 8
GRID = SIDE // PATCH
# Rows and columns of tokens that the language model gets: among four times as many it is slower to
# find the one that a word means.
TOKEN_GRID = GRID // 2
INITIALIZER_RANGE = 0.08
CORPUS_ROWS = 500  # of each source, for the tokenizer
COPIES_OF_SCENE_WORDS = 50  # enough that each becomes one token
VIT = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": INITIALIZER_RANGE,
}
ENCODERS = {"dinov2": VIT | {"mlp_ratio": 2, "layerscale_value": 1.0}, "siglip_vision_model": VIT}
LANGUAGE_MODEL = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "initializer_range": INITIALIZER_RANGE,
    "tie_word_embeddings": True,
}
CONNECTOR = {"width": 96, "num_heads": 4, "depth": 2}
# A space follows the role, so that the first word of an answer is the token that it is within a text.
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] + eos_token }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def write_small_default(
    folder: Path, texts: Iterable[str], seed: int, stand_ins: bool = False, learn: bool = True
) -> None:
    """Write the fused model and its processor, for data with words like those of `texts`.

    stand_ins: whether the parts have the words of scenes too and learn from scenes first.
    learn: false leaves stand-ins untrained, with the same words and sizes.
    """
    encoders = small_encoders(seed)
    if stand_ins:
        scene_words = (f" {word}" for word in SCENE_WORDS * COPIES_OF_SCENE_WORDS)
        texts = chain(texts, scene_words)
    scenes = draw_scenes(SIDE, seed) if stand_ins and learn else None
    if scenes is not None:
        train_encoders(encoders, scenes, seed)
    model, processor = small_fused_model(encoders, texts, seed)
    if scenes is not None:
        train_language_model(model, processor, scenes, seed)
        train_connector(model, processor, scenes, seed)
    with published(folder) as aside:
        model.save_pretrained(aside)
        processor.save_pretrained(aside)


def small_fused_model(
    encoders: Sequence[Encoder], texts: Iterable[str], seed: int
) -> tuple[FusionVlmForConditionalGeneration, FusionProcessor]:
    """The encoders, fused by SVA into an untrained language model."""
    language_model, tokenizer = small_language_model(texts, seed)
    vision_model, _ = fuse_encoders(
        encoders,
        hidden_size=LANGUAGE_MODEL["hidden_size"],
        grid=TOKEN_GRID,
        connector_options=CONNECTOR,
        seed=seed,
    )
    return assemble_vlm(
        vision_model, language_model, tokenizer, num_sva_layers=2, sva_stride=2, zero_init_sva=True, seed=seed
    )


def small_encoders(seed: int) -> list[Encoder]:
    """Two untrained ViTs, of the kinds that are fused most."""
    return [small_encoder(kind, config, seed) for kind, config in ENCODERS.items()]


def small_encoder(kind: str, config: dict[str, Any], seed: int) -> Encoder:
    """An untrained ViT of transformers' model type `kind`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "small encoder", kind))
        encoder = build_transformers(
            config | {"model_type": kind},
            ImageTransform((SIDE, SIDE)),
            dtype=torch.float32,
            untrained=True,
        )
    positions = positions_of(encoder)
    width = positions.shape[-1]
    with torch.no_grad():
        of_patches = positions.view(-1, width)[-GRID * GRID :]  # behind that of CLS, where there is one
        of_patches.copy_(sincos_positions(GRID * GRID, width)[0, 1:])
    return encoder


def positions_of(encoder: Encoder) -> torch.nn.Parameter:
    """The position embeddings `[..., D]` of a small encoder."""
    named = [each for name, each in encoder.named_parameters() if "position_embedding" in name]
    (positions,) = named
    return positions


def small_language_model(texts: Iterable[str], seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An untrained Qwen3 and its tokenizer, for data with words like those of `texts`."""
    tokenizer = corpus_tokenizer(texts, ROLES, CHAT_TEMPLATE)
    return tiny_language_model("qwen3", seed, tokenizer, **LANGUAGE_MODEL)


def corpus(sources: Sequence[str]) -> Iterator[str]:
    """The texts of the first conversations of each source."""
    for text in sources:
        for conversation in first_conversations(text, CORPUS_ROWS):
            for message in conversation.messages:
                yield from filter(None, (message.text, message.thoughts))
