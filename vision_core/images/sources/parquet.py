"""Images in parquet files, as HF `Image` structs or plain bytes, with random access."""

import json
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import files_fingerprint, files_matching, short_names, state_of_files
from vision_core.images.label_values import Labels, label_column, read_labels
from vision_core.images.source import EncodedImageSource
from vision_core.images.sources.columns import Columns, annotations_in_columns
from vision_core.images.sources.parquet_footer import CURE, Group, read_footer
from vision_core.unreadable import UnreadableImage

MAX_BYTES_IN_MEMORY = 2**30
CACHED_ROW_GROUPS = 8
LONGEST_SHOWN_TYPE = 60


class ParquetSource(EncodedImageSource):
    """Rows of the files that `pattern` matches, in sorted order of files; a row's id is its file
    and number.

    Where the encoded images take less than 1 GiB they are read at once and kept, so that forked
    data workers share them. Above that each process keeps the last 8 row groups: fine in file
    order, slow in random order, for which `hf:FOLDER` maps the same files.

    Args:
        image: column of images; default `image`, or the only one that looks like images.
        label: column of labels, which `label_values.py` interprets; default `label` or `labels`,
            where there is one.
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
        self.columns = _columns_of(schema, pattern)
        self.image_column = image or self.columns.main_image(None)
        _check_files(self.files, opened, self.image_column, label)
        is_struct = _is_struct(schema.field(self.image_column))
        self._column = f"{self.image_column}.bytes" if is_struct else self.image_column
        self._metadata = [file.metadata for file in opened]
        self._number_rows(footers)
        if not len(self):
            raise UserError(f"0 rows in parquet:{pattern}; give files with at least one image")
        found = _read_labels(self.files, opened, self.columns.types, label)
        self.take_labels(found)
        self.description = f"{len(self):,} images in {len(self.files)} parquet files{found.described()}"
        self._row_groups: dict[int, Any] = {}
        if self._in_memory and at_once:
            for position in range(len(self._groups)):
                self._row_group(position)

    def _number_rows(self, footers: list[list[Group]]) -> None:
        """Find the number of the row at which each row group and each file ends."""
        self._groups: list[tuple[int, int]] = []  # file and number of each row group
        group_rows = []
        file_rows = []
        encoded_bytes = 0
        for file, groups in enumerate(footers):
            self._groups += [(file, number) for number in range(len(groups))]
            rows = [group.rows for group in groups]
            group_rows += rows
            file_rows.append(sum(rows))
            encoded_bytes += sum(group.unpacked(self._column) for group in groups)
        self._group_ends = list(accumulate(group_rows))
        self._file_ends = list(accumulate(file_rows))
        self._in_memory = encoded_bytes < MAX_BYTES_IN_MEMORY

    def __len__(self) -> int:
        return self._file_ends[-1]

    @property
    def content_fingerprint(self) -> str:
        return files_fingerprint(self.files, self._column, self.labels, self.multi_labels)

    def state_of_files(self) -> tuple[str, str]:
        return state_of_files(zip(self._names, self.files, strict=True), self._column)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_row_groups": {}}

    def id_of(self, index: int) -> str:
        file = bisect_right(self._file_ends, index)
        return f"{self._names[file]}:{index - _start(self._file_ends, file)}"

    def read_bytes(self, index: int) -> bytes:
        position = bisect_right(self._group_ends, index)
        row = index - _start(self._group_ends, position)
        data = self._row_group(position)[row].as_py()
        if data is None:
            raise UnreadableImage("no_bytes")  # a path inside a data file is never followed
        return data

    def _row_group(self, position: int):
        """The encoded images of one row group, as an arrow column of bytes."""
        if position not in self._row_groups:
            if not self._in_memory and len(self._row_groups) >= CACHED_ROW_GROUPS:
                del self._row_groups[next(iter(self._row_groups))]
            self._row_groups[position] = self._read_row_group(position)
        return self._row_groups[position]

    def _read_row_group(self, position: int):
        import pyarrow.compute

        file, group = self._groups[position]
        rows = self._group_ends[position] - _start(self._group_ends, position)
        opened = _open_parquet(_import_parquet(), self.files[file], self._metadata[file])
        column = _read(self.files[file], self._column, rows, partial(opened.read_row_group, group))
        if self._column.endswith(".bytes"):
            return pyarrow.compute.struct_field(column, "bytes")
        return column


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
    """Open the rows of the files that `pattern` matches, with the annotations in the columns beside
    the images; see `annotations_in_columns`.

    Raises UserError for a column that is not there or holds something else.
    """
    source = ParquetSource(pattern, num_channels, image, label)
    source.annotations = annotations_in_columns(
        source,
        source.columns,
        main=source.image_column,
        wanted={"mask": mask, "depth": depth, "captions": captions, "copy_of": copy_of},
        options=options,
        open_images=lambda column: ParquetSource(pattern, 1, column, at_once=False),
        read_column=partial(_read_column, source.files),
    )
    return source


def _start(ends: list[int], position: int) -> int:
    """Where the part at `position` begins, from the ends of all parts."""
    return ends[position - 1] if position else 0


def _columns_of(schema, pattern: str) -> Columns:
    return Columns(
        where=f"parquet:{pattern}",
        types={field.name: field.type for field in schema},
        images=[field.name for field in schema if _holds_images(field)],
    )


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


def _check_column(path: str, schema, column: str) -> None:
    if column not in schema.names:
        raise UserError(f"{path} has no column {column!r}; its columns are {', '.join(schema.names)}")


def _check_files(paths: list[str], opened: list, image: str, label: str | None) -> None:
    """Raise UserError where a file lacks a column, or has other images than the first file."""
    as_struct = None
    for path, file in zip(paths, opened, strict=True):
        schema = file.schema_arrow
        _check_column(path, schema, image)
        if label is not None:
            _check_column(path, schema, label)
        field = schema.field(image)
        _check_images(path, field, as_struct)
        as_struct = _is_struct(field)


def _check_images(path: str, field, as_struct: bool | None) -> None:
    """Raise UserError where a column holds no images, or not as `as_struct` says (None: any way)."""
    if not _holds_images(field):
        raise UserError(
            f"{path}: column {field.name!r} holds {_shown_type(field)}, no images; "
            "name another by ?image=COLUMN"
        )
    if as_struct is not None and _is_struct(field) != as_struct:
        raise UserError(
            f"{path}: column {field.name!r} holds {_shown_type(field)}, unlike the files before it; "
            "write all files alike"
        )


def _shown_type(field) -> str:
    """An arrow type in words that fit a line, however deeply it is nested."""
    text = str(field.type)
    return text if len(text) <= LONGEST_SHOWN_TYPE else f"{text[: LONGEST_SHOWN_TYPE - 3]}..."


def _read_labels(paths: list[str], opened: list, types: dict[str, Any], label: str | None) -> Labels:
    column = label_column(types, label)
    if column is None or any(column not in file.schema_arrow.names for file in opened):
        return Labels()
    values = []
    for path, file in zip(paths, opened, strict=True):
        values += _values(path, file, column)
    names = _class_names(paths[0], opened[0].schema_arrow, column)
    return read_labels(values, column, asked_for=label is not None, names=names)


def _class_names(path: str, schema, label: str) -> list[str] | None:
    """The names of a ClassLabel, or of a list of them, in the metadata that `datasets` writes.

    Raises UserError where the metadata holds something else.
    """
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = metadata.get("info", {}).get("features", {}).get(label, {})
        if isinstance(feature, list):  # older versions write a list of labels this way
            feature = feature[0]
        names = feature.get("feature", feature).get("names")
    except (ValueError, AttributeError, IndexError, RecursionError):
        raise UserError(
            f"{path}: the note 'huggingface' beside its schema names no features; "
            "write the file anew by `datasets`"
        ) from None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{path}: the classes of column {label!r} have names that are not texts; "
            "write the file anew by `datasets`"
        )
    return names
