"""Webdataset shards: tar files of images and what stands beside them, read by offset, never
extracted."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from vision_core.errors import UserError
from vision_core.files.regular_files import files_fingerprint, short_names, state_of_files
from vision_core.files.text_files import parse_json
from vision_core.images.annotations import Read, make_annotations
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
MASK_NAMES, DEPTH_NAMES = ("seg", "mask"), ("depth",)
CAPTION_KEYS = ("captions", "caption", "text")
Fields = dict[str, Member]


class TarSource(EncodedImageSource):
    """The images of shards, in order of shard and place; an id is shard and key. `members` says
    where each lies.

    The headers are read once; images are read by their offset, so the order is exact and a member's
    name is never a path. Links, devices and members above 256 MiB are unreadable.
    """

    def __init__(self, shards: list[str], members: list[Member], num_channels: int) -> None:
        self.shards, self.members, self.num_channels = shards, members, num_channels
        self._names = short_names(shards)

    @property
    def content_fingerprint(self) -> str:
        fields = sorted({member.field for member in self.members})
        return files_fingerprint(self.shards, fields, self.labels, self.multi_labels)

    def state_of_files(self) -> tuple[str, str]:
        fields = sorted({member.field for member in self.members})
        return state_of_files(zip(self._names, self.shards, strict=True), fields)

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
    """The samples of the shards that `pattern` names (`tar_shards.py`), with what stands beside the
    image under the same key.

    image: the field that is the image, several joined by `;` where samples have one of them; by
    default the one that is an extension alone (`jpg`, `png`), or else the only field of pictures,
    masks and depths aside. label, captions: a field, or `json:KEY`; by default `cls`, and `txt` or
    a usual key of `json`. mask, depth: a field; by default `seg.png` or `mask.png`, and
    `depth.png`. `options` as for `make_annotations`.

    Raises UserError for shards without images, or a field that is named and not beside every image.
    """
    shards = shards_named(pattern)
    read = [read_shard(number, path) for number, path in enumerate(shards)]
    samples = Samples(pattern, shards, [member for shard in read for member in shard.members], ENDINGS, image)
    source = TarSource(shards, samples.images, num_channels)
    notes = (
        [f"samples without an image, left out: {samples.without_image:,}"] if samples.without_image else []
    )
    of_macos = sum(shard.of_macos for shard in read)
    notes += [f"files of macOS (._), passed over: {of_macos:,}"] if of_macos else []
    found = samples.labels(label)
    source.take_labels(found)
    pictures = [samples.pictures(named, usual) for named, usual in ((mask, MASK_NAMES), (depth, DEPTH_NAMES))]
    texts = samples.captions(captions)
    source.description = f"{len(source):,} images in {len(shards)} tar shards{found.described()}"
    source.description += "".join(f", {note}" for note in [*notes, *samples.notes])
    source.annotations = make_annotations(source, options, *pictures, texts)
    return source


class Samples:
    """The samples of all shards: which member is the image, and what stands beside it.

    notes: what was found beside some images only and is not used, in words.
    """

    def __init__(
        self,
        pattern: str,
        shards: list[str],
        members: list[Member],
        extensions: tuple[str, ...],
        image: str | None,
    ) -> None:
        self.pattern, self.shards, self.extensions = pattern, shards, extensions
        self.notes: list[str] = []
        self._fields = self._by_key(members)
        wanted = tuple(image.lower().split(";")) if image else self._image_fields(members)
        found = {
            key: self._image_of(fields, wanted, image is not None) for key, fields in self._fields.items()
        }
        with_image = {key: member for key, member in found.items() if member is not None}
        self.images = list(with_image.values())
        if not self.images:
            raise UserError(
                f"0 images in wds:{pattern} (looked for {', '.join(wanted or extensions)}){self._what_there_is()}"
            )
        pictured = {(shard, key_at_first_dot(key)) for shard, key in with_image}
        self.without_image = sum(key not in with_image and key not in pictured for key in self._fields)

    def labels(self, named: str | None) -> Labels:
        """Of the field `cls` or the named one: numbers, names, or lists in JSON."""
        found = self._beside(named or "cls", named is not None)
        if found is None:
            return Labels()
        column = named or ".cls"
        values = _values(self.shards, found, column)
        if column.startswith("json:"):
            return read_labels(values, column, asked_for=True, texts_are_classes=True)
        numbers = (
            [int(text) for text in values]
            if all(text.isascii() and text.isdigit() for text in values)
            else None
        )
        return read_labels(numbers or values, column, asked_for=True, texts_are_classes=True)

    def pictures(self, named: str | None, usual: tuple[str, ...]) -> TarSource | None:
        """Masks or depths beside every image, or None."""
        there = [name + extension for name in usual for extension in (".png", ".tif", ".tiff")]
        images = {member.field for member in self.images}
        fields = (
            [named.lower()]
            if named
            else [field for field in there if field in self._all_fields and field not in images]
        )
        found = self._beside(fields[0], named is not None) if fields else None
        return TarSource(self.shards, found, 1) if found else None

    def captions(self, named: str | None) -> Read | None:
        """What reads the texts beside the images, or None."""
        for choice in [named] if named else ["txt", *self._usual_keys()]:
            found = self._beside(choice, named is not None)
            if found:
                return partial(_values, self.shards, found, choice)
        return None

    def _by_key(self, members: list[Member]) -> dict[tuple[int, str], Fields]:
        samples: dict[tuple[int, str], Fields] = {}
        for member in members:
            fields = samples.setdefault((member.shard, member.key), {})
            if member.field in fields:
                raise UserError(
                    f"{self.shards[member.shard]}: two members have the name {member.key}.{member.field}; give each its own"
                )
            fields[member.field] = member
        self._all_fields = {member.field for member in members}
        return samples

    def _image_fields(self, members: list[Member]) -> tuple[str, ...]:
        """Extensions alone where there are any, or else the only field of pictures besides masks
        and depths."""
        fields = {member.field for member in members if f".{member.field}".endswith(self.extensions)}
        plain = {field for field in fields if "." not in field}
        beside = {field for field in fields if field.partition(".")[0] in (*MASK_NAMES, *DEPTH_NAMES)}
        chosen = sorted(plain or fields - beside or fields)
        if len(chosen) > 1 and not plain:
            raise UserError(
                f"wds:{self.pattern} has pictures {', '.join(chosen)} beside each other; choose one by ?image={chosen[0]}"
            )
        return tuple(chosen)

    def _image_of(self, fields: Fields, wanted: tuple[str, ...], asked_for: bool) -> Member | None:
        found = [fields[field] for field in wanted if field in fields]
        if len(found) > 1 and not asked_for:
            names = ", ".join(member.field for member in found)
            raise UserError(
                f"{self.shards[found[0].shard]}: two images have the key {found[0].key!r} ({names}); choose one by ?image={found[0].field}"
            )
        return found[0] if found else None

    def _beside(self, choice: str, asked_for: bool) -> list[Member] | None:
        """The member of a field beside each image, in their order, or None where not all have one;
        then it is noted, or refused.

        What has the key that webdataset reads at the first dot, `22` beside `22.05.png`, belongs to
        all images that begin with it.
        """
        field = choice.partition(":")[0].lower()
        found = [self._member(image, field) for image in self.images]
        missing = found.count(None)
        if not missing:
            return found
        if asked_for:
            raise UserError(
                f"wds:{self.pattern}: {missing:,} of {len(found):,} images have no {field!r} beside them{self._what_there_is()}"
            )
        if missing < len(found):
            self.notes.append(
                f"{field} beside {len(found) - missing:,} of {len(found):,} images only, not used"
            )
        return None

    def _member(self, image: Member, field: str) -> Member | None:
        own = self._fields[image.shard, image.key].get(field)
        return own or self._fields.get((image.shard, key_at_first_dot(image.key)), {}).get(field)

    def _usual_keys(self) -> list[str]:
        """Of the first sample's JSON, in which captions usually stand."""
        first = self._member(self.images[0], "json")
        content = _json(self.shards[first.shard], first) if first else {}
        return [f"json:{key}" for key in CAPTION_KEYS if key in content]

    def _what_there_is(self) -> str:
        fields = sorted(self._all_fields)
        return (
            f"; fields there are: {', '.join(fields[:8])}{', ...' if len(fields) > 8 else ''}"
            if fields
            else ""
        )


def _values(shards: list[str], members: Iterable[Member], choice: str) -> list[Any]:
    """What each member says: its text, or what its JSON has under the key of `json:KEY`."""
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
            f"{path}: {member.key}.{member.field} has {member.size:,} bytes, too many for a text; name another field"
        )
    try:
        return read_member(path, member).decode("utf-8-sig")
    except UnreadableImage as error:
        raise UserError(
            f"{path}: {member.key}.{member.field} cannot be read ({error.reason}); mend it, or name another field"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: {member.key}.{member.field} is no text in UTF-8; write it again") from None
