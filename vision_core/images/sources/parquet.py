"""Images in parquet files: HF `Image` structs or plain bytes, with random access."""

import json
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import files_fingerprint, files_matching, short_names, state_of_files
from vision_core.images.annotations import Read, holds_texts, make_annotations
from vision_core.images.label_values import Labels, label_column, read_labels
from vision_core.images.source import EncodedImageSource
from vision_core.images.sources.parquet_footer import CURE, read_footer
from vision_core.unreadable import UnreadableImage

MAX_BYTES_IN_MEMORY = 2**30
CACHED_ROW_GROUPS = 8
USUAL_IMAGE = "image"


class ParquetSource(EncodedImageSource):
    """Rows of the files that `pattern` matches, in sorted order of files; a row's id is its file
    and number.

    Where the encoded images take less than 1 GiB they are read at once and kept, so that forked
    data workers share them. Above that each process keeps the last 8 row groups: fine in file
    order, slow in random order, for which `hf:FOLDER` maps the same files.

    Args:
        image: column of images; default `image`, or the only one that looks like images.
        label: column of labels, of which `label_values.py` says what they mean; default `label` or
            `labels`, where there is one.
        at_once: whether to read what fits into memory now, or when it is first asked for.
    """

    def __init__(
        self,
        pattern: str,
        num_channels: int = 3,
        image: str | None = None,
        label: str | None = None,
        at_once: bool = True,
    ) -> None:
        parquet = _import_parquet()
        self.files = files_matching("parquet", pattern, ".parquet")
        footers = [read_footer(path) for path in self.files]
        self.num_channels = num_channels
        self._names = short_names(self.files)
        opened = [_open_parquet(parquet, path) for path in self.files]
        schema = opened[0].schema_arrow
        image = image or _only_image_column(schema, pattern)
        for path, file in zip(self.files, opened, strict=True):
            for column in (image, *([label] if label else [])):
                _check_column(path, file.schema_arrow, column)
            _check_images(path, file.schema_arrow.field(image), _is_struct(schema.field(image)))
        self.image_column = image
        self._column = f"{image}.bytes" if _is_struct(schema.field(image)) else image
        self._metadata = [file.metadata for file in opened]
        self._groups = [
            (number, group) for number, footer in enumerate(footers) for group in range(len(footer))
        ]
        self._group_ends = list(accumulate(group.rows for footer in footers for group in footer))
        self._file_ends = list(accumulate(sum(group.rows for group in footer) for footer in footers))
        if not len(self):
            raise UserError(f"0 rows in parquet:{pattern}; give files with at least one image")
        found = _read_labels(self.files, opened, schema, label)
        self.take_labels(found)
        self.description = f"{len(self):,} images in {len(self.files)} parquet files{found.described()}"
        self._cache: dict[int, object] = {}
        encoded_bytes = sum(group.unpacked(self._column) for footer in footers for group in footer)
        self._in_memory = encoded_bytes < MAX_BYTES_IN_MEMORY
        if self._in_memory and at_once:
            for position in range(len(self._groups)):
                self._row_group(position)

    def __len__(self) -> int:
        return self._file_ends[-1]

    @property
    def content_fingerprint(self) -> str:
        return files_fingerprint(self.files, self._column, self.labels, self.multi_labels)

    def state_of_files(self) -> tuple[str, str]:
        return state_of_files(zip(self._names, self.files, strict=True), self._column)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": {}}

    def id_of(self, index: int) -> str:
        file = bisect_right(self._file_ends, index)
        return f"{self._names[file]}:{index - (self._file_ends[file - 1] if file else 0)}"

    def read_bytes(self, index: int) -> bytes:
        position = bisect_right(self._group_ends, index)
        row = index - (self._group_ends[position - 1] if position else 0)
        data = self._row_group(position)[row].as_py()
        if data is None:
            raise UnreadableImage("no_bytes")  # a path inside a data file is never followed
        return data

    def _row_group(self, position: int):
        """The encoded images of one row group, as an arrow column of bytes."""
        if position not in self._cache:
            if not self._in_memory and len(self._cache) >= CACHED_ROW_GROUPS:
                del self._cache[next(iter(self._cache))]
            self._cache[position] = self._read_row_group(position)
        return self._cache[position]

    def _read_row_group(self, position: int):
        import pyarrow.compute

        file, group = self._groups[position]
        rows = self._group_ends[position] - (self._group_ends[position - 1] if position else 0)
        opened = _open_parquet(_import_parquet(), self.files[file], self._metadata[file])
        column = _read(self.files[file], self._column, rows, partial(opened.read_row_group, group))
        return pyarrow.compute.struct_field(column, "bytes") if self._column.endswith(".bytes") else column


def open_parquet(
    pattern: str,
    num_channels: int = 3,
    image: str | None = None,
    label: str | None = None,
    mask: str | None = None,
    depth: str | None = None,
    captions: str | None = None,
    copy_of: str | None = None,
    **options: str,
) -> ParquetSource:
    """The rows with what stands beside the image in columns: by default mask and depth (images),
    captions or caption (text or lists of it), and target_image_id, the `image_id` from which a
    picture was made. `options` as for `make_annotations`. Nothing of it is read before it is asked
    for.

    Raises UserError for a column that is not there or holds something else.
    """
    source = ParquetSource(pattern, num_channels, image, label)
    schema = _open_parquet(_import_parquet(), source.files[0]).schema_arrow
    masks, depths = (
        _image_column(source, pattern, schema, wanted, usual)
        for wanted, usual in ((mask, "mask"), (depth, "depth"))
    )
    texts = _text_column(source, schema, captions, "captions", "caption")
    ids = _text_column(source, schema, None, "image_id")
    copies = _text_column(source, schema, copy_of, "target_image_id") if ids or copy_of else None
    if copies and not ids:
        raise UserError(
            f"parquet:{pattern}: copy_of={copy_of} needs a column image_id with the names that it holds; add one"
        )
    source.annotations = make_annotations(source, options, masks, depths, texts, ids, copies)
    return source


def _image_column(
    source: ParquetSource, pattern: str, schema, wanted: str | None, usual: str
) -> ParquetSource | None:
    is_there = usual in schema.names and _holds_images(schema.field(usual)) and usual != source.image_column
    if wanted is None and not is_there:
        return None
    _check_column(source.files[0], schema, wanted or usual)
    if not _holds_images(schema.field(wanted or usual)):
        raise UserError(
            f"parquet:{pattern}: column {wanted!r} holds no images; name another by {usual}=COLUMN"
        )
    return ParquetSource(pattern, 1, wanted or usual, at_once=False)


def _text_column(source: ParquetSource, schema, wanted: str | None, *usual: str) -> Read | None:
    """What reads a column of texts, or None where none is named and there is none of the usual
    names."""
    if wanted is None:
        wanted = next(
            (name for name in usual if name in schema.names and holds_texts(schema.field(name).type)), None
        )
        return wanted and partial(_read_column, source.files, wanted)
    _check_column(source.files[0], schema, wanted)
    if not holds_texts(schema.field(wanted).type):
        raise UserError(
            f"{source.files[0]}: column {wanted!r} holds neither texts nor lists of texts; name another"
        )
    return partial(_read_column, source.files, wanted)


def _read_column(paths: list[str], column: str) -> list:
    """The values of all rows, file by file."""
    values = []
    for path in paths:
        file = _open_parquet(_import_parquet(), path)
        _check_column(path, file.schema_arrow, column)
        values += _values(path, file, column)
    return values


def _values(path: str, file, column: str) -> list:
    """The values of a column of an open file. Raises UserError."""
    try:
        return _read(path, column, file.metadata.num_rows, file.read).to_pylist()
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: column {column!r} holds texts that are not in UTF-8; write them anew"
        ) from None


def _read(path: str, column: str, rows: int, read: Callable[..., Any]):
    """The arrow column of `rows` values that `read` of pyarrow gives. Raises UserError for pages
    that are damaged."""
    import pyarrow

    try:
        table = read(columns=[column], use_threads=False)
    except (OSError, ValueError, MemoryError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: column {column!r} cannot be read ({first_line(error)}); {CURE}") from None
    if table.num_columns != 1 or table.num_rows != rows:
        raise UserError(
            f"{path}: column {column!r} has {table.num_rows:,} rows where its footer counts {rows:,}; {CURE}"
        )
    return table.column(0)


def _import_parquet():
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "parquet: needs the package pyarrow; pip install 'vision-encoder-fusion[pretrain]'"
        ) from None
    return pyarrow.parquet


def _open_parquet(parquet, path: str, metadata=None):
    try:
        return parquet.ParquetFile(path, metadata=metadata)
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is not a readable parquet file: {first_line(error)}; {CURE}") from None


def _is_struct(field) -> bool:
    import pyarrow.types

    if not pyarrow.types.is_struct(field.type):
        return False
    place = field.type.get_field_index("bytes")
    return place >= 0 and _is_binary(field.type.field(place).type)


def _is_binary(arrow_type) -> bool:
    import pyarrow.types

    return pyarrow.types.is_binary(arrow_type) or pyarrow.types.is_large_binary(arrow_type)


def _holds_images(field) -> bool:
    return _is_struct(field) or _is_binary(field.type)


def _only_image_column(schema, pattern: str) -> str:
    columns = [field.name for field in schema if _holds_images(field)]
    if USUAL_IMAGE in columns:
        return USUAL_IMAGE
    if len(columns) != 1:
        found = (
            f"columns {', '.join(columns)} all hold images"
            if columns
            else f"no images in columns {', '.join(schema.names)}"
        )
        raise UserError(f"parquet:{pattern}: {found}; name one by ?image=COLUMN")
    return columns[0]


def _check_column(path: str, schema, column: str) -> None:
    if column not in schema.names:
        raise UserError(f"{path} has no column {column!r}; its columns are {', '.join(schema.names)}")


def _check_images(path: str, field, as_struct: bool) -> None:
    """Every file has its images as the first one does. Raises UserError."""
    if not _holds_images(field):
        raise UserError(
            f"{path}: column {field.name!r} holds {_shown_type(field)}, no images; name another by ?image=COLUMN"
        )
    if _is_struct(field) != as_struct:
        raise UserError(
            f"{path}: column {field.name!r} holds {_shown_type(field)}, unlike the files before it; write all files alike"
        )


def _shown_type(field) -> str:
    """An arrow type in words that fit a line, however it is nested."""
    text = str(field.type)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_labels(paths: list[str], opened: list, schema, label: str | None) -> Labels:
    column = label_column({field.name: field.type for field in schema}, label)
    if column is None or any(column not in file.schema_arrow.names for file in opened):
        return Labels()
    values = [
        value for path, file in zip(paths, opened, strict=True) for value in _values(path, file, column)
    ]
    return read_labels(values, column, label is not None, _class_names(paths[0], schema, column))


def _class_names(path: str, schema, label: str) -> list[str] | None:
    """Names of a ClassLabel, or of a list of them, in the metadata that `datasets` writes. Raises
    UserError for something else in its place."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = metadata.get("info", {}).get("features", {}).get(label, {})
        if isinstance(feature, list):  # as older versions write a list of labels
            feature = feature[0]
        names = feature.get("feature", feature).get("names")
    except (ValueError, AttributeError, IndexError, RecursionError):
        raise UserError(
            f"{path}: the note 'huggingface' beside its schema names no features; write the file anew by `datasets`"
        ) from None
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(
            f"{path}: the classes of column {label!r} have names that are no texts; write the file anew by `datasets`"
        )
    return names
