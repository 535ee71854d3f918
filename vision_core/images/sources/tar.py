"""Webdataset shards as a source: tar files of images and what lies beside them, read by offset and
never extracted."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import chain, product, starmap
from operator import add
from typing import Any

from vision_core.errors import UserError
from vision_core.files.regular_files import files_fingerprint, short_names, state_of_files
from vision_core.files.text_files import parse_json
from vision_core.images.annotations import ColumnReader, make_annotations
from vision_core.images.formats.by_content import ENDINGS
from vision_core.images.label_values import Labels, read_labels
from vision_core.images.source import EncodedImageSource
from vision_core.images.sources.tar_shards import (
    Member,
    key_at_first_dot,
    read_member,
    read_shard,
    shards_named,
)
from vision_core.unreadable import UnreadableImage

MAX_TEXT_BYTES = 2**20
MASK_NAMES = ("seg", "mask")
DEPTH_NAMES = ("depth",)
NUMBER_EXTENSIONS = (".png", ".tif", ".tiff")
SHOWN_FIELDS = 8
CAPTION_KEYS = ("captions", "caption", "text")
Fields = dict[str, Member]


class TarSource(EncodedImageSource):
    """The images of shards, in order of shard and place. An id is shard and key; `members` says
    where each image lies.

    The headers are read once. Images are read by their offset, so the order is exact and a member's
    name is never used as a path. Links, devices and members above 256 MiB are unreadable.
    """

    def __init__(self, shards: list[str], members: list[Member], num_channels: int) -> None:
        self.shards = shards
        self.members = members
        self.num_channels = num_channels
        self._names = short_names(shards)

    @property
    def content_fingerprint(self) -> str:
        return files_fingerprint(self.shards, self._fields(), self.labels, self.multi_labels)

    def state_of_files(self) -> tuple[str, str]:
        return state_of_files(zip(self._names, self.shards, strict=True), self._fields())

    def _fields(self) -> list[str]:
        return sorted(_fields_of(self.members))

    def __len__(self) -> int:
        return len(self.members)

    def id_of(self, index: int) -> str:
        member = self.members[index]
        return f"{self._names[member.shard]}:{member.key}"

    def read_bytes(self, index: int) -> bytes:
        member = self.members[index]
        return read_member(self.shards[member.shard], member)


def open_shards(
    pattern: str,
    num_channels: int = 3,
    image: str | None = None,
    label: str | None = None,
    mask: str | None = None,
    depth: str | None = None,
    captions: str | None = None,
    **options: str,
) -> TarSource:
    """Open the samples of the shards that `pattern` names (see `tar_shards.py`), with what lies
    beside the image under the same key.

    Args:
        image: the field that is the image, or several joined by `;` where samples have one of them;
            by default the one that is an extension alone (`jpg`, `png`), or else the only field of
            pictures apart from masks and depths.
        label: a field, or `json:KEY`; by default `cls`.
        captions: a field, or `json:KEY`; by default `txt`, or a usual key of `json`.
        mask: a field; by default `seg.png` or `mask.png`.
        depth: a field; by default `depth.png`.
        options: see `make_annotations`.

    Raises UserError for shards without images, or for a named field that is not beside every image.
    """
    shards = shards_named(pattern)
    contents = [read_shard(number, path) for number, path in enumerate(shards)]
    members = list(chain.from_iterable(shard.members for shard in contents))
    samples = Samples(pattern, shards, members, ENDINGS, image)
    source = TarSource(shards, samples.images, num_channels)
    notes = []
    if samples.without_image:
        notes.append(f"samples without an image, left out: {samples.without_image:,}")
    of_macos = sum(shard.of_macos for shard in contents)
    if of_macos:
        notes.append(f"files of macOS (._), passed over: {of_macos:,}")
    found = samples.labels(label)
    source.take_labels(found)
    masks = samples.pictures(mask, MASK_NAMES)
    depths = samples.pictures(depth, DEPTH_NAMES)
    texts = samples.captions(captions)
    count = f"{len(source):,} images in {len(shards)} tar shards{found.described()}"
    source.description = ", ".join([count, *notes, *samples.notes])
    source.annotations = make_annotations(source, options, masks, depths, texts)
    return source


class Samples:
    """The samples of all shards: which member is the image, and what lies beside it.

    notes: phrases about what was found beside some images only and is not used.
    """

    def __init__(
        self,
        pattern: str,
        shards: list[str],
        members: list[Member],
        extensions: tuple[str, ...],
        image: str | None,
    ) -> None:
        self.pattern = pattern
        self.shards = shards
        self.extensions = extensions
        self.notes: list[str] = []
        self._all_fields = _fields_of(members)
        self._fields_of_key = self._group_by_key(members)
        wanted = image.lower().split(";") if image else self._choose_image_fields()
        with_image: dict[tuple[int, str], Member] = {}
        for key, fields in self._fields_of_key.items():
            member = self._image_of(fields, wanted, asked_for=image is not None)
            if member is not None:
                with_image[key] = member
        self.images = list(with_image.values())
        if not self.images:
            raise UserError(
                f"0 images in wds:{pattern} (looked for {', '.join(wanted or extensions)})"
                f"{self._what_there_is()}"
            )
        pictured = {(shard, key_at_first_dot(key)) for shard, key in with_image}
        self.without_image = len(self._fields_of_key.keys() - with_image.keys() - pictured)

    def labels(self, named: str | None) -> Labels:
        """Read the labels of the field `cls` or the named one: numbers, names, or lists in JSON."""
        found = self._beside(named or "cls", named is not None)
        if found is None:
            return Labels()
        column = named or ".cls"
        values = _values(self.shards, found, column)
        if column.startswith("json:"):
            return read_labels(values, column, asked_for=True, texts_are_classes=True)
        if all(text.isascii() and text.isdigit() for text in values):
            values = list(map(int, values))
        return read_labels(values, column, asked_for=True, texts_are_classes=True)

    def pictures(self, named: str | None, usual: tuple[str, ...]) -> TarSource | None:
        """Masks or depths beside every image, or None."""
        field = named.lower() if named else self._usual_field(usual)
        found = self._beside(field, named is not None) if field else None
        return TarSource(self.shards, found, num_channels=1) if found else None

    def captions(self, named: str | None) -> ColumnReader | None:
        """A function that reads the texts beside the images, or None where there are none."""
        choices = [named] if named else ["txt", *self._usual_keys()]
        for choice in choices:
            found = self._beside(choice, named is not None)
            if found:
                return partial(_values, self.shards, found, choice)
        return None

    def _usual_field(self, names: tuple[str, ...]) -> str | None:
        """The first field of one of these names that holds pictures and is not an image itself."""
        possible = self._all_fields - _fields_of(self.images)
        usual = starmap(add, product(names, NUMBER_EXTENSIONS))
        return next((field for field in usual if field in possible), None)

    def _group_by_key(self, members: list[Member]) -> dict[tuple[int, str], Fields]:
        samples: dict[tuple[int, str], Fields] = {}
        for member in members:
            fields = samples.setdefault((member.shard, member.key), {})
            if member.field in fields:
                raise UserError(
                    f"{self.shards[member.shard]}: two members have the name {member.key}.{member.field}; "
                    "give each its own"
                )
            fields[member.field] = member
        return samples

    def _choose_image_fields(self) -> list[str]:
        """Choose extensions alone where there are any, or else the only field of pictures apart
        from masks and depths."""
        fields = {field for field in self._all_fields if f".{field}".endswith(self.extensions)}
        plain = {field for field in fields if "." not in field}
        beside = {field for field in fields if field.partition(".")[0] in (*MASK_NAMES, *DEPTH_NAMES)}
        chosen = sorted(plain or fields - beside or fields)
        if len(chosen) > 1 and not plain:
            raise UserError(
                f"wds:{self.pattern} has pictures {', '.join(chosen)} beside each other; "
                f"choose one by ?image={chosen[0]}"
            )
        return chosen

    def _image_of(self, fields: Fields, wanted: list[str], asked_for: bool) -> Member | None:
        found = [fields[field] for field in wanted if field in fields]
        if len(found) > 1 and not asked_for:
            names = ", ".join(member.field for member in found)
            raise UserError(
                f"{self.shards[found[0].shard]}: two images have the key {found[0].key!r} ({names}); "
                f"choose one by ?image={found[0].field}"
            )
        return found[0] if found else None

    def _beside(self, choice: str, asked_for: bool) -> list[Member] | None:
        """Find the member of a field beside each image, in the order of the images. Where not all
        have one, this is noted and None returned, or refused where the field was asked for.

        A member whose key ends at the first dot, as webdataset reads keys, belongs to all images
        that begin with it: `22` lies beside `22.05.png`.
        """
        field = choice.partition(":")[0].lower()
        found = [self._member(image, field) for image in self.images]
        missing = found.count(None)
        if not missing:
            return found
        if asked_for:
            raise UserError(
                f"wds:{self.pattern}: {missing:,} of {len(found):,} images have no {field!r} beside them"
                f"{self._what_there_is()}"
            )
        if missing < len(found):
            self.notes.append(
                f"{field} beside {len(found) - missing:,} of {len(found):,} images only, not used"
            )
        return None

    def _member(self, image: Member, field: str) -> Member | None:
        own = self._fields_of_key[image.shard, image.key].get(field)
        shared = self._fields_of_key.get((image.shard, key_at_first_dot(image.key)), {})
        return own or shared.get(field)

    def _usual_keys(self) -> list[str]:
        """The keys in the JSON of the first sample that usually hold captions."""
        first = self._member(self.images[0], "json")
        content = _json(self.shards[first.shard], first) if first else {}
        return [f"json:{key}" for key in CAPTION_KEYS if key in content]

    def _what_there_is(self) -> str:
        fields = sorted(self._all_fields)
        if not fields:
            return ""
        shown = fields[:SHOWN_FIELDS]
        if len(fields) > SHOWN_FIELDS:
            shown.append("...")
        return f"; fields there are: {', '.join(shown)}"


def _fields_of(members: list[Member]) -> set[str]:
    return {member.field for member in members}


def _values(shards: list[str], members: Iterable[Member], choice: str) -> list[Any]:
    """The text of each member, or the value that its JSON has under the key of `json:KEY`."""
    field, _, key = choice.partition(":")
    if key:
        return [_json(shards[member.shard], member).get(key) for member in members]
    return [_text(shards[member.shard], member).strip() for member in members]


def _json(path: str, member: Member) -> dict[str, Any]:
    name = f"{path}: {member.key}.{member.field}"
    content = parse_json(_text(path, member), name, "write it again")
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: {member.key}.{member.field} holds no object with keys; write one, or name another field"
        )
    return content


def _text(path: str, member: Member) -> str:
    if member.size > MAX_TEXT_BYTES:
        raise UserError(
            f"{path}: {member.key}.{member.field} has {member.size:,} bytes, too many for a text; "
            "name another field"
        )
    try:
        return read_member(path, member).decode("utf-8-sig")
    except UnreadableImage as error:
        raise UserError(
            f"{path}: {member.key}.{member.field} cannot be read ({error.reason}); "
            "mend it, or name another field"
        ) from None
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: {member.key}.{member.field} is not a text in UTF-8; write it again"
        ) from None
