"""What the keys of rows mean: every one that carries meaning is used, or refused by its name; no
message is long."""

import pytest

from fusion.conversations.conversation import BadRow
from fusion.conversations.rows import (
    CAPTION_INSTRUCTION,
    OTHER_IMAGE_KEYS,
    REFUSED_KEYS,
    Columns,
    unread_keys,
)
from fusion.conversations.turns import LEARNT_KEYS, REFUSED_TURN_KEYS, THOUGHT_KEYS
from tests.fusion.conversations.row_helpers import ASKED, LONG, SAID, TURNS, parts, read, refusal, spoken


def test_the_examples_of_the_fault():
    assert "`video`" in refusal(
        {
            "conversations": [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "x"}],
            "video": "a.mp4",
        }
    )
    assert spoken({"system": "Be brief.", "messages": TURNS})[0] == ("system", "Be brief.")
    row = {"messages": [ASKED, {**SAID, "weight": 0}, ASKED, SAID]}
    assert [message.learnt for message in read(row).messages] == [True, False, True, True]


@pytest.mark.parametrize("key", REFUSED_KEYS)
@pytest.mark.parametrize("value", ["x", ["x"], {"a": ["x"]}, LONG, {"bytes": b"x" * 50_000, "path": None}, 7])
def test_keys_of_rows_that_carry_meaning_are_refused(key, value):
    message = refusal({"messages": TURNS, key: value})
    assert f"the row has `{key}`" in message and message.endswith(REFUSED_KEYS[key])


@pytest.mark.parametrize(
    "nothing", [None, "", [], {}, "[]", "{}", "null", False, {"bytes": None, "path": None}]
)
def test_keys_that_say_nothing_are_as_good_as_absent(nothing):
    """Tables have every column in every row, and converters fill them."""
    row = {
        "messages": [ASKED, {**SAID, **dict.fromkeys(REFUSED_TURN_KEYS, nothing)}],
        **dict.fromkeys(REFUSED_KEYS, nothing),
    }
    row |= {
        "images": nothing,
        "image": nothing,
        "system": nothing,
        "conversations": nothing,
        "texts": nothing,
    }
    assert spoken(row) == [("user", "what?"), ("assistant", "that")] and not read(row).images


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_prompt_beside_the_turns(key):
    assert spoken({key: "Be brief.", "messages": TURNS}) == [
        ("system", "Be brief."),
        ("user", "what?"),
        ("assistant", "that"),
    ]
    assert spoken({key: "Be brief.", "texts": [{"user": "what?", "assistant": "that"}]})[0] == (
        "system",
        "Be brief.",
    )
    same = {key: "Be brief.", "messages": [{"role": "developer", "content": "Be brief."}, *TURNS]}
    assert spoken(same) == spoken({key: "Be brief.", "messages": TURNS})
    assert "keep the one that is meant" in refusal(
        {key: LONG, "messages": [{"role": "system", "content": LONG + "B"}, *TURNS]}
    )
    assert "not text" in refusal({key: 7, "messages": TURNS})
    assert "shown by the user" in refusal({key: "<image>", "messages": TURNS, "images": ["a.png"]})
    assert "they differ" in refusal({"system": LONG, "system_prompt": "x", "messages": TURNS})


def test_turns_in_two_places_are_refused():
    assert "turns in `conversations` and in `messages`" in refusal(
        {"messages": TURNS, "conversations": TURNS}
    )


def test_labels_and_weights_of_rows():
    for key in ("label", "kto_tag"):
        assert "nobody wants" in refusal({"messages": TURNS, key: False})
        assert spoken({"messages": TURNS, key: True})
    assert spoken({"messages": TURNS, "weight": 1.0}) and "rows count alike" in refusal(
        {"messages": TURNS, "weight": 0.5}
    )
    assert "rows count alike" in refusal({"messages": TURNS, "weight": LONG})


@pytest.mark.parametrize("key", OTHER_IMAGE_KEYS)
def test_images_under_another_name(key):
    row = {"messages": TURNS, key: "a.png"}
    assert f"image={key}" in refusal(row)
    assert read(row, image=key).images == ("a.png",) and spoken(row, image=key)[0] == (
        "user",
        "<image>\nwhat?",
    )
    assert read({**row, "images": ["b.png"]}).images == ("b.png",)


def test_image_and_images():
    assert read({"messages": TURNS, "image": "a.png", "images": ["a.png"]}).images == ("a.png",)
    assert "they differ" in refusal({"messages": TURNS, "image": LONG, "images": ["b.png"]})
    assert "no column 'jpg'" in refusal({"messages": TURNS}, image="jpg")


def test_the_cauldron_and_finevision(tmp_path):
    ratings = {
        f"{name}_ratings": [5, 4]
        for name in ("relevance", "formatting", "visual_dependency", "image_correspondence")
    }
    texts = [
        {"user": "what?", "assistant": "that", "source": "x"},
        {"user": "and?", "assistant": "this", "source": "x"},
    ]
    row = {"images": ["a.png", "b.png"], "texts": texts, "source": "ai2d", **ratings}
    expected = [
        ("user", "<image>\n<image>\nwhat?"),
        ("assistant", "that"),
        ("user", "and?"),
        ("assistant", "this"),
    ]
    assert spoken(row) == expected and read(row).images == ("a.png", "b.png")
    assert unread_keys(row, Columns()) == {"source", "turns: source", *ratings}
    for texts, said in (
        ([["x"]], "not an object"),
        ([{"user": "x"}], "NoneType"),
        ([{"user": "", "assistant": " "}], "empty"),
    ):
        assert said in refusal({"texts": texts})
    assert "`tool_calls`" in refusal({"texts": [{"user": "x", "assistant": "y", "tool_calls": LONG}]})
    assert "system" in refusal({"texts": [{"user": "x", "assistant": "y", "system": "z"}]})


def test_columns():
    row = {"text": "A cat.", "jpg": "a.png", "q": "what?", "a": LONG, "n": 3}
    assert spoken(row, caption="text", image="jpg") == [
        ("user", f"<image>\n{CAPTION_INSTRUCTION}"),
        ("assistant", "A cat."),
    ]
    assert "a caption and no image" in refusal({"text": "A cat."}, caption="text")
    assert "no column 'caption'" in refusal(row, caption="caption")
    assert "'n' is int, not text" in refusal(row, question="q", answer="n")
    assert "`input` beside `instruction`" in refusal(
        {"instruction": "x", "input": "y", "output": "z"}, question="instruction", answer="output"
    )
    preferred = {"prompt": "x", "chosen": "y", "rejected": "z"}
    assert spoken(preferred, question="prompt", answer="chosen")[1] == (
        "assistant",
        "y",
    )  # said to be the answer, it is
    assert unread_keys(preferred, Columns(question="prompt", answer="chosen")) == {"rejected"}
    assert unread_keys({**row, "video": "a.mp4"}, Columns(question="q", answer="a")) == {"text", "jpg", "n"}
    assert "`video`" in refusal({**row, "video": "a.mp4"}, question="q", answer="a")
    assert "columns that the source names by question= and answer=" in refusal({"q": "what?", "a": "that"})


def test_keys_that_nothing_reads():
    row = {
        "id": 7,
        "conversations": [{**ASKED, "name": "Ann"}, SAID],
        "model": "x",
        "system": "y",
        "kind": "z",
        "empty": None,
    }
    assert unread_keys(row, Columns()) == {"id", "model", "turns: name"}
    assert unread_keys(row, Columns(question="id", answer="model")) == {"conversations"}
    assert (
        unread_keys([1], Columns())
        == unread_keys({"messages": 3}, Columns(question="messages", answer="x"))
        == set()
    )


VALUES = [
    None,
    7,
    0.5,
    True,
    "x",
    LONG,
    b"x" * 50_000,
    [],
    {},
    [None],
    [LONG],
    [[LONG]],
    {"a": LONG},
    [{"a": [LONG]}],
    "\ud800",
    "\x00\n",
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_wrong_types_anywhere_are_bad_rows(value):
    """Whatever stands wherever: a row that is read, or one short line."""
    rows = [
        value,
        {"messages": value},
        {"messages": [value]},
        {"messages": TURNS + [value]},
        {"texts": value},
        {"texts": [value]},
    ]
    rows += [
        {"messages": TURNS, key: value}
        for key in ("images", "image", "system", "weight", "label", "kind", *REFUSED_KEYS)
    ]
    for key in ("role", "from", "content", "value", *THOUGHT_KEYS, *LEARNT_KEYS, *REFUSED_TURN_KEYS):
        rows += [{"messages": [{**ASKED, key: value}, SAID]}, {"messages": [ASKED, {**SAID, key: value}]}]
    rows += [{"texts": [{"user": value, "assistant": "x"}]}, {"texts": [{"user": "x", "assistant": value}]}]
    for key in ("type", "text", "image", "path", "url", "base64", "image_url", "index", "source"):
        rows += [parts({"type": kind, "text": "x", key: value}) for kind in ("text", "image", "image_url")]
    for row in rows:
        unread_keys(row, Columns())
        try:
            read(row)
        except BadRow:
            refusal(row)
