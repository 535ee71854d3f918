"""A conversation as tokens, by the language model's own chat template; only what the assistant says
is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion.chat_turns import Answer, ChatTemplateError, RenderedChat, render_chat
from fusion.conversations.conversation import BadRow, Conversation, Message
from fusion.labels import LABEL_IGNORED
from fusion.processing_fusion import FusionProcessor


@dataclass(frozen=True)
class TokenisedConversation:
    """input_ids, labels: equally long; labels are the ids of the answers and of the tokens that end
    them, -100 elsewhere.

    Where a template ends earlier answers otherwise than the last one (gpt-oss), the label of an end
    is the token that ends a last answer.
    """

    input_ids: list[int]
    labels: list[int]


def tokenise(
    conversation: Conversation, processor: FusionProcessor, max_length: int
) -> TokenisedConversation:
    """The tokens of a conversation, every `<image>` as often as its image has tokens.

    Space around an answer is not part of it. Raises BadRow where the chat template does not keep
    answers or gives them no end, and where there are more tokens than `max_length`: neither an
    image nor an answer is cut.
    """
    chat = rendered(conversation, processor)
    encoded = processor.tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True)
    labels = _labels(encoded["input_ids"], encoded["offset_mapping"], chat, processor, conversation.where)
    counts = [processor.image_processor.num_tokens(*image.shape[-2:]) for image in conversation.images]
    places = encoded["input_ids"].count(processor.image_token_id)
    if places != len(counts):
        raise BadRow(
            f"{conversation.where}: {places} places for {len(counts)} images; give one <image> for each image"
        )
    remaining = iter(counts)
    input_ids: list[int] = []
    repeated_labels: list[int] = []
    for token, label in zip(encoded["input_ids"], labels, strict=True):
        repeats = next(remaining) if token == processor.image_token_id else 1
        input_ids += [token] * repeats
        repeated_labels += [label] * repeats
    if len(input_ids) > max_length:
        raise BadRow(
            f"{conversation.where}: {len(input_ids)} tokens are more than max_length={max_length}; "
            "raise it, shorten the conversation, or use a connector with fewer tokens"
        )
    return TokenisedConversation(input_ids, repeated_labels)


def rendered(conversation: Conversation, processor: FusionProcessor) -> RenderedChat:
    """The conversation's text and learnt answers. Raises BadRow with the row and the reason."""
    try:
        return render_chat(processor, chat_messages(conversation.messages))
    except ChatTemplateError as error:
        raise BadRow(f"{conversation.where}: {error}") from None
    except Exception as error:  # a template raises what it likes
        reason = f"the language model's chat template refuses the row ({error})"
        raise BadRow(
            f"{conversation.where}: {reason}; change the row, the template or its tokenizer"
        ) from None


def chat_messages(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """Turns as `fusion.chat_turns` takes them, without the space around answers: it would be learnt
    as part of them."""
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
    chat: RenderedChat,
    processor: FusionProcessor,
    where: str,
) -> list[int]:
    """The ids of tokens that begin within an answer, -100 elsewhere.

    Raises BadRow where a token belongs to the prompt and to the answer, where the end is not a
    token of its own, and where nothing is learnt.
    """
    labels = [LABEL_IGNORED] * len(ids)
    for answer in chat.answers:
        within = [place for place, (start, _) in enumerate(offsets) if answer.begin <= start < answer.end]
        _refuse_crossing(ids, offsets, answer, chat.text, processor, where)
        last, stop = processor.tokenizer.convert_tokens_to_ids([answer.last, answer.stop])
        if not within or ids[within[-1]] != last:
            raise BadRow(
                f"{where}: the end of an answer, {answer.last!r}, is not a token of its own; add it to the tokenizer"
            )
        if len(within) == 1:
            raise BadRow(f"{where}: the tokenizer knows nothing of an answer; give the row another one")
        for place in within:
            labels[place] = ids[place]
        labels[within[-1]] = stop
    if not chat.answers:
        raise BadRow(f"{where}: no answer is learnt; let one be, or leave the row out")
    return labels


def _refuse_crossing(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    answer: Answer,
    text: str,
    processor: FusionProcessor,
    where: str,
) -> None:
    """A token that reaches from the prompt into the answer would not be in the prompt when the
    model is asked.

    The tokenizer's own tokens may: some take the space behind them along, as they do when the model
    is asked.
    """
    for token, (start, end) in zip(ids, offsets, strict=True):
        if start < answer.begin < end and (
            text[answer.begin : end].strip() or token not in _own_ids(processor)
        ):
            raise BadRow(
                f"{where}: the token {text[start:end]!r} belongs to the prompt and to the answer; let the chat template's "
                "prompt end in a token of its own, or without a space"
            )


def _own_ids(processor: FusionProcessor) -> set[int]:
    return set(processor.tokenizer.get_added_vocab().values())
