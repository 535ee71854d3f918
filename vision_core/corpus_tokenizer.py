"""Train a tokenizer on the words of a corpus, for models that start from random weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024  # at most; fewer where the corpus has no more words
SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>"}


def corpus_tokenizer(
    texts: Iterable[str], more_special: Sequence[str] = (), chat_template: str | None = None, **more: Any
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`; any text can be written with it.

    more_special: tokens beside padding and end of text that are never cut. chat_template and more:
    as transformers has them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL_TOKENS.values(), *more_special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **SPECIAL_TOKENS, chat_template=chat_template, **more
    )
