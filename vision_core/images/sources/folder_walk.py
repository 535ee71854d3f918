"""Walk through a folder: find its images, what is left out and why, and where its links lead."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from operator import itemgetter

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
        left_out: how many files were left out, by ending and reason ("" where none is known).
        links_out: files among `paths` that are links out of the folder, which will not be read.
        read_once: linked folders whose target is already read at another place.
    """

    paths: list[str] = field(default_factory=list)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    links_out: list[str] = field(default_factory=list)
    read_once: list[str] = field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """Phrases about what a user should know besides the number of images."""
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
        """Phrases such as `90 .heic (needs pillow-heif)`, the largest number first."""
        phrases = []
        by_name = sorted(self.left_out.items())
        for (ending, why), count in sorted(by_name, key=itemgetter(1), reverse=True):
            phrases.append(f"{count:,} {ending} ({why})" if why else f"{count:,} {ending}")
        return phrases


def list_images(root: str, endings: tuple[str, ...], follow_links: bool = False) -> Listing:
    """List the files below `root` whose names end in `endings`, or that have no ending and begin
    like an image.

    Hidden files and folders are passed over. A link to a folder inside `root` is not followed,
    because the folder is read where it really is. With `follow_links` linked folders elsewhere are
    read too, each once so that loops end: at its own place where that is below `root`, else at the
    first link to it.

    Raises:
        UserError: a folder that cannot be listed, or without `follow_links` a linked folder
            outside.
    """
    walk = _Walk(root, endings, follow_links)
    walk.go()
    walk.listing.paths.sort()
    return walk.listing


def labels_of_folders(paths: list[str]) -> tuple[list[int] | None, list[str] | None]:
    """Number the first folder of every path; returns the numbers and the folders' names, or None
    for both where a file lies outside of all folders."""
    if not all("/" in path for path in paths):
        return None, None
    folders = [path.partition("/")[0] for path in paths]
    names = sorted(set(folders))
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers[folder] for folder in folders], names


class _Walk:
    def __init__(self, root: str, endings: tuple[str, ...], follow_links: bool) -> None:
        self.root = root
        self.real_root = os.path.realpath(root)
        self.endings = endings
        self.follow_links = follow_links
        self.roots = data_roots(root, follow_links)
        self.listing = Listing()
        self._met: set[str] = set()
        self._linked_folders: list[str] = []

    def go(self) -> None:
        """Read the real folders first, so that each is read at its own place, then the linked ones
        by name."""
        self._read_below("")
        while self._linked_folders:
            waiting = sorted(self._linked_folders)
            self._linked_folders = []
            for relative in waiting:
                self._read_linked(relative)

    def _read_below(self, start: str) -> None:
        waiting = [start]
        while waiting:
            relative = waiting.pop()
            path = os.path.join(self.root, relative) if relative else self.root
            if self.follow_links and not self._is_new(path):
                continue
            waiting += self._read_folder(path, relative)

    def _is_new(self, path: str) -> bool:
        real = os.path.realpath(path)
        new = real not in self._met
        self._met.add(real)
        return new

    def _read_folder(self, path: str, relative: str) -> list[str]:
        """Take the files of one folder, and return its real sub-folders."""
        prefix = f"{relative}/" if relative else ""
        subfolders: list[str] = []
        for entry in _entries(path):
            name = entry.name
            if name[0] == ".":
                continue
            if name.lower().endswith(self.endings) and entry.is_file(follow_symlinks=False):
                self.listing.paths.append(prefix + name)
            else:
                self._take_entry(entry, prefix + name, subfolders)
        blobs = prefix + "blobs"
        if blobs in subfolders and is_repository(path):
            subfolders.remove(blobs)  # the hub's cache holds these files under their names in snapshots
        return subfolders

    def _take_entry(self, entry: os.DirEntry, relative: str, subfolders: list[str]) -> None:
        """Take an entry that is not plainly an image: a folder, a link, a file of another
        ending."""
        is_link = entry.is_symlink()
        if _is_folder(entry):
            folders = self._linked_folders if is_link else subfolders
            folders.append(relative)
        elif not relative.lower().endswith(self.endings):
            self._take_file_of_another_ending(relative)
        else:
            self.listing.paths.append(relative)
            if is_link:
                self._look_at_link(relative)

    def _read_linked(self, relative: str) -> None:
        path = os.path.join(self.root, relative)
        real = os.path.realpath(path)
        if self.follow_links:
            if real in self._met:
                self.listing.read_once.append(relative)
            else:
                self._read_below(relative)
        elif not is_inside(real, self.real_root) and real != self.real_root:
            raise UserError(
                f"{path} is a link out of {self.root}, to {real}, which is not followed; "
                f"name its target as the dataset, copy it, or add {FOLLOW}"
            )

    def _look_at_link(self, relative: str) -> None:
        real = os.path.realpath(os.path.join(self.root, relative))
        if not any(is_inside(real, root) for root in self.roots):
            self.listing.links_out.append(relative)

    def _take_file_of_another_ending(self, relative: str) -> None:
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
