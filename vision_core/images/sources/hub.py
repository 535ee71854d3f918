"""Data sets of the Hugging Face hub (or a local dataset folder) through `datasets`, indexed or
streamed."""

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
from vision_core.images.annotations import Annotations, Read, holds_texts, make_annotations
from vision_core.images.decode import decode_image
from vision_core.images.label_values import label_column, read_labels
from vision_core.images.source import (
    EncodedImageSource,
    ImageRecord,
    ImageSource,
    ImageStream,
    UnreadableSample,
)
from vision_core.images.sources.parquet_footer import check_footers
from vision_core.images.stream_order import Place, share_of, shuffled_rows
from vision_core.unreadable import UnreadableImage


class NoSuchSplit(UserError):
    """A part that the data does not have. `datasets` has a ValueError for it, and for a
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
    """`NAME[:CONFIG]` as `datasets.load_dataset` takes them; images stay encoded until our own
    decoder reads them.

    Raises:
        UserError: `datasets` is missing, the data cannot be loaded, or a column is not there.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            "hf: needs the package datasets; pip install 'vision-encoder-fusion[pretrain]'"
        ) from None
    for option, value in (("streaming", streaming), ("follow_links", follow_links)):
        if value not in ("true", "false"):
            raise UserError(f"hf:{name}: {option}={value!r} is not possible; use true or false")
    if not (shuffle_buffer.isascii() and shuffle_buffer.isdigit()):
        raise UserError(f"hf:{name}: shuffle_buffer={shuffle_buffer!r} is no whole number; 0 keeps the order")
    path, config = (name, "") if os.path.isdir(name) else name.partition(":")[::2]
    streamed = streaming == "true"
    wanted = {"mask": mask, "depth": depth, "captions": captions, "copy_of": copy_of}
    beside = [*options, *(option for option, column in wanted.items() if column)]
    if streamed and beside:
        raise UserError(
            f"hf:{name}: {beside[0]} needs an index, which a stream has not; leave out streaming=true"
        )
    with hub_or_cache(path, f"hf:{name}"):
        dataset = _load_dataset(name, path, config, split, revision, streamed)
    asked_for = label is not None
    image, label = _columns(name, dataset.features, image, label)
    dataset = dataset.cast_column(image, datasets.Image(decode=False))
    roots = _roots(path, follow_links == "true", datasets)
    if streamed:
        label = _numbers_only(name, dataset.features, label, asked_for)
        return HubStream(dataset, f"{name}/{split}", image, label, num_channels, roots, int(shuffle_buffer))
    source = HubSource(dataset, f"{name}/{split}", image, label, num_channels, roots, asked_for)
    source.annotations = _annotations(dataset, source, wanted, options)
    return source


def _load_dataset(name: str, path: str, config: str, split: str, revision: str | None, streamed: bool) -> Any:
    import datasets

    refuse_special_files(path, at_any_depth=True)
    check_footers(path)
    try:
        return datasets.load_dataset(path, config or None, split=split, revision=revision, streaming=streamed)
    except Exception as error:  # a wrong name, a wrong split, no network: `datasets` has a type for each
        kind = NoSuchSplit if isinstance(error, ValueError) else UserError
        reason = first_line(
            error.__cause__ or error
        )  # `datasets` says that something failed, and its cause says what
        raise kind(f"hf:{name}?split={split} cannot be loaded: {reason}") from None


def _annotations(
    dataset, source: "HubSource", wanted: dict[str, str | None], options: dict[str, str]
) -> Annotations | None:
    """The columns beside the image, by the usual names unless they are named; see
    `parquet_source.open_parquet`."""
    for option, column in wanted.items():
        if column is not None and column not in dataset.features:
            raise UserError(
                f"hf:{source.name}: no column {column!r}; name one of {', '.join(dataset.features)} by ?{option}=COLUMN"
            )
    masks, depths = (_image_column(dataset, source, wanted[kind], kind) for kind in ("mask", "depth"))
    texts = _text_column(dataset, source, wanted["captions"], "captions", "caption")
    ids = _text_column(dataset, source, None, "image_id")
    copies = (
        _text_column(dataset, source, wanted["copy_of"], "target_image_id")
        if ids or wanted["copy_of"]
        else None
    )
    if copies and not ids:
        raise UserError(
            f"hf:{source.name}: copy_of={wanted['copy_of']} needs a column image_id with the names that it holds; add one"
        )
    return make_annotations(source, options, masks, depths, texts, ids, copies)


def _image_column(dataset, source: "HubSource", wanted: str | None, usual: str) -> "HubSource | None":
    import datasets

    if (
        isinstance(dataset.features.get(wanted or usual), datasets.Image)
        and (wanted or usual) != source.image
    ):
        beside = dataset.cast_column(wanted or usual, datasets.Image(decode=False))
        return HubSource(beside, source.name, wanted or usual, None, 1, source.roots)
    if wanted is not None:
        raise UserError(
            f"hf:{source.name}: column {wanted!r} holds no images besides the images; name another by ?{usual}=COLUMN"
        )
    return None


def _text_column(dataset, source: "HubSource", wanted: str | None, *usual: str) -> Read | None:
    """What reads a column of texts, or None where none is named and there is none of the usual
    names."""
    schema = dataset.features.arrow_schema
    found = [
        name
        for name in ([wanted] if wanted else usual)
        if name in schema.names and holds_texts(schema.field(name).type)
    ]
    if wanted and not found:
        raise UserError(
            f"hf:{source.name}: column {wanted!r} holds neither texts nor lists of texts; name another"
        )
    return partial(_read_column, dataset.select_columns(found[:1]), found[0]) if found else None


def _read_column(dataset, column: str) -> list:
    return list(dataset[column])


class Roots(NamedTuple):
    """Where the images of a data set may lie that are files of their own.

    real: folders in which a file must lie, its links resolved. named: a folder in whose files links
    are followed wherever they lead, or None.
    """

    real: tuple[str, ...]
    named: str | None = None

    def of_file(self, path: str) -> tuple[str, ...]:
        """The real folders in which the file `path` must lie."""
        is_named = self.named is not None and is_inside(os.path.abspath(path), self.named)
        return (ANYWHERE,) if is_named else self.real


class HubSource(EncodedImageSource):
    """A `datasets.Dataset` with an image column, memory-mapped by `datasets`; `asked_for` says
    whether the user named the labels' column."""

    def __init__(
        self,
        dataset,
        name: str,
        image: str,
        label: str | None,
        num_channels: int,
        roots: Roots,
        asked_for: bool = False,
    ) -> None:
        if not len(dataset):
            raise UserError(f"0 rows in hf:{name}; choose another by ?split=NAME")
        self.dataset, self.name, self.image, self.num_channels = (
            dataset.select_columns([image]),
            name,
            image,
            num_channels,
        )
        self.roots = roots
        self.description = f"{len(dataset):,} images of hf:{name}"
        if label is not None:
            found = read_labels(list(dataset[label]), label, asked_for, _class_names(dataset.features[label]))
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
    """A streamed data set: shards go to processes and data workers, and each of them shuffles
    blocks of `shuffle_buffer` images.

    A block is filled from up to ten shards in turn. The order is a function of (epoch, world size,
    number of data workers): the same run twice sees the same images, and a reader goes on behind
    any of them. With fewer shards than processes every process reads all shards and keeps its
    share; a data worker without a shard stays idle.
    """

    def __init__(
        self,
        dataset,
        name: str,
        image: str,
        label: str | None,
        num_channels: int,
        roots: Roots,
        shuffle_buffer: int,
    ) -> None:
        self.dataset = dataset.select_columns([image, *([label] if label else [])])
        self.name, self.image, self.label, self.num_channels, self.roots = (
            name,
            image,
            label,
            num_channels,
            roots,
        )
        self.shuffle_buffer = shuffle_buffer
        self.class_names = getattr(dataset.features[label], "names", None) if label else None
        order = (
            f"shuffled in blocks of {shuffle_buffer:,}" if shuffle_buffer > 1 else "in the order of its files"
        )
        self.description = f"stream of hf:{name}, {order}"

    def state_of_files(self) -> tuple[str, str]:
        return f"{state_of_table(self.dataset)} {self.dataset.num_shards} shards", ""

    def records(
        self, rank: int, world_size: int, epoch: int, start: Place | None = None
    ) -> Iterator[ImageRecord | UnreadableSample]:
        worker = get_worker_info()
        worker_id, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        reader = f"{self.name}:epoch{epoch}.rank{rank}.worker{worker_id}"
        share = share_of(self.dataset, rank, world_size, worker_id, workers)
        if share is None:
            return
        if self.shuffle_buffer > 1:  # otherwise the order is that of the files, in every pass
            share = share.shuffle(
                seed=0, buffer_size=1
            )  # shards in turn, one row at a time: the rows are shuffled in blocks
            share.set_epoch(epoch)
        names = ("stream", epoch, rank, worker_id)
        for number, row, place in shuffled_rows(share, max(self.shuffle_buffer, 1), names, start):
            label = row[self.label] if self.label else None
            try:
                image = decode_image(
                    encoded_bytes(row[self.image], self.roots), self.num_channels, self.pixel_options
                )
                yield ImageRecord(
                    f"{reader}:{number}", image, label if label is not None and label >= 0 else None, place
                )
            except UnreadableImage as error:
                yield UnreadableSample(f"{reader}:{number}", error.reason)


def state_of_table(dataset: Any) -> str:
    """Columns, and bytes and rows of every split, as `datasets` knows them of a data set: the same
    on another machine."""
    splits = {
        name: (split.num_bytes, split.num_examples) for name, split in (dataset.info.splits or {}).items()
    }
    digest = hashlib.blake2b(repr((dataset.features, sorted(splits.items()))).encode(), digest_size=16)
    return digest.hexdigest()


def encoded_bytes(value: dict | None, roots: Roots) -> bytes:
    """The bytes of an undecoded `datasets.Image`. A path without bytes is read only inside `roots`:
    it is what a data file says."""
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


def _columns(name: str, features, image: str | None, label: str | None) -> tuple[str, str | None]:
    """The columns of images and labels, by name or by their types."""
    import datasets

    if not features:
        raise UserError(f"hf:{name}: the columns are not known before reading; use streaming=false")
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    image = image or ("image" if "image" in images else images[0] if len(images) == 1 else None)
    if image not in features:
        wanted = f"no column {image!r}" if image else f"{len(images)} image columns"
        raise UserError(f"hf:{name}: {wanted}; name one of {', '.join(features)} by ?image=COLUMN")
    if label and label not in features:
        raise UserError(f"hf:{name}: no column {label!r}; name one of {', '.join(features)} by ?label=COLUMN")
    schema = features.arrow_schema
    return image, label_column({field.name: field.type for field in schema}, label)


def _numbers_only(name: str, features, label: str | None, asked_for: bool) -> str | None:
    """The column of a stream's labels: class numbers, for what texts there are is known at the end
    alone."""
    if label is None:
        return None
    import datasets

    feature = features[label]
    if isinstance(feature, datasets.ClassLabel) or "int" in getattr(feature, "dtype", ""):
        return label
    if asked_for:
        raise UserError(
            f"hf:{name}: column {label!r} holds no whole numbers, which a stream needs for labels; leave out streaming=true"
        )
    return None


def _class_names(feature) -> list[str] | None:
    """The names of a ClassLabel, or of a list of them."""
    return getattr(getattr(feature, "feature", feature), "names", None)
