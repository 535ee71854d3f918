"""Conversations from files, tables and scenes, and sources and rows that cannot be read."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from fusion.conversations.conversation import BadRow
from fusion.conversations.sources import open_conversations
from fusion.conversations.stream import open_stream
from vision_core.errors import UserError

TURNS = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "that"}]


def picture(side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (side, side + 2, 3), dtype=np.uint8)


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(picture(8 + number, number)))
    return tmp_path / "images"


def written(folder, rows, name="rows.json"):
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (folder / name).write_text(text)
    return folder / name


def roles(conversation):
    return [(message.role, message.text) for message in conversation.messages]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_llava(name, tmp_path, images):
    rows = [
        {
            "image": "1.png",
            "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}],
        },
        {"conversations": [{"from": "system", "value": "be brief"}, *TURNS, *TURNS]},
        {"image": ["0.png", "2.png"], "conversations": TURNS},
        {
            "images": None,
            "image": "1.png",
            "conversations": TURNS,
            "messages": None,
        },  # as tables with both columns are written
    ]
    source = open_conversations(f"llava:{written(tmp_path, rows, name)}?images={images}")
    one, none, two, nulls = (source[row] for row in range(4))
    assert (
        len(source) == 4
        and len(nulls.images) == 1
        and roles(one) == [("user", "<image>\nwhat?"), ("assistant", "that")]
    )
    assert torch.equal(one.images[0], torch.from_numpy(picture(9, 1)).permute(2, 0, 1))
    assert [message.role for message in none.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ] and not none.images
    assert [tuple(image.shape) for image in two.images] == [(3, 8, 10), (3, 10, 12)]
    assert (
        two.messages[0].text == "<image>\n<image>\nwhat?"
    )  # a row whose text has no place shows its images first


def test_messages_of_parts(tmp_path, images):
    content = [{"type": "text", "text": "first"}, {"type": "image"}, {"type": "text", "text": "which?"}]
    rows = [
        {
            "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "that"}],
            "images": ["0.png"],
        }
    ]
    assert roles(open_conversations(f"messages:{written(tmp_path, rows)}?images={images}")[0])[0] == (
        "user",
        "first<image>\nwhich?",
    )


def test_parquet_and_a_folder_of_it(tmp_path):
    struct = {"bytes": png(picture()), "path": None}
    turns = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}]
    table = pyarrow.Table.from_pylist(
        [{"messages": turns, "images": [struct, struct]}, {"messages": turns, "images": []}]
    )
    pyarrow.parquet.write_table(table, tmp_path / "train-0.parquet")
    for text in (f"parquet:{tmp_path}/*.parquet", f"hf:{tmp_path}"):
        source = open_conversations(text)
        assert len(source) == 2 and len(source[0].images) == 2 and not source[1].images
        assert torch.equal(source[0].images[1], torch.from_numpy(picture()).permute(2, 0, 1))


def test_lines_are_read_by_their_offset(tmp_path):
    """Blank lines count as lines, long and non-ASCII ones are whole, and a row is found without
    those before it."""
    file = tmp_path / "rows.jsonl"
    answers = ["ü" * 3, "x" * 100_000, "last"]
    lines = [
        json.dumps({"conversations": [TURNS[0], {"from": "gpt", "value": answer}]}, ensure_ascii=False)
        for answer in answers
    ]
    file.write_text(f"\n{lines[0]}\n\n\n{lines[1]}\n{lines[2]}", encoding="utf-8")
    source = open_conversations(f"llava:{file}")
    assert [source[row].messages[1].text for row in (2, 0, 1)] == [answers[2], answers[0], answers[1]]
    assert [source.where(row) for row in range(3)] == [f"{file}, line {line}" for line in (2, 5, 6)]


def test_scenes_ask_all_kinds():
    source = open_conversations("scenes?count=60")
    kinds = {source[row].kind for row in range(60)}
    assert kinds == {"category", "colour", "texture", "count", "nearest", "left_of", "above", "depth_order"}
    assert roles(source[3]) == roles(open_conversations("scenes?count=4")[3])


BAD = {
    "turns": ({}, "no turns"),
    "speaker": ({"conversations": [{"from": "narrator", "value": "x"}]}, "narrator"),
    "order": ({"conversations": TURNS[::-1]}, "take turns"),
    "no answer": ({"conversations": TURNS[:1]}, "last"),
    "empty answer": ({"conversations": [TURNS[0], {"from": "gpt", "value": "  "}]}, "turn 2 is empty"),
    "late system": ({"conversations": [*TURNS, {"from": "system", "value": "x"}]}, "goes first"),
    "places": (
        {"conversations": [{"from": "human", "value": "<image><image>"}, TURNS[1]], "image": "0.png"},
        "2 <image> and the row has 1 images",
    ),
    "place without an image": (
        {"conversations": [{"from": "human", "value": "<image>"}, TURNS[1]]},
        "0 images",
    ),
    "image in an answer": (
        {"conversations": [TURNS[0], {"from": "gpt", "value": "<image>"}], "image": "0.png"},
        "shown by the user",
    ),
    "missing file": ({"conversations": TURNS, "image": "9.png"}, "9.png cannot be read"),
    "way out": ({"conversations": TURNS, "image": "../rows.json"}, "leads out of the image folder"),
    "absolute": ({"conversations": TURNS, "image": "/etc/passwd"}, "leads out of the image folder"),
    "no image": ({"conversations": TURNS, "image": "bad.png"}, "cannot be decoded"),
    "no path": ({"conversations": TURNS, "image": 7}, "not a path"),
    "unknown part": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "video"}]},
                {"role": "assistant", "content": "x"},
            ]
        },
        "video",
    ),
    "no object": ([1], "not an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named_with_file_row_and_reason(name, tmp_path, images):
    row, said = BAD[name]
    (images / "bad.png").write_bytes(b"no image")
    file = written(tmp_path, [{"conversations": TURNS}, row])
    source = open_conversations(f"llava:{file}?images={images}")
    assert source[0].messages
    with pytest.raises(BadRow) as caught:
        source[1]
    assert f"{file}, row 2" in str(caught.value) and said in str(caught.value)


def test_a_link_out_of_the_folder_is_a_way_out(tmp_path, images):
    (tmp_path / "secret.png").write_bytes(png(picture()))
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    file = written(tmp_path, [{"conversations": TURNS, "image": "link.png"}])
    with pytest.raises(BadRow, match="leads out"):
        open_conversations(f"llava:{file}?images={images}")[0]


def test_malformed_json_at_a_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps({'conversations': TURNS})}\n\n{{'conversations\n")
    source = open_conversations(f"llava:{file}")
    with pytest.raises(BadRow, match=f"{file}, line 3: no JSON"):
        source[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tsv:x", "names no conversations"),
        ("llava:", "names no conversations"),
        ("llava:absent.json", "is not there"),
        ("scenes?count=many", "no whole number"),
        ("scenes?split=test", "train or held_out"),
        ("scenes?weight=0", "above 0"),
        ("scenes?weight=nan", "above 0"),
        ("scenes?colour=red", "unknown option 'colour'"),
        ("parquet:absent/*.parquet", "cannot be opened"),
    ],
)
def test_sources_that_cannot_be_opened(text, said):
    with pytest.raises(UserError, match=said):
        open_conversations(text)


@pytest.mark.parametrize(("content", "said"), [("{}", "not a list"), ("[", "no JSON"), ("[]", "no rows")])
def test_files_that_are_no_lists(content, said, tmp_path):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(UserError, match=said):
        open_conversations(f"llava:{tmp_path / 'rows.json'}")


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
