"""Templates for language models without one, against the published prompts written out, and what is
put around those of language models."""

import pytest

from fusion.chat_templates import CHAT_TEMPLATES, chat_template_for, named_template
from fusion.tiny import tiny_tokenizer
from vision_core.errors import UserError

TALK = [("user", "<image>\nWhat is it?"), ("assistant", "A cat."), ("user", "Sure?"), ("assistant", "Yes.")]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def two_separators(system, talk, asked):
    """FastChat's style TWO with " " and "</s>": system, then "ROLE: text" and a separator, by
    turns; an open role ends in a colon."""
    text = system + " "
    for number, (role, said) in enumerate(talk):
        text += ("USER", "ASSISTANT")[role == "assistant"] + ": " + said + (" ", "</s>")[number % 2]
    return text + "ASSISTANT:" * asked


def headers(system, talk, asked):
    """Cambrian's style LLAMA_3: no line break behind a header."""
    text = "<|begin_of_text|>"
    for role, said in [("system", system), *talk]:
        text += f"<|start_header_id|>{role}<|end_header_id|>{said}<|eot_id|>"
    return text + "<|start_header_id|>assistant<|end_header_id|>" * asked


def rendered(name, talk, asked):
    messages = [{"role": role, "content": said} for role, said in talk]
    template = chat_template_for(CHAT_TEMPLATES[name], tiny_tokenizer())
    return tiny_tokenizer().apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=asked
    )


@pytest.mark.parametrize("system", [None, "Answer in French."])
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_published_prompts(turns, system):
    talk, asked = TALK[:turns], turns % 2 == 1
    given = [("system", system)] * (system is not None) + talk
    assert rendered("vicuna_v1", given, asked) == two_separators(system or VICUNA, talk, asked)
    cambrian = rendered("cambrian_llama3", given, asked)
    own = cambrian.partition("system<|end_header_id|>")[2].partition("<|eot_id|>")[0]
    assert cambrian == headers(system or own, talk, asked)
    chatml = (
        "".join(f"<|im_start|>{role}\n{said}<|im_end|>" for role, said in talk)
        + "<|im_start|>assistant\n" * asked
    )
    assert rendered("cambrian_chatml", given, asked).endswith("<|im_end|>" + chatml)
    phi = "".join(f"\n<|{role}|>\n{said}<|end|>" for role, said in talk) + "\n<|assistant|>\n" * asked
    assert (
        rendered("cambrian_phi3", given, asked)
        == f"<|system|>\n{system or 'You are a helpful AI assistant.'}<|end|>{phi}"
    )


def test_cambrians_own_words():
    """The 8B's were written with line breaks and four spaces, and trained with them; the 34B's were
    not."""
    broken = rendered("cambrian_llama3", TALK[:1], False)
    flat = rendered("cambrian_chatml", TALK[:1], False)
    assert (
        "trained by NYU Vision X. \n    As a multimodal AI" in broken
        and "open-ended questions. <|eot_id|>" in broken
    )
    assert "trained by NYU Vision X. As a multimodal AI" in flat and "open-ended questions.<|im_end|>" in flat
    words = [
        text.partition("You are")[2].partition("<|e" if text is broken else "<|im_end")[0].split()
        for text in (broken, flat)
    ]
    assert words[0] == words[1]


def test_named_templates_and_files(tmp_path):
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    assert (
        named_template("plain") == CHAT_TEMPLATES["plain"]
        and named_template(str(tmp_path / "own.jinja")) == "{{ messages }}"
    )
    with pytest.raises(UserError, match="no chat template 'vicuna'; known: plain, vicuna_v1"):
        named_template("vicuna")
    with pytest.raises(UserError, match="cannot be read"):
        named_template(str(tmp_path / "absent.jinja"))
