"""Text, JSON and YAML of strangers: what is read as before, and where reading ends."""

import json

import pytest
import yaml

from vision_core.errors import UserError
from vision_core.files.text_files import MAX_DEPTH, is_deep, parse_json, read_text, yaml_node, yaml_value


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, 2.5, null, true, "x"]}',
        "3",
        nested(MAX_DEPTH),
        '{"a": NaN}',
        "[" * 5 + '{"a": "[[[["}' + "]" * 5,
    ],
)
def test_json_is_what_json_makes_of_it(text):
    assert repr(parse_json(text, "f", "c")) == repr(json.loads(text))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_depth_ends_where_it_is_said(depth):
    with pytest.raises(UserError, match="f: the JSON is nested too deeply.*; mend"):
        parse_json(nested(depth), "f", "mend")
    assert is_deep(json.loads(nested(500))) and not is_deep({"a": [{}] * 100_000})


def test_constants_are_refused_where_numbers_matter():
    assert parse_json("[1.5, -9223372036854775808, 9223372036854775807]", "f", "c", finite=True) == [
        1.5,
        -(2**63),
        2**63 - 1,
    ]
    for word in ("1e999", "9223372036854775808", "-9223372036854775809", "9" * 4000):
        with pytest.raises(UserError, match="no JSON .*; mend"):
            parse_json(f"[{word}]", "f", "mend", finite=True)
    for word in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(UserError, match="no number of JSON"):
            parse_json(f"[{word}]", "f", "mend", finite=True)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: [x, &x y, *x]",
        "",
        "- {a: b}",
        "a: &l [1, 2]\nb: *l\n",
        "d: 2020-01-02",
        "t: no",
        "a: " + "[" * 99 + "]" * 99,
    ],
)
def test_yaml_is_what_yaml_makes_of_it(text):
    assert yaml_value(text, "f") == yaml.safe_load(text)
    assert (
        yaml.serialize(yaml_node(text, "f")) == yaml.serialize(yaml.compose(text))
        if text
        else yaml_node(text, "f") is None
    )


@pytest.mark.parametrize("text", ["!!python/object:os.system x", "d: 2020-99-99", "a: *b", "\0", "a: b: c"])
def test_yaml_that_is_none_is_one_line(text):
    with pytest.raises(UserError, match="^f is not valid YAML"):
        yaml_value(text, "f")


def test_what_an_alias_stands_for_is_counted():
    """Ten times ten times ten and so on is refused where it reaches ten thousand, not where it has
    been built."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for number in range(1, 4):
        lines.append(f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]")
        text = "\n".join(lines)
        if number < 3:
            assert yaml_value(text, "f")
    with pytest.raises(UserError, match="holds more than 10,000 values"):
        yaml_value(text, "f")


def test_texts_are_of_a_size_and_in_utf_8(tmp_path):
    (tmp_path / "a").write_bytes("Zoë".encode("utf-8-sig"))
    assert read_text(tmp_path / "a", "a", "c", "utf-8-sig") == "Zoë"
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"^a cannot be read: it is not text in UTF-8 \(byte 2\); c$"):
        read_text(tmp_path / "a", "a", "c")
    with pytest.raises(UserError, match="it has more than 2 bytes"):
        read_text(tmp_path / "a", "a", "c", most_bytes=2)
