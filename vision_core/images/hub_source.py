"""Data sets of the Hugging Face hub (or a local dataset folder) through `datasets`, indexed or streamed."""

from collections.abc import Iterator

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage, decode_image
from vision_core.images.sources import ImageRecord, ImageSource, ImageStream, UnreadableSample


def open_hub(
    name: str,
    num_channels: int = 3,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    revision: str | None = None,
    streaming: str = "false",
    shuffle_buffer: str = "1000",
) -> ImageSource | ImageStream:
    """`NAME[:CONFIG]` as `datasets.load_dataset` takes them; images stay encoded until our own decoder reads them."""
    try:
        import datasets
    except ImportError:
        raise UserError("hf: needs the package datasets; pip install 'vision-encoder-fusion[pretrain]'") from None
    path, _, config = name.partition(":")
    if streaming not in ("true", "false"):
        raise UserError(f"hf:{name}: streaming={streaming!r} must be true or false")
    try:
        dataset = datasets.load_dataset(path, config or None, split=split, revision=revision, streaming=streaming == "true")
    except Exception as error:  # offline, a wrong name, a wrong split: `datasets` has a type for each
        raise UserError(f"hf:{name}?split={split} cannot be loaded: {str(error).splitlines()[0]}") from None
    features = dataset.features or {}
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    image = image or (images[0] if len(images) == 1 else None)
    if image not in features:
        raise UserError(f"hf:{name}: image column {image or 'not found'}; name one of {', '.join(features)} by ?image=COLUMN")
    dataset = dataset.cast_column(image, datasets.Image(decode=False))
    if streaming == "true":
        return HubStream(dataset, name, image, num_channels, int(shuffle_buffer))
    return HubSource(dataset, name, image, label or ("label" if "label" in features else None), num_channels)


class HubSource(ImageSource):
    """A `datasets.Dataset` with an image column."""

    def __init__(self, dataset, name: str, image: str, label: str | None, num_channels: int) -> None:
        self.dataset, self.name, self.image, self.num_channels = dataset.select_columns([image]), name, image, num_channels
        self.labels = None if label is None else list(dataset[label])
        self.class_names = None if label is None else getattr(dataset.features[label], "names", None)
        self.description = f"{len(dataset):,} images of hf:{name}"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> ImageRecord:
        image = decode_bytes(self.dataset[int(index)][self.image], self.num_channels)
        return ImageRecord(self.id_of(index), image, None if self.labels is None else self.labels[index])

    def id_of(self, index: int) -> str:
        return f"{self.name}:{index}"


class HubStream(ImageStream):
    """A streamed data set. Shards go to processes and data workers; each shuffles in a buffer. A resumed run starts a new pass."""

    def __init__(self, dataset, name: str, image: str, num_channels: int, shuffle_buffer: int) -> None:
        self.dataset = dataset.select_columns([image])
        self.name, self.image, self.num_channels, self.shuffle_buffer = name, image, num_channels, shuffle_buffer
        self.description = f"stream of hf:{name}"

    def records(self, rank: int, world_size: int, epoch: int) -> Iterator[ImageRecord | UnreadableSample]:
        from datasets.distributed import split_dataset_by_node

        share = self.dataset.shuffle(seed=0, buffer_size=self.shuffle_buffer) if self.shuffle_buffer > 1 else self.dataset
        share = split_dataset_by_node(share, rank=rank, world_size=world_size)
        share.set_epoch(epoch)
        for number, row in enumerate(share):
            name = f"{self.name}:{rank}:{epoch}:{number}"
            try:
                yield ImageRecord(name, decode_bytes(row[self.image], self.num_channels))
            except UnreadableImage as error:
                yield UnreadableSample(name, error.reason)


def decode_bytes(value: dict, num_channels: int):
    """The bytes of an undecoded `datasets.Image`; a path without bytes is a file that `datasets` itself found."""
    data = value.get("bytes")
    if data is None and value.get("path"):
        try:
            with open(value["path"], "rb") as file:
                data = file.read()
        except OSError:
            raise UnreadableImage("missing") from None
    if data is None:
        raise UnreadableImage("no_bytes")
    return decode_image(data, num_channels)
