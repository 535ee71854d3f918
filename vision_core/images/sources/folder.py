"""Sources of images that are files: a folder at any depth, or a list of paths."""

import os
from collections.abc import Sequence
from itertools import chain, compress, repeat
from pathlib import Path
from typing import Any

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
from vision_core.images.sources.slides import open_slides, tile_options

MAX_LIST_BYTES = 2 * 2**30
WITHOUT_PICTURES = "without a picture"


class FileSource(EncodedImageSource):
    """Files below `root`, named by their paths relative to it. A file that lies outside of `roots`
    after its links are resolved is unreadable.

    A file that holds several images counts as many, in order: `scan.dcm#0`, `scan.dcm#1`, ..., all
    with the file's label.

    Args:
        labels: one for each of `paths`, or None.
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
        self.root = os.path.realpath(root)
        self.num_channels = num_channels
        self.class_names = class_names
        self.roots = data_roots(root) if roots is None else tuple(roots)
        self.paths = paths
        self.parts: list[int | None] | None = None
        self.labels = labels
        without_pictures = self._separate_images()
        if not self.paths:
            raise UserError(
                f"0 images under {root}: none of {len(paths)} files holds a picture; name other files"
            )
        self.description = f"{len(self.paths):,} images"
        if self.parts:
            self.description += f" in {len(paths) - without_pictures:,} files"
        self.description += f" under {root}"
        if self.labels:
            self.description += f", {len(set(self.labels))} classes"
        remarks = list(remarks)
        if without_pictures:
            remarks.append(f"{without_pictures:,} files {WITHOUT_PICTURES}")
        self.description = "; ".join([self.description, *remarks])

    def _separate_images(self) -> int:
        """List each image of the files that hold several. Returns the number of files without
        any."""
        counts = [1] * len(self.paths)
        uncertain = []
        for number, path in enumerate(self.paths):
            if not path.lower().endswith(ENDINGS_OF_ONE):
                uncertain.append(number)
        if not uncertain:
            return 0
        full_paths = [os.path.join(self.root, self.paths[number]) for number in uncertain]
        counted = count_images(full_paths, self.num_channels, self.roots)
        for number, count in zip(uncertain, counted, strict=True):
            counts[number] = 1 if count is None else count
        if any(count != 1 for count in counts):
            self._take_parts(counts)
        return counts.count(0)

    def _take_parts(self, counts: list[int]) -> None:
        self.paths = repeat_each(self.paths, counts)
        if self.labels is not None:
            self.labels = repeat_each(self.labels, counts)
        if max(counts) > 1:
            self.parts = []
            for count in counts:
                self.parts += range(count) if count > 1 else [None] * count

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


def repeat_each(values: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    """Each value as many times as its count says."""
    return list(chain.from_iterable(map(repeat, values, counts)))


class FolderSource(FileSource):
    """All images below a folder, sorted by path; `folder_walk.list_images` documents links and what
    is left out.

    Where all images lie in sub-folders, the name of the first folder of a path is the class.
    """

    def __init__(self, root: Path, num_channels: int = 3, follow_links: bool = False) -> None:
        if not os.path.isdir(root):
            raise UserError(f"dataset folder {root} does not exist; give a folder with images")
        listing = list_images(str(root), ENDINGS, follow_links)
        _check_listing(root, listing, follow_links)
        labels, names = labels_of_folders(listing.paths)
        super().__init__(
            root,
            listing.paths,
            num_channels,
            labels=labels,
            class_names=names,
            roots=data_roots(root, follow_links),
            remarks=listing.remarks,
        )


def _check_listing(root: Path, listing: Listing, follow_links: bool) -> None:
    if not listing.paths:
        remarks = "".join(f"; {remark}" for remark in listing.remarks)
        raise UserError(f"0 images under {root} (looked for {', '.join(ENDINGS)} at any depth){remarks}")
    if len(listing.links_out) == len(listing.paths) and not follow_links:
        raise UserError(
            f"all {len(listing.paths):,} images under {root} are links out of it, "
            f"such as {listing.links_out[0]}; add ?follow_links=true to read what they point to"
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
    """Open a folder, with masks and depths in the parallel folders `mask` and `depth`, where
    `a/b.png` belongs to the image `a/b.jpg`. `options` as for `make_annotations`.

    With `tile`, open the whole slides below the folder as tiles; see `slides.open_slides`.
    """
    follow = is_true("follow_links", follow_links)
    if tile is not None or level is not None or background is not None:
        _refuse_beside_tiles(root, {"mask": mask, "depth": depth, **options})
        tiles = tile_options(tile, level, background)
        return open_slides(str(root), num_channels, tiles, follow)
    source = FolderSource(root, num_channels, follow)
    masks = _open_parallel_folder(source, mask, "mask", follow)
    depths = _open_parallel_folder(source, depth, "depth", follow)
    source.annotations = make_annotations(source, options, masks, depths)
    return source


def _refuse_beside_tiles(root: Path, options: dict[str, str | None]) -> None:
    for option, value in options.items():
        if value:
            raise UserError(
                f"folder:{root}: {option} cannot stand beside tile=, "
                "because tiles have no files of their own; leave it out"
            )


def is_true(option: str, value: str) -> bool:
    """Read an option that is `true` or `false`. Raises UserError for anything else."""
    if value not in ("true", "false"):
        raise UserError(f"{option}={value} is not possible; use true or false")
    return value == "true"


def _open_parallel_folder(
    images: FolderSource, folder: str | None, kind: str, follow_links: bool
) -> FileSource | None:
    """Open the masks or depths that lie under the images' own paths in another folder."""
    if folder is None:
        return None
    if images.parts is not None:
        several = next(compress(images.paths, [part is not None for part in images.parts]))
        raise UserError(
            f"{kind}={folder}: {several} holds several images, and a {kind} belongs to one; "
            f"save every image as its own file, or leave out {kind}="
        )
    paths = [os.path.splitext(path)[0] + ".png" for path in images.paths]
    missing = [path for path in paths if not os.path.isfile(os.path.join(folder, path))]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} images have no {kind}, such as {folder}/{missing[0]}; "
            "add them, or name another folder"
        )
    roots = data_roots(folder, follow_links)
    return FileSource(Path(folder), paths, num_channels=1, labels=None, class_names=None, roots=roots)


def open_list(
    path: Path,
    num_channels: int = 3,
    root: str | None = None,
    follow_links: str = "false",
    tile: str | None = None,
    level: str | None = None,
    background: str | None = None,
) -> ImageSource:
    """Open a list: one path a line, relative to `root` (default: the list's folder) and inside it,
    with an optional tab and integer label.

    Raises:
        UserError: the list is not there, or a line leads outside of `root`, has a label that is not
            a whole number, or lacks a label where others have one.
    """
    name = f"list file {path}"
    cure = "give a text file with one image path a line"
    if not os.path.lexists(path):
        raise UserError(f"{name} does not exist; {cure}")
    text = read_bytes(path, name, cure, most_bytes=MAX_LIST_BYTES).decode("utf-8-sig", "surrogateescape")
    folder = os.path.abspath(root if root is not None else path.parent)
    if not os.path.isdir(folder):
        raise UserError(f"list file {path}: the folder {folder} does not exist; name another by ?root=FOLDER")
    follow = is_true("follow_links", follow_links)
    paths, labels = _read_entries(text, folder, path)
    if tile is not None or level is not None or background is not None:
        tiles = tile_options(tile, level, background)
        return open_slides(folder, num_channels, tiles, follow, listed=(paths, labels))
    roots = data_roots(folder, follow)
    return FileSource(Path(folder), paths, num_channels, labels=labels, class_names=None, roots=roots)


def _read_entries(text: str, folder: str, list_file: Path) -> tuple[list[str], list[int] | None]:
    """The paths and labels of the lines; None where no line has a label."""
    paths = []
    labels = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            path, label = _list_entry(line.rstrip("\r"), folder, f"{list_file}:{number}")
            paths.append(path)
            labels.append(label)
    if not paths:
        raise UserError(f"0 images in {list_file}; write one path a line")
    missing = labels.count(None)
    if 0 < missing < len(labels):
        raise UserError(
            f"{list_file}: {missing} of {len(labels)} lines have no label; give all of them one, or none"
        )
    return paths, None if missing else labels


def _list_entry(line: str, folder: str, where: str) -> tuple[str, int | None]:
    """Read a line as (path relative to `folder`, label)."""
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
