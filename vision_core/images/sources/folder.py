"""Images as files: a folder at any depth, or a list of paths."""

import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

from vision_core.errors import UserError
from vision_core.files.regular_files import (
    data_roots,
    files_fingerprint,
    is_inside,
    read_regular_file,
    state_of_files,
)
from vision_core.files.text_files import read_bytes
from vision_core.images.annotations import make_annotations
from vision_core.images.formats.by_content import COMPRESSED_ENDINGS, ENDINGS, ENDINGS_OF_ONE, ending_of
from vision_core.images.formats.volumes import count_images, volume_bytes
from vision_core.images.source import EncodedImageSource, ImageSource
from vision_core.images.sources.folder_walk import Listing, labels_of_folders, list_images
from vision_core.images.sources.slides import open_slides

MAX_LIST_BYTES = 2 * 2**30
WITHOUT_PICTURES = "without a picture"


class FileSource(EncodedImageSource):
    """Files below `root`, named by their paths relative to it. A file outside of `roots`, links
    resolved, is unreadable.

    A file that holds several images is as many, in order: `scan.dcm#0`, `scan.dcm#1`, ..., all with
    the file's label.

    Args:
        labels: one for each of `paths`.
        roots: see `data_roots`.
        remarks: what a user should know besides the number of images.
    """

    def __init__(
        self,
        root: Path,
        paths: list[str],
        num_channels: int,
        labels: list[int] | None,
        class_names: list[str] | None,
        roots: Sequence[str] | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        self.root, self.num_channels, self.class_names = (os.path.realpath(root), num_channels, class_names)
        self.roots = tuple(roots) if roots is not None else data_roots(root)
        self.paths, self.parts, self.labels = paths, None, labels
        without_pictures = self._expand()
        if not self.paths:
            raise UserError(
                f"0 images under {root}: none of {len(paths)} files holds a picture; name other files"
            )
        images = f"{len(self.paths):,} images"
        files = f" in {len(paths) - without_pictures:,} files" if self.parts else ""
        classes = f", {len(set(self.labels))} classes" if self.labels else ""
        self.description = "; ".join([f"{images}{files} under {root}{classes}", *remarks])
        if without_pictures:
            self.description += f"; {without_pictures:,} files {WITHOUT_PICTURES}"

    def _expand(self) -> int:
        """Each image of a file by itself, where a file has several. Gives the number of files
        without any."""
        uncertain = [
            number for number, path in enumerate(self.paths) if not path.lower().endswith(ENDINGS_OF_ONE)
        ]
        if not uncertain:
            return 0
        full_paths = [os.path.join(self.root, self.paths[number]) for number in uncertain]
        counts = [1] * len(self.paths)
        for number, count in zip(
            uncertain, count_images(full_paths, self.num_channels, self.roots), strict=True
        ):
            counts[number] = 1 if count is None else count
        if any(count != 1 for count in counts):
            self._take_parts(counts)
        return counts.count(0)

    def _take_parts(self, counts: list[int]) -> None:
        paths, labels = self.paths, self.labels
        self.paths = [path for path, count in zip(paths, counts, strict=True) for _ in range(count)]
        if labels is not None:
            self.labels = [label for label, count in zip(labels, counts, strict=True) for _ in range(count)]
        if max(counts) > 1:
            self.parts = [number if count > 1 else None for count in counts for number in range(count)]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def content_fingerprint(self) -> str:
        files = (os.path.join(self.root, path) for path in dict.fromkeys(self.paths))
        return files_fingerprint(files, self.labels, *([self.parts] if self.parts else []))

    def state_of_files(self) -> tuple[str, str]:
        return state_of_files((path, os.path.join(self.root, path)) for path in dict.fromkeys(self.paths))

    def file_of(self, index: int) -> str:
        return self.paths[index]

    def id_of(self, index: int) -> str:
        part = self.part_of(index)
        return self.paths[index] if part is None else f"{self.paths[index]}#{part}"

    def part_of(self, index: int) -> int | None:
        return None if self.parts is None else self.parts[index]

    def read_bytes(self, index: int) -> bytes:
        path = self.paths[index]
        full_path = os.path.join(self.root, path)
        if self.part_of(index) is not None or ending_of(path) in COMPRESSED_ENDINGS:
            return volume_bytes(full_path, *self.roots)
        return read_regular_file(full_path, *self.roots)


class FolderSource(FileSource):
    """All images below a folder, sorted by path; see `folder_walk.list_images` for links and for
    what is left out.

    Where all images lie in sub-folders, the first folder's name is the class.
    """

    def __init__(self, root: Path, num_channels: int = 3, follow_links: bool = False) -> None:
        if not os.path.isdir(root):
            raise UserError(f"dataset folder {root} does not exist; give a folder with images")
        listing = list_images(str(root), ENDINGS, follow_links)
        _check_listing(root, listing, follow_links)
        labels, names = labels_of_folders(listing.paths)
        super().__init__(
            root, listing.paths, num_channels, labels, names, data_roots(root, follow_links), listing.remarks
        )


def _check_listing(root: Path, listing: Listing, follow_links: bool) -> None:
    if not listing.paths:
        remarks = "".join(f"; {remark}" for remark in listing.remarks)
        raise UserError(f"0 images under {root} (looked for {', '.join(ENDINGS)} at any depth){remarks}")
    if len(listing.links_out) == len(listing.paths) and not follow_links:
        raise UserError(
            f"all {len(listing.paths):,} images under {root} are links out of it, such as {listing.links_out[0]}; "
            "add ?follow_links=true to read what they point to"
        )


def open_folder(
    root: Path,
    num_channels: int = 3,
    mask: str | None = None,
    depth: str | None = None,
    follow_links: str = "false",
    tile: str | None = None,
    level: str | None = None,
    background: str | None = None,
    **options: str,
) -> ImageSource:
    """A folder, with masks and depths in parallel folders `mask` and `depth`: for `a/b.jpg` the
    file `a/b.png`; `options` as for `make_annotations`.

    With `tile`, the whole slides below the folder by tiles; see `slide_source.open_slides`.
    """
    follow = is_true("follow_links", follow_links)
    if tile is not None or level is not None or background is not None:
        beside = [name for name, value in (("mask", mask), ("depth", depth)) if value] + list(options)
        if beside:
            raise UserError(
                f"folder:{root}: {beside[0]} cannot stand beside tile=, because tiles have no files of their own; leave it out"
            )
        return open_slides(str(root), None, num_channels, tile, level, background, follow)
    source = FolderSource(root, num_channels, follow)
    beside = [_parallel(source, folder, kind, follow) for kind, folder in (("mask", mask), ("depth", depth))]
    source.annotations = make_annotations(source, options, *beside)
    return source


def is_true(option: str, value: str) -> bool:
    """An option's `true` or `false`. Raises UserError for anything else."""
    if value not in ("true", "false"):
        raise UserError(f"{option}={value} is not possible; use true or false")
    return value == "true"


def _parallel(images: FolderSource, folder: str | None, kind: str, follow_links: bool) -> FileSource | None:
    if folder is None:
        return None
    if images.parts is not None:
        several = next(compress(images.paths, [part is not None for part in images.parts]))
        raise UserError(
            f"{kind}={folder}: {several} holds several images, and a {kind} belongs to one; save every image as its own file, "
            f"or leave out {kind}="
        )
    paths = [os.path.splitext(path)[0] + ".png" for path in images.paths]
    missing = [path for path in paths if not os.path.isfile(os.path.join(folder, path))]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} images have no {kind}, such as {folder}/{missing[0]}; add them, or name another folder"
        )
    return FileSource(Path(folder), paths, 1, None, None, data_roots(folder, follow_links))


def open_list(
    path: Path,
    num_channels: int = 3,
    root: str | None = None,
    follow_links: str = "false",
    tile: str | None = None,
    level: str | None = None,
    background: str | None = None,
) -> ImageSource:
    """One path a line, relative to `root` (default: the list's folder) and inside it, with an
    optional tab and integer label.

    Raises:
        UserError: the list, or a line of it that leads outside, has a label that is no whole
            number, or lacks one that others have.
    """
    name, cure = f"list file {path}", "give a text file with one image path a line"
    if not os.path.lexists(path):
        raise UserError(f"{name} does not exist; {cure}")
    text = read_bytes(path, name, cure, most_bytes=MAX_LIST_BYTES).decode("utf-8-sig", "surrogateescape")
    folder = os.path.abspath(root if root is not None else path.parent)
    if not os.path.isdir(folder):
        raise UserError(f"list file {path}: the folder {folder} does not exist; name another by ?root=FOLDER")
    follow = is_true("follow_links", follow_links)
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            entries.append(_list_entry(line.rstrip("\r"), folder, f"{path}:{number}"))
    names, labels = _names_and_labels(path, entries)
    if tile is not None or level is not None or background is not None:
        return open_slides(folder, (names, labels), num_channels, tile, level, background, follow)
    return FileSource(Path(folder), names, num_channels, labels, None, data_roots(folder, follow))


def _names_and_labels(
    path: Path, entries: list[tuple[str, int | None]]
) -> tuple[list[str], list[int] | None]:
    if not entries:
        raise UserError(f"0 images in {path}; write one path a line")
    labels = [label for _, label in entries]
    if None in labels and any(label is not None for label in labels):
        raise UserError(
            f"{path}: {labels.count(None)} of {len(labels)} lines have no label; give all of them one, or none"
        )
    return [name for name, _ in entries], None if None in labels else labels


def _list_entry(line: str, folder: str, where: str) -> tuple[str, int | None]:
    """A line as (path relative to `folder`, label)."""
    name, tab, label = line.partition("\t")
    if tab and not (label.strip().isascii() and label.strip().isdigit()):
        raise UserError(f"{where}: the label {label!r} is no whole number; write path, tab, number")
    if "\0" in name:
        raise UserError(f"{where}: the path holds a NUL character; write one path a line, as text")
    path = os.path.normpath(os.path.join(folder, name))
    if not is_inside(path, folder):
        raise UserError(
            f"{where}: {name!r} leads out of {folder}; name a folder that holds all images by ?root=FOLDER"
        )
    return os.path.relpath(path, folder).replace(os.sep, "/"), int(label) if tab else None
