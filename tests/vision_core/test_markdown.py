import re

from vision_core.markdown import table, table_of_records


def test_a_table_has_a_line_for_its_header_and_each_row():
    assert table(("name", "k"), [("a", 20), ("b", 0.123456)]).splitlines() == [
        "| name | k |",
        "| --- | --- |",
        "| a | 20 |",
        "| b | 0.1235 |",
    ]


def test_columns_stand_as_they_first_appear_and_may_be_lacking():
    lines = table_of_records([{"a": 1, "b": 2}, {"c": 3, "a": 4}]).splitlines()
    assert lines == ["| a | b | c |", "| --- | --- | --- |", "| 1 | 2 |  |", "| 4 |  | 3 |"]


def test_no_value_can_leave_its_cell():
    lines = table(("a|b", "c"), [("d\ne | f", "\x1b[2J\u202eg")]).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3, 3, 3]
    assert lines[2] == "| d e \\| f | \\x1b[2J\\u202eg |"
