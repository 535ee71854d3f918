"""Parquet files that lie: one line each, from every way in, before a row is trained on."""

import io
import json
import re
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from fusion.conversations.sources import open_conversations
from fusion.conversations.stream import open_stream
from fusion.evaluation.benchmark_readers import read_cv_bench
from vision_core.errors import UserError
from vision_core.images.open_source import open_source
from vision_core.images.sources.parquet_footer import read_footer
from vision_core.images.sources.thrift import ThriftError, read_struct

ROWS, GROUP = 1500, 1000
# headers of fields of the compact protocol: one, or two, behind the field before, and of 64 bits
NEXT, NEXT_BUT_ONE = b"\x16", b"\x26"


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(stream, "PNG")
    return stream.getvalue()


def content(table: pa.Table, **options) -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream, **options)
    return stream.getvalue()


def images(count: int) -> list[dict]:
    return [{"bytes": png(), "path": None}] * count


GOOD = content(
    pa.table(
        {"image": images(ROWS), "label": range(ROWS), "texts": [["a"] * (row % 3) for row in range(ROWS)]}
    ),
    row_group_size=GROUP,
)
FACTS = pyarrow.parquet.ParquetFile(io.BytesIO(GOOD)).metadata.row_group(0).column(0)


def number(value: int) -> bytes:
    """A number of 64 bits as the compact protocol writes it."""
    value = (value << 1) ^ (value >> 63)
    written = b""
    while value > 0x7F:
        written, value = written + bytes([value & 0x7F | 0x80]), value >> 7
    return written + bytes([value])


def footer_of(data: bytes) -> bytes:
    return data[-8 - struct.unpack("<I", data[-8:-4])[0] : -8]


def with_footer(footer: bytes) -> bytes:
    return GOOD[: -8 - len(footer_of(GOOD))] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def lie(true: int, false: int, head: bytes = NEXT, which: int = 0) -> bytes:
    """The file with another number in its footer: occurrence `which` of field head and number."""
    footer = footer_of(GOOD)
    place = [found.start() for found in re.finditer(re.escape(head + number(true)), footer)][which]
    return with_footer(footer[:place] + head + number(false) + footer[place + len(head + number(true)) :])


def histogram_lie() -> bytes:
    """Statistics of a column of lists that lack a number, at which pyarrow 26 ends the process
    where it is asked for the column."""
    footer = footer_of(GOOD)
    lists = [
        found.start() for found in re.finditer(rb"\x19\x26", footer)
    ]  # of two numbers of 64 bits: how often texts begin a row, and go on
    place = lists[-1]
    end = place + 3
    while footer[end - 1] & 0x80:
        end += 1
    return with_footer(footer[:place] + b"\x19\x16" + footer[end:])


LIES = {
    "rows_of_the_file": (lie(ROWS, ROWS + 1), "counts 1,501 rows, and its row groups 1,500"),
    "no_rows": (lie(ROWS, 0), "counts 0 rows, and its row groups 1,500"),
    "negative_rows": (lie(ROWS, -1), r"not possible \(-1\)"),
    "endless_rows": (lie(ROWS, 2**62), "its row groups 1,500"),
    "rows_of_a_group": (lie(GROUP, GROUP + 7, which=-1), "its footer counts"),
    "values_fewer": (
        lie(GROUP, GROUP - 1),
        "counts 999 values in column 'image.bytes' of row group 0, which has 1,000 rows",
    ),
    "values_endless": (lie(GROUP, 2**60), "which has 1,000 rows"),
    "values_negative": (lie(GROUP, -GROUP), "not possible"),
    "packed_beyond": (lie(FACTS.total_compressed_size, 2**40), "outside of the file"),
    "packed_negative": (lie(FACTS.total_compressed_size, -7, which=-1), "not possible"),
    "unpacked_bomb": (lie(FACTS.total_uncompressed_size, 2**33), "which unpacks from"),
    "page_beyond": (lie(FACTS.data_page_offset, 2**41, NEXT_BUT_ONE), "outside of the file"),
    "page_negative": (lie(FACTS.data_page_offset, -2, NEXT_BUT_ONE), "not possible"),
    "page_in_the_mark": (lie(FACTS.data_page_offset, 2, NEXT_BUT_ONE), "outside of the file"),
    "dictionary_beyond": (lie(FACTS.dictionary_page_offset, 2**41, NEXT_BUT_ONE), None),
    "histogram": (histogram_lie(), "its footer has statistics of column .* that are not its own"),
    "schema_of_more": (
        with_footer(footer_of(GOOD).replace(b"schema\x15\x06", b"schema\x15\x0a", 1)),
        "lacks columns",
    ),
    "schema_of_fewer": (
        with_footer(footer_of(GOOD).replace(b"schema\x15\x06", b"schema\x15\x02", 1)),
        "of no group",
    ),
    "nothing": (b"", "does not begin as one"),
    "mark_alone": (b"PAR1", "is missing"),
    "two_marks": (b"PAR1PAR1", "its footer has"),
    "text": (b"no parquet at all\n" * 9, "does not begin as one"),
    "picture": (png(), "does not begin as one"),
    "cut_at_the_end": (GOOD[:-1], "its end is missing"),
    "cut_in_the_footer": (GOOD[:-900], "its end is missing"),
    "cut_in_the_pages": (GOOD[: len(GOOD) // 2], "its end is missing"),
    "front_cut": (GOOD[:4] + GOOD[400:], "outside of the file|cannot be read"),
    "encrypted_footer": (b"PARE" + GOOD[4:-4] + b"PARE", "its footer is encrypted; write the table without"),
    "footer_of_nothing": (GOOD[:-8] + bytes(4) + b"PAR1", "its footer has 0 bytes"),
    "footer_beyond": (GOOD[:-8] + b"\xff" * 4 + b"PAR1", "its footer has 4,294,967,295 bytes"),
    "footer_too_short": (GOOD[:-8] + struct.pack("<I", 9) + b"PAR1", "its footer"),
    "footer_of_zeros": (with_footer(bytes(500)), "its footer has no schema"),
    "nested": (with_footer(b"\x1c" * 5000), "its footer is nested too deeply"),
    "nested_lists": (with_footer(b"\x19" * 5000), "its footer is nested too deeply"),
    "list_beyond": (with_footer(b"\x29\xf6\xff\xff\xff\xff\x0f"), "its footer ends too early"),
    "long_number": (with_footer(b"\x16" + b"\xff" * 40), "its footer has a number that is too long"),
}


def line_of(caught) -> str:
    line = str(caught.value)
    assert "\n" not in line and "; " in line
    return line


@pytest.mark.parametrize("name", LIES)
def test_a_footer_that_lies_is_one_line_with_the_file(tmp_path: Path, name: str) -> None:
    data, message = LIES[name]
    assert data != GOOD
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"parquet:{tmp_path}/a.parquet")
    assert line_of(caught).startswith(f"{tmp_path}/a.parquet")


OPENERS = {
    "images": lambda folder: open_source(f"parquet:{folder}"),
    "hub_images": lambda folder: open_source(f"hf:{folder}"),
    "splits_beside": lambda folder: open_source(f"parquet:{folder}/*.parquet?captions=texts"),
    "conversations": lambda folder: open_conversations(f"parquet:{folder}/*.parquet"),
    "hub_conversations": lambda folder: open_conversations(f"hf:{folder}"),
    "stream": lambda folder: open_stream(f"parquet:{folder}/*.parquet?streaming=true"),
    "benchmark": lambda folder: read_cv_bench("cv_bench", folder / "b.parquet"),
}


@pytest.mark.parametrize(
    "name", ["rows_of_the_file", "packed_beyond", "cut_at_the_end", "encrypted_footer", "histogram"]
)
@pytest.mark.parametrize("opener", OPENERS)
def test_every_way_in_checks_the_footer(tmp_path: Path, opener: str, name: str) -> None:
    (tmp_path / "b.parquet").write_bytes(LIES[name][0])
    with pytest.raises(UserError, match=r"b\.parquet is not a readable parquet file: its ") as caught:
        OPENERS[opener](tmp_path)
    line_of(caught)


def nested(depth: int) -> pa.Array:
    value = pa.array([b"x"])
    for _ in range(depth):
        value = pa.StructArray.from_arrays([value], ["a"])
    return value


TYPES = {
    "numbers": (pa.array([1]), "holds int64, no images"),
    "lists_of_bytes": (pa.array([[b"x"]]), "holds list<.*>, no images"),
    "struct_without_bytes": (pa.array([{"path": "a.png"}]), "no images"),
    "struct_of_numbers": (pa.array([{"bytes": 1, "path": ""}]), "no images"),
    "struct_of_lists": (pa.array([{"bytes": [b"x"], "path": ""}]), "no images"),
    "map": (pa.array([[("a", b"x")]], pa.map_(pa.string(), pa.binary())), "no images"),
    "texts": (pa.array(["a.png"]), "holds string, no images"),
    "deeply_nested": (nested(25), "no images"),
    "nothing": (pa.nulls(1), "holds null, no images"),
}


@pytest.mark.parametrize("name", TYPES)
def test_a_column_of_something_else_than_images(tmp_path: Path, name: str) -> None:
    values, message = TYPES[name]
    pyarrow.parquet.write_table(pa.table({"image": values, "other": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"parquet:{tmp_path}/a.parquet?image=image")
    assert len(line_of(caught)) - len(str(tmp_path)) < 200


def test_files_that_hold_their_images_otherwise(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"image": images(2)}), tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pa.table({"image": [png()]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="b.parquet: column 'image' holds binary, unlike the files before it"):
        open_source(f"parquet:{tmp_path}")


NOTES = [
    b"no JSON",
    b"[1]",
    b'{"info": 7}',
    b'{"info": {"features": {"label": []}}}',
    b'{"info": {"features": {"label": {"names": [1, 2]}}}}',
]


@pytest.mark.parametrize("note", [*NOTES, b"[" * 100_000])
def test_a_note_of_datasets_that_is_none(tmp_path: Path, note: bytes) -> None:
    table = pa.table({"image": images(2), "label": [0, 1]}).replace_schema_metadata({"huggingface": note})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match="a.parquet: the (note 'huggingface'|classes of column 'label')"
    ) as caught:
        open_source(f"parquet:{tmp_path}/a.parquet")
    line_of(caught)


@pytest.mark.parametrize("codec", ["snappy", "gzip", "zstd", "none"])
def test_damaged_pages_name_file_and_column(tmp_path: Path, codec: str) -> None:
    """Of the images, which fit into memory, when the source is opened; of labels, too."""
    for column in ("image", "label"):
        table = pa.table({"image": images(3), "label": [3, 1, 2]})
        data = bytearray(content(table, compression=codec, use_dictionary=False))
        facts = (
            pyarrow.parquet.ParquetFile(io.BytesIO(data))
            .metadata.row_group(0)
            .column(0 if column == "image" else 2)
        )
        data[facts.data_page_offset : facts.data_page_offset + 12] = b"\xff" * 12
        (tmp_path / "a.parquet").write_bytes(data)
        with pytest.raises(
            UserError, match=rf"a\.parquet: column '{column}(\.bytes)?' cannot be read \(.*\); copy it again"
        ) as caught:
            open_source(f"parquet:{tmp_path}/a.parquet")
        line_of(caught)


def test_texts_that_are_no_utf8(tmp_path: Path) -> None:
    texts = pa.array([b"\xff\xfe"]).view(pa.string())
    pyarrow.parquet.write_table(pa.table({"image": images(1), "label": texts}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'label' holds texts that are not in UTF-8"):
        open_source(f"parquet:{tmp_path}/a.parquet?label=label")


WRITTEN = {
    "plain": {"use_dictionary": False, "write_statistics": False, "compression": "none"},
    "index": {"write_page_index": True, "write_page_checksum": True},
    "second_pages": {"data_page_version": "2.0", "compression": "zstd"},
    "first_version": {"version": "1.0", "store_schema": False},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_footer_is_read_as_pyarrow_reads_it(name: str, tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(io.BytesIO(GOOD))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=333, **WRITTEN[name])
    groups = read_footer(str(tmp_path / "a.parquet"))
    metadata = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet").metadata
    expected = [metadata.row_group(position) for position in range(metadata.num_row_groups)]
    assert [group.rows for group in groups] == [group.num_rows for group in expected]
    columns = [[group.column(place) for place in range(group.num_columns)] for group in expected]
    names = [[(column.path_in_schema, column.total_uncompressed_size) for column in row] for row in columns]
    assert [[tuple(chunk) for chunk in group.chunks] for group in groups] == names


def test_random_damage_of_a_footer_raises_nothing_else() -> None:
    footer, outcomes = footer_of(GOOD), {"read": 0, "refused": 0}
    generator = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(footer)
        for place in generator.integers(0, 600, 3):
            damaged[place] = generator.integers(256)
        try:
            read_struct(bytes(damaged))
            outcomes["read"] += 1
        except ThriftError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, json.dumps(outcomes)
