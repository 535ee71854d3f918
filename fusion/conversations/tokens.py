"""Where an answer's tokens become labels: a conversation as `input_ids` and `labels`.

fusion/chat_turns.py renders the conversation by the language model's own chat template and finds
where each learnt answer begins and ends in the text. `tokenise` gives the tokens within the answers
their own ids as labels; every other token is labelled `LABEL_IGNORED`.
"""

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
    """The tokens of a conversation and their labels, two lists of the same length.

    labels: the ids of the answers and of the tokens that end them, `LABEL_IGNORED` elsewhere. Where
        a template ends earlier answers otherwise than the last one (gpt-oss), the label of an end is
        the token that ends a last answer.
    """

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class _TokenisedText:
    """A rendered conversation with its tokens. offsets: where each token begins and ends in the text."""

    chat: RenderedChat
    ids: list[int]
    offsets: list[tuple[int, int]]


def tokenise(
    conversation: Conversation, processor: FusionProcessor, max_length: int
) -> TokenisedConversation:
    """The tokens of a conversation; every `<image>` is repeated for each token of its image.

    Space around an answer does not belong to it. Raises BadRow where the chat template does not keep
    answers or gives them no end, and where there are more tokens than `max_length`: images and
    answers are never cut.
    """
    where = conversation.where
    chat = render_conversation(conversation, processor)
    encoded = processor.tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True)
    text = _TokenisedText(chat, encoded["input_ids"], encoded["offset_mapping"])
    labels = _labels_of_answers(text, processor, where)
    tokens = _repeat_image_tokens(text.ids, labels, conversation, processor)
    if len(tokens.input_ids) > max_length:
        raise BadRow(
            f"{where}: {len(tokens.input_ids)} tokens are more than max_length={max_length}; "
            "raise it, shorten the conversation, or use a connector with fewer tokens"
        )
    return tokens


def _repeat_image_tokens(
    ids: Sequence[int], labels: Sequence[int], conversation: Conversation, processor: FusionProcessor
) -> TokenisedConversation:
    """Every image token as often as its image has tokens. Raises BadRow."""
    image_token = processor.image_token_id
    counts = [processor.image_processor.num_tokens(*image.shape[-2:]) for image in conversation.images]
    places = ids.count(image_token)
    if places != len(counts):
        cure = "give one <image> for each image"
        raise BadRow(f"{conversation.where}: {places} places for {len(counts)} images; {cure}")
    remaining = iter(counts)
    repeated_ids: list[int] = []
    repeated_labels: list[int] = []
    for token, label in zip(ids, labels, strict=True):
        repeats = next(remaining) if token == image_token else 1
        repeated_ids += [token] * repeats
        repeated_labels += [label] * repeats
    return TokenisedConversation(repeated_ids, repeated_labels)


def render_conversation(conversation: Conversation, processor: FusionProcessor) -> RenderedChat:
    """The conversation's text and its learnt answers. Raises BadRow with the row and the reason."""
    try:
        return render_chat(processor, chat_messages(conversation.messages))
    except ChatTemplateError as error:
        raise BadRow(f"{conversation.where}: {error}") from None
    except Exception as error:  # a template may raise anything
        reason = f"the language model's chat template refuses the row ({error})"
        cure = "change the row, the template or its tokenizer"
        raise BadRow(f"{conversation.where}: {reason}; {cure}") from None


def chat_messages(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """Messages in the form that fusion/chat_turns.py takes.

    Space around an answer is stripped, because it would be learnt as a part of it.
    """
    converted = []
    for message in messages:
        text = message.text.strip() if message.role == "assistant" else message.text
        converted.append(
            {
                "role": message.role,
                "content": text,
                "thoughts": message.thoughts.strip(),
                "learnt": message.learnt,
            }
        )
    return converted


def _labels_of_answers(text: _TokenisedText, processor: FusionProcessor, where: str) -> list[int]:
    """A label for each token: its id if it begins within an answer, `LABEL_IGNORED` elsewhere.

    Raises BadRow where a token belongs to both the prompt and the answer, where the end is not a
    token of its own, and where nothing is learnt.
    """
    if not text.chat.answers:
        raise BadRow(f"{where}: no answer is learnt; let one be, or leave the row out")
    labels = [LABEL_IGNORED] * len(text.ids)
    for answer in text.chat.answers:
        places = _places_of_answer(text, answer, processor, where)
        for place in places:
            labels[place] = text.ids[place]
        labels[places[-1]] = processor.tokenizer.convert_tokens_to_ids(answer.stop)
    return labels


def _places_of_answer(
    text: _TokenisedText, answer: Answer, processor: FusionProcessor, where: str
) -> list[int]:
    """The places of the tokens that begin within an answer, the last of which ends it. Raises BadRow."""
    places = []
    for place, (start, _) in enumerate(text.offsets):
        if answer.begin <= start < answer.end:
            places.append(place)
    _refuse_token_across_beginning(text, answer, processor, where)
    last = processor.tokenizer.convert_tokens_to_ids(answer.last)
    if not places or text.ids[places[-1]] != last:
        fault = f"the end of an answer, {answer.last!r}, is not a token of its own"
        raise BadRow(f"{where}: {fault}; add it to the tokenizer")
    if len(places) == 1:
        raise BadRow(f"{where}: the tokenizer knows nothing of an answer; give the row another one")
    return places


def _refuse_token_across_beginning(
    text: _TokenisedText, answer: Answer, processor: FusionProcessor, where: str
) -> None:
    """Raises BadRow for a token that reaches from the prompt into the answer.

    Such a token would not be in the prompt when the model is asked. Tokens that were added to the
    tokenizer may reach over space: some take the space behind them along, as they do when the model
    is asked.
    """
    for token, (start, end) in zip(text.ids, text.offsets, strict=True):
        if not start < answer.begin < end:
            continue
        is_only_space = not text.chat.text[answer.begin : end].strip()
        if not is_only_space or token not in processor.tokenizer.get_added_vocab().values():
            raise BadRow(
                f"{where}: the token {text.chat.text[start:end]!r} belongs to the prompt and to the answer; "
                "let the chat template's prompt end in a token of its own, or without a space"
            )
