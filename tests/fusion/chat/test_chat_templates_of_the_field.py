"""Every chat template that trl ships, and others of the field, under awkward answers: each learnt
answer has a learnt end, or its row is refused."""

import os
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from fusion.chat_templates import CHAT_TEMPLATES
from fusion.chat_turns import render_prompt, stop_token_ids
from fusion.conversations.conversation import BadRow, Conversation, Message
from fusion.conversations.tokens import chat_messages, tokenise
from fusion.labels import LABEL_IGNORED

trl = pytest.importorskip("trl", reason="trl ships the chat templates")
SHIPPED = {
    path.stem: path.read_text()
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
}

# The layouts of templates that trl has not, as their model cards describe them.
OTHERS = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "layouts").glob("*.jinja"))}
TEMPLATES = SHIPPED | OTHERS | CHAT_TEMPLATES

REAL = Path(os.environ.get("REAL_TOKENIZERS", "absent"))


def user(text):
    return Message("user", text)


def said(text, thoughts=""):
    return Message("assistant", text, thoughts)


ROWS = {
    "plain": [user("is it?"), said("yes")],
    "line break behind": [user("what?"), said("A cat.\n")],
    "space behind": [user("what?"), said("A cat. ")],
    "space before": [user("what?"), said("\n A cat.")],
    "as the question": [user("yes"), said("yes"), user("yes"), said("yes\n")],
    "empty system": [Message("system", ""), user("what?"), said("that")],
    "two turns": [Message("system", "be brief"), user("what?"), said(" one"), user("and?"), said("two\n\n")],
    "thoughts": [user("is it?"), said("yes", "well, perhaps")],
}


def learnt_stretches(tokenised, processor):
    stretches, current = [], []
    for label in [*tokenised.labels, LABEL_IGNORED]:
        if label != LABEL_IGNORED:
            current.append(label)
        elif current:
            stretches.append(current)
            current = []
    return [processor.tokenizer.decode(each) for each in stretches], [each[-1] for each in stretches]


def check(processor, messages):
    """None where every answer's end is learnt; otherwise why the row is refused. Fails on anything
    between."""
    try:
        tokenised = tokenise(Conversation("row 1", tuple(messages)), processor, 2**20)
    except BadRow as error:
        assert re.match(r"row 1: .+; .+", str(error)), "a refusal names the row and the cure"
        return str(error)
    texts, ends = learnt_stretches(tokenised, processor)
    first = next(number for number, message in enumerate(messages) if message.role == "assistant")
    prompt = render_prompt(
        processor, chat_messages(messages[:first]), thinking=any(message.thoughts for message in messages)
    )
    asked = processor(text=prompt)["input_ids"][0]
    assert tokenised.input_ids[: len(asked)] == asked, (
        "the first answer stands behind the prompt that asks for it"
    )
    answers = [message for message in messages if message.role == "assistant"]
    assert len(texts) == len(answers)
    for text, end, answer in zip(texts, ends, answers, strict=True):
        assert answer.text.strip() in text and answer.thoughts in text
        assert end in stop_token_ids(processor)
        assert end in processor.tokenizer.get_added_vocab().values()
    return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_answer_has_a_learnt_end_or_its_row_is_refused(name, chat_processor):
    processor = chat_processor(TEMPLATES[name])
    refused = {kind: check(processor, messages) for kind, messages in ROWS.items()}
    wants_parts = name.startswith(
        ("idefics3", "llava_next", "smolvlm")
    )  # of vision-language models, whose messages are no texts
    no_system = name.startswith("gemma") and not name.startswith(("gemma3", "gemma4"))
    for kind, reason in refused.items():
        if kind != "thoughts" and not wants_parts and not (no_system and ROWS[kind][0].role == "system"):
            assert reason is None, f"{name}, {kind}: {reason}"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("deepseek_r1_distill", "well, perhaps\n</think>\n\nyes"),
        (
            "gptoss",
            "<|channel|>analysis<|message|>well, perhaps<|end|><|start|>assistant<|channel|>final<|message|>yes",
        ),
        ("qwen3", "<think>\nwell, perhaps\n</think>\n\nyes"),
        ("qwen3_5_think", "well, perhaps\n</think>\n\nyes"),
        ("qwen3_6", "well, perhaps\n</think>\n\nyes"),
        ("glm4moe", "<think>well, perhaps</think>\nyes"),
    ],
)
def test_thoughts_are_written_as_the_model_writes_them(name, written, chat_processor):
    processor = chat_processor(SHIPPED[name])
    tokenised = tokenise(Conversation("row 1", tuple(ROWS["thoughts"])), processor, 2**20)
    (text,), _ = learnt_stretches(tokenised, processor)
    assert text.lstrip("\n").startswith(written)


def test_thoughts_that_a_template_drops_are_refused_with_the_turn(chat_processor):
    processor = chat_processor(SHIPPED["qwen3"])
    row = [user("is it?"), said("yes", "well"), user("sure?"), said("no", "hm")]
    assert "the thoughts of turn 2; make a row of its own" in check(processor, row)
    known = [row[0], Message("assistant", "yes", "well", learnt=False), *row[2:]]
    tokenised = tokenise(Conversation("row 1", tuple(known)), processor, 2**20)
    assert [text.count("hm") for text in learnt_stretches(tokenised, processor)[0]] == [1]


def test_what_follows_an_earlier_answer_is_learnt_as_the_stop_of_a_last_one(chat_processor):
    """gpt-oss ends earlier answers with another token than the last one, at which generation
    stops."""
    processor = chat_processor(SHIPPED["gptoss"])
    tokenised = tokenise(Conversation("row 1", tuple(ROWS["two turns"])), processor, 2**20)
    end, stop = processor.tokenizer.convert_tokens_to_ids(["<|end|>", "<|return|>"])
    given, learnt = (
        [token for token, label in zip(tokenised.input_ids, tokenised.labels, strict=True) if label == stop],
        stop,
    )
    assert given == [end, stop] and stop_token_ids(processor) == [learnt]


def test_an_end_that_is_no_token_is_refused(chat_processor):
    """ChatML under a tokenizer that has not got its tokens: no token could stop generation."""
    processor = chat_processor(OTHERS["chatml"], [])
    assert "generation would never stop" in check(processor, ROWS["plain"])
    assert (
        check(chat_processor(OTHERS["chatml"], ["<|im_end|>"]), ROWS["plain"]) is None
    )  # an ordinary token, added by name


def test_ends_with_a_tokenizer_that_eats_the_space_behind_them(chat_processor):
    """As Phi-3's `<|end|>` does, so that its place in the text reaches into the next turn."""
    from tokenizers import AddedToken

    eating = [AddedToken(name, rstrip=True) for name in ("<|end|>", "<|user|>", "<|assistant|>")]
    processor = chat_processor(SHIPPED["phi3"], eating)
    for kind in ("plain", "two turns", "line break behind"):
        assert check(processor, ROWS[kind]) is None


@pytest.mark.skipif(
    not REAL.is_dir(),
    reason="REAL_TOKENIZERS names no folder with tokenizers that packages ship; "
    "docs/fine_tuning.md says how to get some",
)
@pytest.mark.parametrize(
    ("folder", "template"),
    [
        ("qwen3", None),
        ("gemma3", None),
        ("llama3", None),
        ("deepseek_v3", None),
        ("gptoss", "gptoss"),
        ("llama2", "llama2"),
        ("llama2", "zephyr"),
        ("llama2", "plain"),
        ("llama2", "vicuna_v1"),
        ("deepseek_v3", "deepseek_r1_distill"),
        ("llama3", "cambrian_llama3"),
        ("qwen3", "qwen3_6"),
    ],
)
def test_real_tokenizers(folder, template, chat_processor, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(REAL / folder / "package" / "models", trust_remote_code=False)
    processor = chat_processor(
        TEMPLATES[template] if template else tokenizer.chat_template, tokenizer=tokenizer
    )
    refused = {kind: check(processor, messages) for kind, messages in ROWS.items() if kind != "thoughts"}
    assert set(refused.values()) == {None}, refused
    shown = Conversation(
        "row 1", (user("<image>\nwhat?"), said("that")), (torch.zeros(3, 64, 64, dtype=torch.uint8),)
    )
    prompt = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": torch.zeros(64, 64, 3, dtype=torch.uint8)},
                    {"type": "text", "text": "what?"},
                ],
            }
        ],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"][0]
    assert tokenise(shown, processor, 2**20).input_ids[: len(prompt)] == list(prompt)
    assert list(prompt).count(tokenizer.bos_token_id) <= 1
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    assert tokenise(shown, again, 2**20) == tokenise(shown, processor, 2**20)
    assert tokenizer("x")["input_ids"][0] != tokenizer.bos_token_id or prompt[0] == tokenizer.bos_token_id
