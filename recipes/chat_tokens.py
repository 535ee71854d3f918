"""A conversation as tokens, by the language model's own chat template; only what the assistant says is learnt."""

from __future__ import annotations

from dataclasses import dataclass

from fusion.processing_fusion import FusionProcessor
from recipes.conversations import BadRow, Conversation
from vision_core.errors import UserError

IGNORED = -100


@dataclass(frozen=True)
class TokenisedConversation:
    """input_ids, labels: equally long; labels are the ids of the answers and of the token that ends them, -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


def tokenise(conversation: Conversation, processor: FusionProcessor, max_length: int) -> TokenisedConversation:
    """The tokens of a conversation, every `<image>` as often as its image has tokens.

    Raises BadRow where it is longer than `max_length`: neither an image nor an answer is cut. Raises UserError where the chat template does not keep answers.
    """
    messages = [{"role": message.role, "content": message.text} for message in conversation.messages]
    try:
        text = processor.apply_chat_template(messages)
    except Exception as error:  # a template raises what it likes
        raise BadRow(
            f"{conversation.where}: the language model's chat template refuses it ({error}); change the row or the template"
        ) from None
    spans = answer_spans(messages, text, processor)
    encoded = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    counts = iter([processor.image_processor.num_tokens(*image.shape[-2:]) for image in conversation.images])
    input_ids: list[int] = []
    labels: list[int] = []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        repeated = next(counts) if token == processor.image_token_id else 1
        answered = any(first <= start and end <= last for first, last in spans)
        input_ids += [token] * repeated
        labels += [token if answered else IGNORED] * repeated
    if len(input_ids) > max_length:
        raise BadRow(
            f"{conversation.where}: {len(input_ids)} tokens are more than max_length={max_length}; "
            "raise it, shorten the conversation, or use a connector with fewer tokens"
        )
    if all(label == IGNORED for label in labels):
        raise BadRow(f"{conversation.where}: no token of it would be learnt; give it an answer that the tokenizer knows")
    return TokenisedConversation(input_ids, labels)


def answer_spans(messages: list[dict[str, str]], text: str, processor: FusionProcessor) -> list[tuple[int, int]]:
    """Where in the rendered `text` the assistant speaks, the token that ends its turn included.

    A turn of the assistant begins where the template's prompt for it ends, behind empty thoughts where it has those (Qwen3's has them before the last answer
    alone). Raises UserError for a template under which the text does not begin with that prompt, or goes on with anything but the answer.
    """
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompts = [
            processor.apply_chat_template(messages[:number], add_generation_prompt=True, enable_thinking=each) for each in (False, True)
        ]
        begin = next((len(prompt) for prompt in prompts if text.startswith(prompt)), len(text))
        answer = message["content"].strip()
        start = begin + len(text[begin:]) - len(text[begin:].lstrip())
        if not text.startswith(answer, start):
            raise UserError(
                "the chat template rewrites earlier turns or answers, so that what the assistant says cannot be told from the rest; "
                "use another template (tokenizer.chat_template), or one answer per conversation"
            )
        end = start + len(answer)
        ending = next((token for token in processor.tokenizer.all_special_tokens if text.startswith(token, end)), "")
        spans.append((begin, end + len(ending)))
    return spans
