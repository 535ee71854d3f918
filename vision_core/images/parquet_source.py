"""Images in parquet files: HF `Image` structs or plain bytes, with random access."""

import glob
import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage, decode_image
from vision_core.images.sources import ImageRecord, ImageSource

MAX_BYTES_IN_MEMORY = 2**30
CACHED_ROW_GROUPS = 8


class ParquetSource(ImageSource):
    """Rows of the files that `pattern` matches, in sorted order of files.

    Encoded images are kept in memory where the files are below 1 GiB in total; above it the last few row groups are.

    Args:
        image: column of images; default: the only one that looks like images.
        label: integer column of labels; default `label` where there is one.
    """

    def __init__(self, pattern: str, num_channels: int = 3, image: str | None = None, label: str | None = None) -> None:
        parquet = _import_parquet()
        self.files = sorted(glob.glob(pattern, recursive=True))
        if not self.files:
            raise UserError(f"no file matches parquet:{pattern}; check the path and quote the pattern for the shell")
        opened = [_open_parquet(parquet, path) for path in self.files]
        schema = opened[0].schema_arrow
        self.image = image or _image_column(schema, pattern)
        for name in [self.image, *([label] if label else [])]:
            if name not in schema.names:
                raise UserError(f"parquet:{pattern} has no column {name!r}; columns: {', '.join(schema.names)}")
        label = label or ("label" if "label" in schema.names else None)
        self.num_channels = num_channels
        groups = [(number, group) for number, file in enumerate(opened) for group in range(file.num_row_groups)]
        self._groups = groups
        self._ends = list(accumulate(opened[number].metadata.row_group(group).num_rows for number, group in groups))
        self._cache: dict[int, list] = {}
        self._cache_limit = (
            len(groups) if sum(Path(path).stat().st_size for path in self.files) < MAX_BYTES_IN_MEMORY else CACHED_ROW_GROUPS
        )
        if not len(self):
            raise UserError(f"0 rows in parquet:{pattern}")
        self.labels = self._read_labels(opened, label)
        self.class_names = _class_names(schema, label)
        classes = f", {len(set(self.labels))} classes" if self.labels else ""
        self.description = f"{len(self):,} images in {len(self.files)} parquet files{classes}"

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> ImageRecord:
        if not 0 <= index < len(self):
            raise IndexError(index)
        position = bisect_right(self._ends, index)
        row = index - (self._ends[position - 1] if position else 0)
        value = self._row_group(position)[row]
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise UnreadableImage("no_bytes")  # a path inside a data file is never followed
        return ImageRecord(
            self.id_of(index), decode_image(data, self.num_channels), None if self.labels is None else self.labels[index]
        )

    def id_of(self, index: int) -> str:
        position = bisect_right(self._ends, index)
        file = self._groups[position][0]
        before = next((end for (number, _), end in zip(reversed(self._groups), reversed(self._ends)) if number < file), 0)
        return f"{Path(self.files[file]).name}:{index - before}"

    def _row_group(self, position: int) -> list:
        if position not in self._cache:
            if len(self._cache) >= self._cache_limit:
                del self._cache[next(iter(self._cache))]
            file, group = self._groups[position]
            table = _import_parquet().ParquetFile(self.files[file]).read_row_group(group, columns=[self.image])
            self._cache[position] = table.column(0).to_pylist()
        return self._cache[position]

    def _read_labels(self, opened: list, label: str | None) -> list[int] | None:
        if label is None:
            return None
        values = [value for file in opened for value in file.read(columns=[label]).column(0).to_pylist()]
        if not all(isinstance(value, int) for value in values):
            raise UserError(f"column {label!r} of {self.files[0]} is no column of whole numbers; name another by label=")
        return values


def _import_parquet():
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("parquet: needs pyarrow; pip install 'vision-encoder-fusion[pretrain]'") from None
    return pyarrow.parquet


def _open_parquet(parquet, path: str):
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow raises several types on a file that is not parquet
        raise UserError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}") from None


def _image_column(schema, pattern: str) -> str:
    import pyarrow

    def holds_images(field) -> bool:
        if pyarrow.types.is_struct(field.type):
            return field.type.get_field_index("bytes") >= 0
        return pyarrow.types.is_binary(field.type) or pyarrow.types.is_large_binary(field.type)

    columns = [field.name for field in schema if holds_images(field)]
    if len(columns) != 1:
        found = ", ".join(columns) or "none"
        raise UserError(f"parquet:{pattern}: image columns found: {found}; name one by ?image=COLUMN")
    return columns[0]


def _class_names(schema, label: str | None) -> list[str] | None:
    """Names of a ClassLabel in the metadata that `datasets` writes."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return metadata.get("info", {}).get("features", {}).get(label, {}).get("names") if label else None
