"""A conversation as tokens, by the language model's own chat template; only what the assistant says is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion.chat_turns import Answer, ChatTemplateError, RenderedChat, render_chat
from fusion.processing_fusion import FusionProcessor
from recipes.conversations import BadRow, Conversation, Message

IGNORED = -100


@dataclass(frozen=True)
class TokenisedConversation:
    """input_ids, labels: equally long; labels are the ids of the answers and of the tokens that end them, -100 elsewhere.

    Where a template ends earlier answers otherwise than the last one (gpt-oss), the label of an end is the token that ends a last answer.
    """

    input_ids: list[int]
    labels: list[int]


def tokenise(conversation: Conversation, processor: FusionProcessor, max_length: int) -> TokenisedConversation:
    """The tokens of a conversation, every `<image>` as often as its image has tokens. Space around an answer is not part of it.

    Raises BadRow where the chat template does not keep answers or gives them no end, and where there are more tokens than `max_length`: neither an image nor
    an answer is cut.
    """
    chat = rendered(conversation, processor)
    spoken = [message for message in conversation.messages if message.role == "assistant"]
    learnt = [answer for answer, message in zip(chat.answers, spoken, strict=True) if message.learnt]
    encoded = processor.tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True)
    labels = _labels(encoded["input_ids"], encoded["offset_mapping"], learnt, chat.text, processor, conversation.where)
    counts = iter([processor.image_processor.num_tokens(*image.shape[-2:]) for image in conversation.images])
    input_ids: list[int] = []
    repeated_labels: list[int] = []
    for token, label in zip(encoded["input_ids"], labels, strict=True):
        repeats = next(counts) if token == processor.image_token_id else 1
        input_ids += [token] * repeats
        repeated_labels += [label] * repeats
    if len(input_ids) > max_length:
        raise BadRow(
            f"{conversation.where}: {len(input_ids)} tokens are more than max_length={max_length}; "
            "raise it, shorten the conversation, or use a connector with fewer tokens"
        )
    return TokenisedConversation(input_ids, repeated_labels)


def rendered(conversation: Conversation, processor: FusionProcessor) -> RenderedChat:
    """The conversation's text and answers. Raises BadRow with the row and the reason."""
    try:
        return render_chat(processor, chat_messages(conversation.messages))
    except ChatTemplateError as error:
        raise BadRow(f"{conversation.where}: {error}") from None
    except Exception as error:  # a template raises what it likes
        raise BadRow(
            f"{conversation.where}: the language model's chat template refuses the row ({error}); change the row or the template"
        ) from None


def chat_messages(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """Turns as `fusion.chat_turns` takes them, without the space around answers: it would be learnt as a part of them."""
    return [
        {
            "role": message.role,
            "content": message.text.strip() if message.role == "assistant" else message.text,
            "thoughts": message.thoughts.strip(),
            "learnt": message.learnt,
        }
        for message in messages
    ]


def _labels(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    learnt: Sequence[Answer],
    text: str,
    processor: FusionProcessor,
    where: str,
) -> list[int]:
    """The ids that begin within an answer, -100 elsewhere. Raises BadRow where an answer or its end has no tokens of its own."""
    labels = [IGNORED] * len(ids)
    starts = [start for start, _ in offsets]
    for answer in learnt:
        within = [place for place, start in enumerate(starts) if answer.begin <= start < answer.end]
        crossing = [text[start:end] for start, end in offsets if start < answer.begin < end and text[answer.begin : end].strip()]
        last, stop = processor.tokenizer.convert_tokens_to_ids([answer.last, answer.stop])
        if crossing:
            raise BadRow(f"{where}: the token {crossing[0]!r} belongs to the prompt and to the answer; use another chat template")
        if not within or ids[within[-1]] != last:
            raise BadRow(f"{where}: the end of an answer, {answer.last!r}, is not a token of its own; add it to the tokenizer")
        if len(within) == 1:
            raise BadRow(f"{where}: the tokenizer knows nothing of the answer; give the row another one")
        for place in within:
            labels[place] = ids[place]
        labels[within[-1]] = stop
    return labels
