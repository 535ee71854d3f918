"""What the keys of turns mean: every one that carries meaning is used, or refused by its name."""

from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from fusion.conversations.turns import LEARNT_KEYS, REFUSED_TURN_KEYS, ROLES, THOUGHT_KEYS, TOOL_ROLES
from tests.fusion.conversations.row_helpers import (
    ASKED,
    LONG,
    SAID,
    TURNS,
    parts,
    read,
    refusal,
    spoken,
    with_answer,
    with_question,
)


@pytest.mark.parametrize("key", REFUSED_TURN_KEYS)
def test_keys_of_turns_that_carry_meaning_are_refused(key):
    message = refusal(with_answer(**{key: LONG}))
    assert f"a turn has `{key}`" in message and message.endswith(REFUSED_TURN_KEYS[key])


@pytest.mark.parametrize("key", LEARNT_KEYS)
def test_answers_that_are_not_learnt(key):
    for value, learnt in (
        (0, False),
        (0.0, False),
        (False, False),
        (1, True),
        (1.0, True),
        (True, True),
        (None, True),
    ):
        first = {**SAID, key: value}
        assert [m.learnt for m in read({"messages": [ASKED, first, ASKED, SAID]}).messages][1] is learnt
    for value in (0.5, 2, -1, float("nan"), "0", LONG, [1], {"a": 1}):
        assert f"`{key}`" in refusal(with_answer(**{key: value}))
    assert "no answer is learnt" in refusal(with_answer(**{key: 0}))
    assert [
        m.learnt
        for m in read(
            {"texts": [{"user": "a", "assistant": "b", key: 0}, {"user": "a", "assistant": "b"}]}
        ).messages
    ][1] is False


def test_flags_of_turns_that_are_never_learnt():
    """Every turn has the flag in files for axolotl; that a question is to be learnt as well is
    another thing."""
    assert read({"messages": [{**ASKED, "train": False}, {**SAID, "train": True}]}).messages[0].learnt
    assert "only answers are" in refusal({"messages": [{**ASKED, "train": True}, SAID]})
    assert "contradict each other" in refusal(with_answer(weight=1, loss=False))


@pytest.mark.parametrize("key", THOUGHT_KEYS)
def test_thoughts_beside_an_answer(key):
    answer = read(with_answer(**{key: "hm"})).messages[1]
    assert (answer.text, answer.thoughts) == ("that", "hm")
    assert "only the assistant thinks" in refusal({"messages": [{**ASKED, key: LONG}, SAID]})
    assert "not text" in refusal(with_answer(**{key: [LONG]}))
    assert read({"messages": [{**ASKED, key: None}, {**SAID, key: ""}]}).messages[1].thoughts == ""


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("<think>\nhm\n\nwell\n</think>\n\nthat", "hm\n\nwell", "that"),
        ("\n<think>hm</think>that", "hm", "that"),
        (
            "hm\n</think>\n\nthat",
            "hm",
            "that",
        ),  # DeepSeek-R1's distills are prompted with <think>, and begin behind it
        ("<think>\n\n</think>\n\nthat", "", "that"),  # Qwen3's, where it does not think
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("it is <think>, then </think>", "", "it is <think>, then </think>"),
        (" that \n", "", " that \n"),  # nothing else is stripped
    ],
)
def test_thoughts_in_the_text_of_an_answer(text, thoughts, answer):
    message = read(with_answer(content=text)).messages[1]
    assert (message.thoughts, message.text) == (thoughts, answer)


def test_thoughts_that_contradict_each_other_or_do_not_end():
    assert (
        read(with_answer(content="<think>\nhm\n</think>\n\nthat", reasoning_content="hm"))
        .messages[1]
        .thoughts
        == "hm"
    )
    assert (
        read(with_answer(content="<think>\n\n</think>\n\nthat", reasoning_content="hm")).messages[1].thoughts
        == "hm"
    )
    assert "keep the right ones" in refusal(
        with_answer(content=f"{LONG}</think>that", reasoning_content="hm")
    )
    assert "they differ" in refusal(with_answer(thinking=LONG, reasoning="hm"))
    assert "there is no </think>" in refusal(with_answer(content=f"<think>{LONG}"))
    assert "is empty" in refusal(with_answer(content="<think>hm</think>\n"))
    assert spoken(with_question("what is </think>?"))[0] == ("user", "what is </think>?")


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_6"])
def test_thoughts_are_taken_apart_as_the_templates_do_it(name):
    """A template that takes <think> out of an answer by itself renders both forms of a turn alike.
    The templates are Qwen's own, as TRL has them."""
    trl = pytest.importorskip("trl")
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    text = "<think>\nhm\n\nwell\n</think>\n\nthat"
    message = read(with_answer(content=text)).messages[1]
    apart = {"role": "assistant", "reasoning_content": message.thoughts, "content": message.text}
    given = [[ASKED, {"role": "assistant", "content": text}], [ASKED, apart]]
    rendered, _ = render_jinja_template(given, chat_template=template)
    assert rendered[0] == rendered[1] and "well" in rendered[0]


def test_speakers():
    assert ROLES["developer"] == "system" and spoken(
        {"messages": [{"role": "developer", "content": "x"}, *TURNS]}
    )[0] == ("system", "x")
    for role in TOOL_ROLES:
        assert "calls of tools are not trained" in refusal(
            {"messages": [ASKED, {"role": role, "content": "x"}, SAID]}
        )
    for role in ("narrator", LONG, None, 7, ["user"], {"a": 1}):
        assert "spoken by" in refusal({"messages": [{"role": role, "content": "x"}, SAID]})
    assert "they differ" in refusal({"messages": [{**ASKED, "from": "gpt"}, SAID]})
    assert "they differ" in refusal({"messages": [{**ASKED, "value": LONG}, SAID]})
    assert "user and assistant take turns" in refusal({"messages": [ASKED] * 50_000})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": "a.png", "text": None, "image": None},
        {"type": "image", "url": "a.png", "min_pixels": 3},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "image", "image": "a.png", "path": "a.png"},
    ],
)
def test_images_in_parts(part):
    row = parts({"type": "text", "text": "which?", "image": None}, part)
    assert spoken(row)[0] == ("user", "which?<image>\n") and read(row).images == ("a.png",)
    assert read({**row, "images": ["a.png"]}).images == ("a.png",)
    assert "keep those that are meant" in refusal({**row, "images": [LONG]})
    assert "all of them theirs" in refusal(parts(part, {"type": "image"}, images=["a.png", "b.png"]))
    assert "the text has 2 <image>" in refusal(parts(part, {"type": "text", "text": "<image>"}))


def test_base64_in_a_part():
    assert read(parts({"type": "image", "base64": "AAAA"})).images == ("data:image/any;base64,AAAA",)


def test_parts_that_number_the_images_of_the_row():
    """HuggingFaceH4/llava-instruct-mix-vsft has them."""
    numbered = [
        {"type": "image", "index": 1, "text": None},
        {"type": "image", "index": 0},
        {"type": "text", "text": "x", "index": None},
    ]
    assert read(parts(*numbered, images=["a.png", "b.png"])).images == ("b.png", "a.png")
    for images in (["a.png"], ["a.png", "b.png", "c.png"], []):
        assert "by `index`" in refusal(parts(*numbered, images=images))
    assert "`index`" in refusal(parts({"type": "image", "index": LONG}, images=["a.png"]))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "video", "video": LONG}, "only images are seen"),
        ({"type": "input_audio", "input_audio": {"data": LONG}}, "only images are seen"),
        ({"type": "thinking", "thinking": LONG}, "reasoning_content"),
        ({"type": LONG}, "known: text"),
        ({"type": ["image"]}, "known: text"),
        ({"type": "text", "text": None}, "known: text"),
        ({"type": "text", "text": "x", "image": LONG}, "a part of type image of its own"),
        ({"type": "image", "image": "a.png", "path": LONG}, "they differ"),
        ({"type": "image", "source": {"type": "base64", "data": LONG}}, "`source`"),
        ({"type": "image", "image": "a.png", "text": LONG}, "a part of its own"),
        ({"type": "image_url"}, "no `image_url`"),
        ({"type": "image_url", "image_url": {"detail": "low"}}, "no `image_url`"),
        (LONG, "a part of a turn is str"),
        (None, "a part of a turn is NoneType"),
    ],
)
def test_parts_that_are_refused(part, said):
    assert said in refusal(parts({"type": "text", "text": "x"}, part))


def test_half_of_a_character_is_refused():
    assert "half of a character" in refusal(with_question("a \ud83d b"))
    assert spoken(with_question("a \U0001f600 b"))
