"""Data sets of the Hugging Face hub, or of a local dataset folder, read through `datasets` with an
index or as a stream."""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import get_worker_info

from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import (
    ANYWHERE,
    data_roots,
    is_inside,
    read_regular_file,
    refuse_special_files,
)
from vision_core.hub import hub_or_cache
from vision_core.images.decode import decode_image
from vision_core.images.label_values import label_column, read_labels
from vision_core.images.source import (
    EncodedImageSource,
    ImageRecord,
    ImageSource,
    ImageStream,
    UnreadableSample,
)
from vision_core.images.sources.columns import Columns, annotations_in_columns
from vision_core.images.sources.parquet_footer import check_footers
from vision_core.images.stream_order import Place, share_of, shuffled_rows
from vision_core.unreadable import UnreadableImage


class NoSuchSplit(UserError):
    """The data does not have this split. `datasets` raises ValueError for it, and also for a
    configuration that is not there."""


def open_hub(
    name: str,
    num_channels: int = 3,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    revision: str | None = None,
    streaming: str = "false",
    shuffle_buffer: str = "1000",
    mask: str | None = None,
    depth: str | None = None,
    captions: str | None = None,
    copy_of: str | None = None,
    follow_links: str = "false",
    **options: str,
) -> ImageSource | ImageStream:
    """Open `NAME[:CONFIG]` as `datasets.load_dataset` takes it; images stay encoded until our own
    decoder reads them. `options` as for `make_annotations`.

    Raises:
        UserError: `datasets` is missing, the data cannot be loaded, or a column is not there.
    """
    datasets = _import_datasets()
    wanted = {"mask": mask, "depth": depth, "captions": captions, "copy_of": copy_of}
    _check_options(name, {"streaming": streaming, "follow_links": follow_links}, shuffle_buffer)
    is_streamed = streaming == "true"
    if is_streamed:
        _refuse_annotations_of_a_stream(name, wanted, options)
    path, config = _path_and_config(name)
    with hub_or_cache(path, f"hf:{name}"):
        dataset = _load_dataset(name, path, config, split, revision, is_streamed)
    columns = _columns_of(name, dataset.features)
    image = columns.main_image(image)
    if label is not None:
        columns.require(label, "label")
    table = ImageTable(
        dataset=dataset.cast_column(image, datasets.Image(decode=False)),
        name=f"{name}/{split}",
        image=image,
        label=label_column(columns.types, label),
        num_channels=num_channels,
        roots=_roots(path, follow_links == "true", datasets),
    )
    if is_streamed:
        stream_label = _label_of_stream(name, dataset.features, table.label, asked_for=label is not None)
        return HubStream(table._replace(label=stream_label), int(shuffle_buffer))
    source = HubSource(table, asked_for=label is not None)
    source.annotations = annotations_in_columns(
        source,
        columns,
        main=image,
        wanted=wanted,
        options=options,
        open_images=partial(_open_images, table),
        read_column=partial(_read_column, dataset),
    )
    return source


def _open_images(table: "ImageTable", column: str) -> "HubSource":
    """Open another column of a table as images of one channel."""
    import datasets

    encoded = table.dataset.cast_column(column, datasets.Image(decode=False))
    return HubSource(table._replace(dataset=encoded, image=column, label=None, num_channels=1))


def _read_column(dataset, column: str) -> list:
    return list(dataset.select_columns([column])[column])


def _import_datasets():
    try:
        import datasets
    except ImportError:
        raise UserError(
            "hf: needs the package datasets; pip install 'vision-encoder-fusion[pretrain]'"
        ) from None
    return datasets


def _check_options(name: str, switches: dict[str, str], shuffle_buffer: str) -> None:
    for option, value in switches.items():
        if value not in ("true", "false"):
            raise UserError(f"hf:{name}: {option}={value!r} is not possible; use true or false")
    if not (shuffle_buffer.isascii() and shuffle_buffer.isdigit()):
        raise UserError(
            f"hf:{name}: shuffle_buffer={shuffle_buffer!r} is not a whole number; 0 keeps the order"
        )


def _refuse_annotations_of_a_stream(
    name: str, wanted: dict[str, str | None], options: dict[str, str]
) -> None:
    given = [*options]
    given += [option for option, column in wanted.items() if column]
    if given:
        raise UserError(
            f"hf:{name}: {given[0]} needs an index, which a stream has not; leave out streaming=true"
        )


def _path_and_config(name: str) -> tuple[str, str]:
    """`NAME:CONFIG` in its two parts; the path of a folder may hold a colon."""
    if os.path.isdir(name):
        return name, ""
    path, _, config = name.partition(":")
    return path, config


def _load_dataset(
    name: str, path: str, config: str, split: str, revision: str | None, is_streamed: bool
) -> Any:
    import datasets

    refuse_special_files(path, at_any_depth=True)
    check_footers(path)
    try:
        return datasets.load_dataset(
            path, config or None, split=split, revision=revision, streaming=is_streamed
        )
    except Exception as error:  # a wrong name, a wrong split, no network: `datasets` has a type for each
        kind = NoSuchSplit if isinstance(error, ValueError) else UserError
        # `datasets` says that something failed, and the error's cause says what
        reason = first_line(error.__cause__ or error)
        raise kind(f"hf:{name}?split={split} cannot be loaded: {reason}") from None


def _columns_of(name: str, features) -> Columns:
    import datasets

    if not features:
        raise UserError(f"hf:{name}: the columns are not known before reading; use streaming=false")
    return Columns(
        where=f"hf:{name}",
        types={field.name: field.type for field in features.arrow_schema},
        images=[column for column, feature in features.items() if isinstance(feature, datasets.Image)],
    )


class Roots(NamedTuple):
    """Where the images of a data set that are files of their own may lie.

    real: folders in which a file must lie after its links are resolved.
    named: a folder in which links are followed wherever they lead, or None.
    """

    real: tuple[str, ...]
    named: str | None = None

    def of_file(self, path: str) -> tuple[str, ...]:
        """The real folders in which the file `path` must lie."""
        if self.named is not None and is_inside(os.path.abspath(path), self.named):
            return (ANYWHERE,)
        return self.real


class ImageTable(NamedTuple):
    """A table of `datasets` whose column `image` holds encoded images.

    name: data set and split, for ids and messages.
    label: the column of labels, or None.
    num_channels: what the images are read as.
    roots: where images that are files of their own may lie.
    """

    dataset: Any
    name: str
    image: str
    label: str | None
    num_channels: int
    roots: Roots


class HubSource(EncodedImageSource):
    """A `datasets.Dataset` with a column of images, memory-mapped by `datasets`.

    asked_for: whether the user named the column of labels.
    """

    def __init__(self, table: ImageTable, asked_for: bool = False) -> None:
        dataset = table.dataset
        if not len(dataset):
            raise UserError(f"0 rows in hf:{table.name}; choose another by ?split=NAME")
        self.dataset = dataset.select_columns([table.image])
        self.name = table.name
        self.image = table.image
        self.num_channels = table.num_channels
        self.roots = table.roots
        self.description = f"{len(dataset):,} images of hf:{table.name}"
        if table.label is not None:
            names = _class_names(dataset.features[table.label])
            found = read_labels(list(dataset[table.label]), table.label, asked_for, names)
            self.take_labels(found)
            self.description += found.described()

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def content_fingerprint(self) -> str:
        return f"hf {self.name} {self.dataset._fingerprint}"

    def state_of_files(self) -> tuple[str, str]:
        return state_of_table(self.dataset), self.dataset._fingerprint

    def id_of(self, index: int) -> str:
        return f"{self.name}:{index}"

    def read_bytes(self, index: int) -> bytes:
        return encoded_bytes(self.dataset[index][self.image], self.roots)


class HubStream(ImageStream):
    """A streamed data set: processes and data workers get shards of their own, and each reader
    shuffles blocks of `shuffle_buffer` images.

    A block is filled from up to ten shards in turn. The order is a function of (epoch, world size,
    number of data workers): two equal runs see the same images, and a reader can continue after
    any of them. With fewer shards than processes every process reads all shards and keeps its
    share; a data worker without a shard stays idle.
    """

    def __init__(self, table: ImageTable, shuffle_buffer: int) -> None:
        columns = [table.image]
        self.class_names = None
        if table.label is not None:
            columns.append(table.label)
            self.class_names = getattr(table.dataset.features[table.label], "names", None)
        self.dataset = table.dataset.select_columns(columns)
        self.name = table.name
        self.image = table.image
        self.label = table.label
        self.num_channels = table.num_channels
        self.roots = table.roots
        self.shuffle_buffer = shuffle_buffer
        order = "in the order of its files"
        if shuffle_buffer > 1:
            order = f"shuffled in blocks of {shuffle_buffer:,}"
        self.description = f"stream of hf:{table.name}, {order}"

    def state_of_files(self) -> tuple[str, str]:
        return f"{state_of_table(self.dataset)} {self.dataset.num_shards} shards", ""

    def records(
        self, rank: int, world_size: int, epoch: int, start: Place | None = None
    ) -> Iterator[ImageRecord | UnreadableSample]:
        worker = get_worker_info()
        worker_id = worker.id if worker else 0
        workers = worker.num_workers if worker else 1
        share = share_of(self.dataset, rank, world_size, worker_id, workers)
        if share is None:
            return
        if self.shuffle_buffer > 1:  # otherwise the order is that of the files, in every pass
            # the shards are shuffled here, and the rows in blocks: a buffer of one row leaves them
            share = share.shuffle(seed=0, buffer_size=1)
            share.set_epoch(epoch)
        names = ("stream", epoch, rank, worker_id)
        reader = f"{self.name}:epoch{epoch}.rank{rank}.worker{worker_id}"
        for number, row, place in shuffled_rows(share, max(self.shuffle_buffer, 1), names, start):
            yield self._record(f"{reader}:{number}", row, place)

    def _record(self, name: str, row: dict, place: Place) -> ImageRecord | UnreadableSample:
        label = row[self.label] if self.label else None
        if label is not None and label < 0:
            label = None
        try:
            data = encoded_bytes(row[self.image], self.roots)
            image = decode_image(data, self.num_channels, self.pixel_options)
        except UnreadableImage as error:
            return UnreadableSample(name, error.reason)
        return ImageRecord(name, image, label, place)


def state_of_table(dataset: Any) -> str:
    """A hash over the columns of a data set and the bytes and rows of every split, as `datasets`
    knows them; it is the same on another machine."""
    splits = []
    for name, split in sorted((dataset.info.splits or {}).items()):
        splits.append((name, (split.num_bytes, split.num_examples)))
    digest = hashlib.blake2b(repr((dataset.features, splits)).encode(), digest_size=16)
    return digest.hexdigest()


def encoded_bytes(value: dict | None, roots: Roots) -> bytes:
    """The bytes of an undecoded `datasets.Image`. A path without bytes comes from a data file and
    is therefore read only inside `roots`."""
    value = value or {}
    if value.get("bytes") is not None:
        return value["bytes"]
    if not value.get("path"):
        raise UnreadableImage("no_bytes")
    return read_regular_file(value["path"], *roots.of_file(value["path"]))


def _roots(path: str, follow_links: bool, datasets) -> Roots:
    if os.path.isdir(path):
        return Roots(data_roots(path), os.path.abspath(path) if follow_links else None)
    return Roots(tuple(_cache_folders(datasets)))


def _cache_folders(datasets) -> list[str]:
    """Where `datasets` puts what it downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return [os.path.realpath(folder) for folder in (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)]


def _label_of_stream(name: str, features, label: str | None, asked_for: bool) -> str | None:
    """The column of a stream's labels where it holds class numbers, else None. Texts cannot be
    numbered, because all of them are known only at the end of the stream."""
    if label is None:
        return None
    import datasets

    feature = features[label]
    if isinstance(feature, datasets.ClassLabel) or "int" in getattr(feature, "dtype", ""):
        return label
    if asked_for:
        raise UserError(
            f"hf:{name}: column {label!r} holds no whole numbers, which a stream needs for labels; "
            "leave out streaming=true"
        )
    return None


def _class_names(feature) -> list[str] | None:
    """The names of a ClassLabel, or of a list of them."""
    return getattr(getattr(feature, "feature", feature), "names", None)
