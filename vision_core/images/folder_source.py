"""Images as files: a folder at any depth, or a list of paths."""

import os
from pathlib import Path

from vision_core.errors import UserError
from vision_core.images.annotations import make_annotations
from vision_core.images.formats import ENDINGS
from vision_core.images.regular_files import files_fingerprint, is_inside, read_regular_file
from vision_core.images.sources import EncodedImageSource


class FileSource(EncodedImageSource):
    """Files below `root`, named by their paths relative to it. A link that leads out of `root` is unreadable."""

    def __init__(self, root: Path, paths: list[str], num_channels: int, labels: list[int] | None, class_names: list[str] | None) -> None:
        self.root, self.paths, self.num_channels = os.path.realpath(root), paths, num_channels
        self.labels, self.class_names = labels, class_names
        classes = f", {len(set(labels))} classes" if labels else ""
        self.description = f"{len(paths):,} images under {root}{classes}"

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def content_fingerprint(self) -> str:
        return files_fingerprint((os.path.join(self.root, path) for path in self.paths), self.labels)

    def id_of(self, index: int) -> str:
        return self.paths[index]

    def read_bytes(self, index: int) -> bytes:
        return read_regular_file(os.path.join(self.root, self.paths[index]), self.root)


class FolderSource(FileSource):
    """All images below a folder, sorted by path; hidden files and folders are left out.

    Where all images lie in sub-folders, the first folder's name is the class.
    """

    def __init__(self, root: Path, num_channels: int = 3) -> None:
        if not root.is_dir():
            raise UserError(f"dataset folder {root} does not exist; give a folder with images")
        extensions = ENDINGS
        paths = sorted(_image_paths(str(root), extensions))
        if not paths:
            raise UserError(f"0 images under {root} (looked for {', '.join(extensions)} at any depth)")
        folders = [path.partition("/")[0] if "/" in path else None for path in paths]
        names = sorted(set(folders)) if None not in folders else None
        numbers = {name: number for number, name in enumerate(names or [])}
        super().__init__(root, paths, num_channels, [numbers[folder] for folder in folders] if names else None, names)


def open_folder(root: Path, num_channels: int = 3, mask: str | None = None, depth: str | None = None, **options: str) -> FolderSource:
    """A folder, with masks and depths in parallel folders `mask` and `depth`: for `a/b.jpg` the file `a/b.png`; `options` as for `make_annotations`."""
    source = FolderSource(root, num_channels)
    beside = [_parallel(source, folder, kind) for kind, folder in (("mask", mask), ("depth", depth))]
    source.annotations = make_annotations(source, options, *beside)
    return source


def _parallel(images: FolderSource, folder: str | None, kind: str) -> FileSource | None:
    if folder is None:
        return None
    paths = [os.path.splitext(path)[0] + ".png" for path in images.paths]
    missing = [path for path in paths if not os.path.isfile(os.path.join(folder, path))]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} images have no {kind}, such as {folder}/{missing[0]}; add them, or name another folder"
        )
    return FileSource(Path(folder), paths, 1, None, None)


def _image_paths(root: str, extensions: tuple[str, ...]) -> list[str]:
    """Paths relative to `root`, with slashes."""
    paths = []
    for folder, subfolders, names in os.walk(root, onerror=_cannot_list):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in subfolders:
            _check_link(os.path.join(folder, name), root)
        relative = "" if folder == root else os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        paths += [relative + name for name in names if name.lower().endswith(extensions) and not name.startswith(".")]
    return paths


def _cannot_list(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}; change its permissions or move it away")


def _check_link(path: str, root: str) -> None:
    """A linked folder inside `root` is met where it really is; one outside would be left out silently."""
    if os.path.islink(path) and not is_inside(os.path.realpath(path), os.path.realpath(root)):
        raise UserError(f"{path} is a link out of {root}, which is not followed; name its target as the dataset, or copy it")


def open_list(path: Path, num_channels: int = 3, root: str | None = None) -> FileSource:
    """One path a line, relative to `root` (default: the list's folder) and inside it, with an optional tab and integer label.

    Raises:
        UserError: the list, or a line of it that leads outside, has a label that is no whole number, or lacks one that others have.
    """
    if not path.is_file():
        raise UserError(f"list file {path} does not exist; give a text file with one image path a line")
    folder = os.path.abspath(root if root is not None else path.parent)
    if not os.path.isdir(folder):
        raise UserError(f"list file {path}: the folder {folder} does not exist; name another by ?root=FOLDER")
    entries = []
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n"), start=1):
        if line.strip():
            entries.append(_list_entry(line.rstrip("\r"), folder, f"{path}:{number}"))
    if not entries:
        raise UserError(f"0 images in {path}; write one path a line")
    labels = [label for _, label in entries]
    if None in labels and any(label is not None for label in labels):
        raise UserError(f"{path}: {labels.count(None)} of {len(labels)} lines have no label; give all of them one, or none")
    return FileSource(Path(folder), [name for name, _ in entries], num_channels, None if None in labels else labels, None)


def _list_entry(line: str, folder: str, where: str) -> tuple[str, int | None]:
    """A line as (path relative to `folder`, label)."""
    name, tab, label = line.partition("\t")
    if tab and not (label.strip().isascii() and label.strip().isdigit()):
        raise UserError(f"{where}: the label {label!r} is no whole number; write path, tab, number")
    if "\0" in name:
        raise UserError(f"{where}: the path holds a NUL character; write one path a line, as text")
    path = os.path.normpath(os.path.join(folder, name))
    if not is_inside(path, folder):
        raise UserError(f"{where}: {name!r} leads out of {folder}; name a folder that holds all images by ?root=FOLDER")
    return os.path.relpath(path, folder).replace(os.sep, "/"), int(label) if tab else None
