"""What lies below a folder: its images, what was left out and why, and where its links lead."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from vision_core.errors import UserError
from vision_core.files.regular_files import data_roots, is_inside, is_repository, open_regular_file
from vision_core.images.formats.by_content import (
    BYTES_THAT_TELL,
    begins_like_an_image,
    ending_of,
    why_left_out,
)
from vision_core.unreadable import UnreadableImage

NO_EXTENSION = "without an extension"
FOLLOW = "?follow_links=true"


@dataclass
class Listing:
    """Files below a folder, as paths relative to it, with slashes.

    Attributes:
        paths: the images, sorted.
        left_out: how many files of every ending were left out, and the reason where there is one to
            tell.
        links_out: files among `paths` that are links out of the folder, which will not be read.
        read_once: linked folders whose target is read at another place already.
    """

    paths: list[str] = field(default_factory=list)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    links_out: list[str] = field(default_factory=list)
    read_once: list[str] = field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """What a user should know besides the number of images, a phrase for each kind."""
        remarks = []
        if self.left_out:
            remarks.append(f"left out: {', '.join(self.left_out_phrases())}")
        if self.links_out:
            remarks.append(
                f"{len(self.links_out):,} links out of the folder, which are not read without {FOLLOW}"
            )
        if self.read_once:
            remarks.append(
                f"{len(self.read_once):,} linked folders are read at their other place: {self.read_once[0]}"
            )
        return remarks

    def left_out_phrases(self) -> list[str]:
        """`90 .heic (needs pillow-heif)`, the largest number first."""
        most_first = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        return [f"{count:,} {ending}" + (f" ({why})" if why else "") for (ending, why), count in most_first]


def list_images(root: str, endings: tuple[str, ...], follow_links: bool = False) -> Listing:
    """The files below `root` whose names end in `endings`, or that have no ending and begin like an
    image.

    Hidden files and folders are passed over. A linked folder inside `root` is met where it really
    is. With `follow_links` every other folder is read too, each once, so that loops end: in its own
    place where that is below `root`, else at the first link to it.

    Raises:
        UserError: a folder that cannot be listed, or without `follow_links` a linked folder
            outside.
    """
    walk = _Walk(root, endings, follow_links)
    walk.go()
    walk.listing.paths.sort()
    return walk.listing


def labels_of_folders(paths: list[str]) -> tuple[list[int] | None, list[str] | None]:
    """The number of every path's first folder, and the folders' names; None where a file lies
    outside of all folders."""
    folders = [path.partition("/")[0] if "/" in path else None for path in paths]
    if None in folders:
        return None, None
    names = sorted(set(folders))
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers[folder] for folder in folders], names


class _Walk:
    def __init__(self, root: str, endings: tuple[str, ...], follow_links: bool) -> None:
        self.root, self.real_root = root, os.path.realpath(root)
        self.endings, self.follow_links = endings, follow_links
        self.roots = data_roots(root, follow_links)
        self.listing = Listing()
        self._met: set[str] = set()
        self._linked_folders: list[str] = []

    def go(self) -> None:
        """Real folders first, so that each is read in its own place; then linked ones, by name."""
        self._below("")
        while self._linked_folders:
            waiting, self._linked_folders = sorted(self._linked_folders), []
            for relative in waiting:
                self._linked(relative)

    def _below(self, start: str) -> None:
        waiting = [start]
        while waiting:
            relative = waiting.pop()
            path = os.path.join(self.root, relative) if relative else self.root
            if self.follow_links and not self._is_new(path):
                continue
            waiting += self._folder(path, relative)

    def _is_new(self, path: str) -> bool:
        real = os.path.realpath(path)
        new = real not in self._met
        self._met.add(real)
        return new

    def _folder(self, path: str, relative: str) -> list[str]:
        """Take the files of one folder, and give its real sub-folders."""
        prefix = f"{relative}/" if relative else ""
        subfolders, paths, endings = [], self.listing.paths, self.endings
        for entry in _entries(path):
            name = entry.name
            if name.lower().endswith(endings) and name[0] != "." and entry.is_file(follow_symlinks=False):
                paths.append(prefix + name)
            elif name[0] != ".":
                self._other_entry(entry, prefix + name, subfolders)
        if "blobs" in (sub.rpartition("/")[2] for sub in subfolders) and is_repository(path):
            subfolders.remove(
                prefix + "blobs"
            )  # of the hub's cache: the same files, under their names in snapshots
        return subfolders

    def _other_entry(self, entry: os.DirEntry, relative: str, subfolders: list[str]) -> None:
        """What is neither hidden nor plainly an image: a folder, a link, a file of another
        ending."""
        is_link = entry.is_symlink()
        if _is_folder(entry):
            (self._linked_folders if is_link else subfolders).append(relative)
        elif not relative.lower().endswith(self.endings):
            self._other_file(relative)
        else:
            self.listing.paths.append(relative)
            if is_link:
                self._look_at_link(relative)

    def _linked(self, relative: str) -> None:
        path = os.path.join(self.root, relative)
        real = os.path.realpath(path)
        if self.follow_links:
            if real in self._met:
                self.listing.read_once.append(relative)
            else:
                self._below(relative)
        elif not is_inside(real, self.real_root) and real != self.real_root:
            raise UserError(
                f"{path} is a link out of {self.root}, to {real}, which is not followed; name its target as the dataset, "
                f"copy it, or add {FOLLOW}"
            )

    def _look_at_link(self, relative: str) -> None:
        real = os.path.realpath(os.path.join(self.root, relative))
        if not any(is_inside(real, root) for root in self.roots):
            self.listing.links_out.append(relative)

    def _other_file(self, relative: str) -> None:
        ending = ending_of(relative.rpartition("/")[2])
        if ending:
            self.listing.left_out[ending, why_left_out(ending)] += 1
        elif self._begins_like_an_image(relative):
            self.listing.paths.append(relative)
        else:
            self.listing.left_out[NO_EXTENSION, ""] += 1

    def _begins_like_an_image(self, relative: str) -> bool:
        try:
            with open_regular_file(os.path.join(self.root, relative), *self.roots) as file:
                return begins_like_an_image(file.read(BYTES_THAT_TELL))
        except UnreadableImage as error:
            if error.reason == "outside_the_data_folder":
                self.listing.links_out.append(relative)
            return False
        except OSError:
            return False


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be listed: {error.strerror}; change its permissions or move it away"
        ) from None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
