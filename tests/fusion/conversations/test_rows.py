"""What the keys of rows and turns mean: every one that carries meaning is used, or refused by its
name; no message is long."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from fusion.conversations.conversation import BadRow, one_line, quote
from fusion.conversations.rows import (
    CAPTION_INSTRUCTION,
    OTHER_IMAGE_KEYS,
    REFUSED_KEYS,
    Columns,
    read_row,
    unread_keys,
)
from fusion.conversations.sources import open_conversations
from fusion.conversations.stream import open_stream
from fusion.conversations.turns import LEARNT_KEYS, REFUSED_TURN_KEYS, ROLES, THOUGHT_KEYS, TOOL_ROLES
from vision_core.errors import UserError

ASKED, SAID = {"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}
TURNS = [ASKED, SAID]
LONG = "A" * 50_000  # as much base64


def read(row, **columns):
    return read_row(row, "rows.json, row 7", Columns(**columns))


def talk(row, **columns):
    return [(message.role, message.text) for message in read(row, **columns).messages]


def refusal(row, **columns):
    """The message of a row that is refused: one printable line that names the place."""
    with pytest.raises(BadRow) as caught:
        read(row, **columns)
    message = str(caught.value)
    assert message.startswith("rows.json, row 7: ") and message.isprintable() and len(message) < 1000
    return message


def with_answer(**keys):
    return {"messages": [ASKED, {**SAID, **keys}]}


def with_question(text, **keys):
    return {"messages": [{"role": "user", "content": text}, SAID], **keys}


# ---- what a row says beside its turns


def test_the_examples_of_the_fault():
    assert "`video`" in refusal(
        {
            "conversations": [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "x"}],
            "video": "a.mp4",
        }
    )
    assert talk({"system": "Be brief.", "messages": TURNS})[0] == ("system", "Be brief.")
    row = {"messages": [ASKED, {**SAID, "weight": 0}, ASKED, SAID]}
    assert [message.learnt for message in read(row).messages] == [True, False, True, True]


@pytest.mark.parametrize("key", REFUSED_KEYS)
@pytest.mark.parametrize("value", ["x", ["x"], {"a": ["x"]}, LONG, {"bytes": b"x" * 50_000, "path": None}, 7])
def test_keys_of_rows_that_carry_meaning_are_refused(key, value):
    message = refusal({"messages": TURNS, key: value})
    assert f"the row has `{key}`" in message and message.endswith(REFUSED_KEYS[key])


@pytest.mark.parametrize("key", REFUSED_TURN_KEYS)
def test_keys_of_turns_that_carry_meaning_are_refused(key):
    message = refusal(with_answer(**{key: LONG}))
    assert f"a turn has `{key}`" in message and message.endswith(REFUSED_TURN_KEYS[key])


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
    assert talk(row) == [("user", "what?"), ("assistant", "that")] and not read(row).images


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_prompt_beside_the_turns(key):
    assert talk({key: "Be brief.", "messages": TURNS}) == [
        ("system", "Be brief."),
        ("user", "what?"),
        ("assistant", "that"),
    ]
    assert talk({key: "Be brief.", "texts": [{"user": "what?", "assistant": "that"}]})[0] == (
        "system",
        "Be brief.",
    )
    same = {key: "Be brief.", "messages": [{"role": "developer", "content": "Be brief."}, *TURNS]}
    assert talk(same) == talk({key: "Be brief.", "messages": TURNS})
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
        assert talk({"messages": TURNS, key: True})
    assert talk({"messages": TURNS, "weight": 1.0}) and "rows count alike" in refusal(
        {"messages": TURNS, "weight": 0.5}
    )
    assert "rows count alike" in refusal({"messages": TURNS, "weight": LONG})


@pytest.mark.parametrize("key", OTHER_IMAGE_KEYS)
def test_images_under_another_name(key):
    row = {"messages": TURNS, key: "a.png"}
    assert f"image={key}" in refusal(row)
    assert read(row, image=key).images == ("a.png",) and talk(row, image=key)[0] == ("user", "<image>\nwhat?")
    assert read({**row, "images": ["b.png"]}).images == ("b.png",)


def test_image_and_images():
    assert read({"messages": TURNS, "image": "a.png", "images": ["a.png"]}).images == ("a.png",)
    assert "they differ" in refusal({"messages": TURNS, "image": LONG, "images": ["b.png"]})
    assert "no column 'jpg'" in refusal({"messages": TURNS}, image="jpg")


# ---- whether an answer is learnt


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


# ---- other forms


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
    assert talk(row) == expected and read(row).images == ("a.png", "b.png")
    assert unread_keys(row, Columns()) == {"source", "turns: source", *ratings}
    for texts, said in (
        ([["x"]], "not an object"),
        ([{"user": "x"}], "NoneType"),
        ([{"user": "", "assistant": " "}], "empty"),
    ):
        assert said in refusal({"texts": texts})
    assert "`tool_calls`" in refusal({"texts": [{"user": "x", "assistant": "y", "tool_calls": LONG}]})
    assert "system" in refusal({"texts": [{"user": "x", "assistant": "y", "system": "z"}]})


def test_columns_of_questions_and_answers_in_files_and_tables(tmp_path):
    rows = [
        {"q": "what?", "a": "that", "why": "because", "system_prompt": "Be brief."},
        {"q": "and?", "a": "this", "why": None, "system_prompt": None},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    options = "?question=q&answer=a&thoughts=why"
    read_as = [
        open_conversations(f"{name}{options}")
        for name in (f"llava:{tmp_path}/rows.jsonl", f"parquet:{tmp_path}/rows.parquet")
    ]
    read_as.append(list(open_stream(f"parquet:{tmp_path}/rows.parquet{options}&streaming=true")))
    for source in read_as:
        first, second = source[0].messages, source[1].messages
        assert [(m.role, m.text, m.thoughts) for m in first] == [
            ("system", "Be brief.", ""), ("user", "what?", ""), ("assistant", "that", "because"),
        ]  # fmt: skip
        assert [(m.role, m.text, m.thoughts) for m in second] == [
            ("user", "and?", ""),
            ("assistant", "this", ""),
        ]


def test_columns():
    row = {"text": "A cat.", "jpg": "a.png", "q": "what?", "a": LONG, "n": 3}
    assert talk(row, caption="text", image="jpg") == [
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
    assert talk(preferred, question="prompt", answer="chosen")[1] == (
        "assistant",
        "y",
    )  # said to be the answer, it is
    assert unread_keys(preferred, Columns(question="prompt", answer="chosen")) == {"rejected"}
    assert unread_keys({**row, "video": "a.mp4"}, Columns(question="q", answer="a")) == {"text", "jpg", "n"}
    assert "`video`" in refusal({**row, "video": "a.mp4"}, question="q", answer="a")
    assert "columns that the source names by question= and answer=" in refusal({"q": "what?", "a": "that"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("question=q", "go together"),
        ("answer=q", "go together"),
        ("question=q&answer=a&caption=c", "not both"),
        ("thoughts=t", "before an answer"),
        ("caption=", "has no value"),
        ("http=perhaps", "neither true nor false"),
        ("colour=red", "unknown option"),
    ],
)
@pytest.mark.parametrize("kind", ["llava", "parquet", "stream"])
def test_options_that_do_not_go_together(kind, options, said, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "x", "a": "y"}))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"q": "x", "a": "y"}]), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=said):
        if kind == "stream":
            open_stream(f"parquet:{tmp_path}/rows.parquet?{options}&streaming=true")
        else:
            open_conversations(
                f"{kind}:{tmp_path}/rows.{'jsonl' if kind == 'llava' else 'parquet'}?{options}"
            )


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


# ---- thoughts


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
    assert talk(with_question("what is </think>?"))[0] == ("user", "what is </think>?")


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


# ---- who speaks, and in which parts


def test_speakers():
    assert ROLES["developer"] == "system" and talk(
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


def parts(*given, **keys):
    return {"messages": [{"role": "user", "content": list(given)}, SAID], **keys}


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
    assert talk(row)[0] == ("user", "which?<image>\n") and read(row).images == ("a.png",)
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


# ---- placeholders


@pytest.mark.parametrize(
    "text",
    [
        "<image_1> what?",
        "what is in <image 2>?",
        "<image1>",
        "<|image_1|>\nwhat?",
        "<|image|>what?",
        "<|image_pad|>",
        "<ImageHere>what?",
        "<start_of_image>",
    ],
)
def test_other_spellings_of_an_images_place(text):
    assert "write <image> where an image is shown" in refusal(with_question(text + LONG, images=["a.png"]))
    assert "write <image> where an image is shown" in refusal(with_answer(content=text))


def test_placeholders_of_films_and_boxes():
    for text in (
        "<video>what?",
        "what?\n<video>",
        "  <audio>\nwhat?",
        "see\n<video>\nwhat?",
        "<image><video>",
    ):
        assert "only images are seen" in refusal(
            with_question(text + LONG * text.startswith("see"), images=["a.png"] * text.count("<image>"))
        )
    assert "`objects`" in refusal(with_question("find <ref-object>"))
    assert "`objects`" in refusal(with_answer(content="it is at <bbox>"))


@pytest.mark.parametrize(
    "text",
    [
        "How do I loop a <video> in HTML?",
        "Does `<audio>` need a source?",
        "<video>\n  <source src='a.mp4'>\n</video>\nwhy is it black?",
        "<video controls>",
        "the tags <img> and <picture>",
        "a <bbox>1, 2, 3, 4</bbox> and x < image_1 > y",
    ],
)
def test_texts_that_talk_of_tags(text):
    assert talk(with_question(text))[0] == ("user", text)
    assert talk(with_answer(content=f"Use <video>:\n<video>\n{text}"))[1][0] == "assistant"


# ---- wrong types, and messages


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


def test_half_of_a_character_is_refused():
    assert "half of a character" in refusal(with_question("a \ud83d b"))
    assert talk(with_question("a \U0001f600 b"))


def test_values_in_messages_are_short_and_printable():
    assert one_line("a cat") == "a cat" and one_line("a\nb\x00") == r"a\nb\x00" and one_line("ü") == "ü"
    assert one_line(LONG) == "A" * 200 + "… (50,000 characters)" and quote(b"abc") == "3 bytes"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (LONG, [LONG] * 1000, {LONG: LONG}, deep, "\x00" * 500, "\ud800" * 300):
        assert len(quote(value)) < 300 and quote(value).isprintable()
    while deep:  # freed from outside in, or the interpreter runs out of stack
        deep = deep[0]


@pytest.mark.parametrize("depth", [2000, 100_000])
def test_nesting_without_end(depth, tmp_path):
    nested = "[" * depth + "]" * depth
    (tmp_path / "rows.jsonl").write_text(f'{json.dumps({"messages": TURNS})}\n{{"messages": {nested}}}\n')
    source = open_conversations(f"messages:{tmp_path}/rows.jsonl")
    assert source[0].messages
    with pytest.raises(BadRow, match="rows.jsonl, line 2: the JSON is nested too deeply"):
        source[1]
    (tmp_path / "rows.json").write_text(nested)
    with pytest.raises(UserError, match="nested too deeply"):
        open_conversations(f"messages:{tmp_path}/rows.json")


def test_a_table_whose_text_is_no_text(tmp_path):
    """pyarrow keeps bytes that are not UTF-8 in a column of texts until somebody asks for them."""
    broken = pyarrow.array([b"what?", b"\xff\xfe"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"q": broken, "a": ["x", "y"]}), tmp_path / "rows.parquet")
    source = open_conversations(f"parquet:{tmp_path}/rows.parquet?question=q&answer=a")
    assert source[0].messages
    with pytest.raises(BadRow, match="row 2: the row cannot be read"):
        source[1]


def test_an_empty_answer_of_a_table_and_a_folder_that_is_not_there(tmp_path):
    """What people have most often, each with its own cure."""
    rows = [{"q": "what?", "a": None}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    source = open_conversations(f"llava:{tmp_path / 'rows.jsonl'}?question=q&answer=a")
    with pytest.raises(BadRow, match="'a' is empty; leave the row out"):
        source[0]
    with pytest.raises(UserError, match="the folder of images .*imgs is not there; name it by images="):
        open_conversations(f"llava:{tmp_path / 'rows.jsonl'}?images={tmp_path / 'imgs'}")
