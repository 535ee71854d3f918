"""Images as files: a folder at any depth, or a list of paths."""

import os
import stat
from pathlib import Path

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage, decode_image
from vision_core.images.sources import ImageRecord, ImageSource

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy")
MAX_FILE_BYTES = 256 * 2**20


class FileSource(ImageSource):
    """Files below `root`, named by their paths relative to it."""

    def __init__(
        self, root: Path, paths: list[str], num_channels: int, labels: list[int] | None, class_names: list[str] | None
    ) -> None:
        self.root, self.paths, self.num_channels = root, paths, num_channels
        self.labels, self.class_names = labels, class_names
        classes = f", {len(class_names)} classes" if class_names else ""
        self.description = f"{len(paths):,} images under {root}{classes}"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageRecord:
        data = read_file(self.root, self.paths[index])
        label = None if self.labels is None else self.labels[index]
        return ImageRecord(self.paths[index], decode_image(data, self.num_channels), label)

    def id_of(self, index: int) -> str:
        return self.paths[index]


class FolderSource(FileSource):
    """All images below a folder, sorted by path. Where all lie in sub-folders, the first folder's name is the class."""

    def __init__(self, root: Path, num_channels: int = 3) -> None:
        if not root.is_dir():
            raise UserError(f"dataset folder {root} does not exist; give a folder with images")
        paths = sorted(
            os.path.relpath(os.path.join(folder, name), root)
            for folder, _, names in os.walk(root)
            for name in names
            if name.lower().endswith(EXTENSIONS)
        )
        if not paths:
            raise UserError(f"0 images under {root} (looked for {', '.join(EXTENSIONS)} at any depth)")
        folders = [Path(path).parts[0] if len(Path(path).parts) > 1 else None for path in paths]
        names = sorted(set(folders)) if None not in folders else None
        numbers = {name: number for number, name in enumerate(names or [])}
        super().__init__(root, paths, num_channels, [numbers[folder] for folder in folders] if names else None, names)


def open_list(path: Path, num_channels: int = 3, root: str | None = None) -> FileSource:
    """One path a line, relative to `root` (default: the list's folder), with an optional tab and integer label."""
    if not path.is_file():
        raise UserError(f"list file {path} does not exist")
    paths, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), start=1):
        name, tab, label = line.partition("\t")
        if not name.strip():
            continue
        if tab and not label.strip().isdigit():
            raise UserError(f"{path}:{number}: the label {label!r} is no whole number; write path, tab, number")
        paths.append(name.strip())
        labels.append(int(label) if tab else None)
    if not paths:
        raise UserError(f"0 images in {path}; write one path a line")
    if None in labels and any(label is not None for label in labels):
        raise UserError(f"{path}: {labels.count(None)} of {len(labels)} lines have no label; give all of them one, or none")
    return FileSource(Path(root) if root else path.parent, paths, num_channels, None if None in labels else labels, None)


def read_file(root: Path, relative: str) -> bytes:
    """The bytes of a regular file inside `root`; links out of it, pipes and devices are refused, and nothing blocks."""
    try:
        path = (root / relative).resolve(strict=True)
        if not path.is_relative_to(root.resolve()):
            raise UnreadableImage("outside_the_data_folder")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableImage("not_a_regular_file")
            if status.st_size > MAX_FILE_BYTES:
                raise UnreadableImage("file_too_large")
            return file.read()
    except (OSError, ValueError) as error:
        raise UnreadableImage("missing" if isinstance(error, FileNotFoundError) else "cannot_be_opened") from None
