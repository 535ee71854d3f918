"""Checkpoint folders that are whole or invisible: written aside, fsynced, hashed into a manifest, shown by one rename.

Whatever kills the process or cuts the power, the newest `checkpoint-<step>` whose manifest verifies can be resumed.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vision_core.errors import UserError

MANIFEST = "MANIFEST.json"
MAX_MANIFEST_BYTES = 64 * 2**20
# A full disk is an OSError in Python's own writes, a SafetensorError in safetensors, a RuntimeError in torch.save.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)


class CheckpointNotWritten(UserError):
    """A save failed, usually on a full disk. Nothing partial is left, earlier checkpoints are whole: try it again."""


def write_checkpoint(root: Path, step: int, write: Callable[[Path], None], keep: int | None) -> Path:
    """Let `write(folder)` fill a folder and show it as `root/checkpoint-<step>`, whole, by one rename.

    Then the checkpoints of earlier steps go, except the newest `keep` with this one counted (None keeps all). A
    checkpoint of the same step, from before a fall-back, is replaced. Raises CheckpointNotWritten when the disk is full
    or `write` fails with an OSError, a SafetensorError or a RuntimeError. Call it from one process.
    """
    assert keep is None or keep >= 1, f"keep={keep} would leave no checkpoint"
    aside, target = folder_aside(root, step, os.getpid()), root / f"checkpoint-{step}"
    try:
        begin_aside(aside)
        write(aside)
        seal_folder(aside, step)
        show(aside, target)
    except WRITE_ERRORS as error:
        raise not_written(aside, target, reason_of(error)) from error
    except BaseException:
        remove(aside)
        raise
    remove_old_checkpoints(root, step, keep)
    return target


def folder_aside(root: Path, name: int | str, process: int) -> Path:
    """Where `process` writes what is to stand in `root`. The name says whose it is, and the next start removes it after a kill."""
    return root / f".tmp-{name}-{process}"


def begin_aside(aside: Path, needed: int = 0) -> None:
    """An empty folder on a disk with room for `needed` bytes. Raises OSError, also where there is no room."""
    remove(aside)
    aside.mkdir(parents=True)
    if shutil.disk_usage(aside).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def not_written(aside: Path, target: Path, reason: str, needed: int = 0) -> CheckpointNotWritten:
    """Remove what was written aside, and return the error that says why `target` is not there, and how many bytes it needs at least."""
    needed = max(folder_size(aside), needed)
    remove(aside)
    return CheckpointNotWritten(_failure_text(target.parent, target, reason, needed))


def is_write_error(error: Exception, kinds: tuple[type[Exception], ...] = WRITE_ERRORS) -> bool:
    """Whether it is one of `kinds`, or what tokenizers (0.23.3) raises where a file cannot be written: an `Exception` of no kind at all."""
    return isinstance(error, kinds) or type(error) is Exception


def reason_of(error: Exception) -> str:
    """Why a write failed, in one line: the system's words where it has some."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Inside, what keeps a small file from being written, as a full disk does, becomes CheckpointNotWritten: one line with path and bytes."""
    try:
        yield
    except OSError as error:
        raise CheckpointNotWritten(_failure_text(target.parent, target, reason_of(error), 0)) from error


def verify_checkpoint(folder: Path) -> str | None:
    """None if every file is as its manifest says (size and sha256); otherwise the reason, which names the file."""
    manifest = _read_manifest(folder)
    if isinstance(manifest, str):
        return manifest
    for name, expected in manifest["files"].items():
        try:
            status = (folder / name).stat()
            size = status.st_size
            if not stat.S_ISREG(status.st_mode) or ".." in Path(name).parts or Path(name).is_absolute():
                return f"{name} is no file of the folder"
            if size != expected["size"]:
                return f"{name} has {size} bytes instead of {expected['size']}"
            if _sha256(folder / name) != expected["sha256"]:
                return f"{name} has other content than was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        except ValueError:
            return f"{name} is no name of a file"
    return None


def checkpoint_step(folder: Path) -> int:
    """The training step of a verified checkpoint folder, whatever the folder is called."""
    manifest = _read_manifest(folder)
    assert not isinstance(manifest, str), manifest
    return manifest["step"]


def list_checkpoints(root: Path) -> list[Path]:
    """Every `checkpoint-<step>` folder in `root`, whole or not, by rising step."""
    return sorted((path for path in root.glob("checkpoint-*") if _step_in_name(path) is not None), key=_step_in_name)


def newest_checkpoint(root: Path, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint with the highest step that verifies, or None. `warn` hears of each one skipped, and why."""
    for folder in reversed(list_checkpoints(root)):
        reason = verify_checkpoint(folder)
        if reason is None:
            return folder
        warn(f"{folder} is damaged and skipped: {reason}")
    return None


def finish_saves(root: Path) -> list[tuple[Path, Path]]:
    """After a kill between a save's last write and its rename: show the checkpoint. Call it only while no other process
    writes to `root`.

    The renames, (from, to), for `hide_again`.
    """
    shown = []
    for aside in root.glob(".tmp-*"):
        if aside.is_dir() and verify_checkpoint(aside) is None:
            target = root / f"checkpoint-{checkpoint_step(aside)}"
            if not target.exists():
                os.rename(aside, target)
                sync(root)
                shown.append((aside, target))
    return shown


def hide_again(shown: list[tuple[Path, Path]]) -> None:
    """Take back what `finish_saves` did: a run that is refused leaves its folder as it was. What cannot be renamed
    stays, and is whole.
    """
    for aside, target in shown:
        with contextlib.suppress(OSError):
            os.rename(target, aside)


def clean_leftovers(root: Path) -> None:
    """Remove what killed saves have left, `.tmp-*` and `.del-*`. Call it after `finish_saves`, while no other process writes to `root`."""
    for path in [*root.glob(".tmp-*"), *root.glob(".del-*")]:
        remove(path)


def replace_files(source: Path, root: Path, names: list[str]) -> None:
    """Copy files from `source` to `root` in the order given, each one fsynced and put in place by an atomic replace.

    A reader finds the old or the new content of a file, never a part of it. Name the weights last. Raises
    CheckpointNotWritten.
    """
    for name in names:
        target = root / name
        aside = target.parent / f".tmp-{target.name}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, aside)
            _replace(aside, target)
        except OSError as error:
            remove(aside)
            raise CheckpointNotWritten(_failure_text(root, target, reason_of(error), folder_size(source / name))) from error


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader, or a crash, finds the old or the new one. Raises OSError."""
    aside = path.parent / f".tmp-{path.name}"
    try:
        aside.write_text(text, encoding="utf-8")
        _replace(aside, path)
    except OSError:
        remove(aside)
        raise


def seal_folder(folder: Path, step: int = 0) -> None:
    """Bring every file to the disk, then the manifest by which `verify_checkpoint` knows them, then the folders."""
    make_readable(folder)
    paths = sorted(folder.rglob("*"))
    files = {}
    for path in paths:
        if path.is_file():
            sync(path)
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    (folder / MANIFEST).write_text(_manifest_text(step, files), encoding="utf-8")
    for path in [folder / MANIFEST, *(path for path in paths if path.is_dir()), folder]:
        sync(path)


def make_readable(place: Path) -> None:
    """Give a file, or a folder with all in it, the permissions that the process's umask grants to what it makes: 0644 and 0755 as a rule.

    safetensors (0.8) writes through temporary files that their owner alone may read, and leaves them so. Nothing is taken away, and where a file system
    has no permissions, or the file is somebody else's, all stays as it is.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for path in [place, *place.rglob("*")] if place.is_dir() else [place]:
        if path.is_symlink():
            continue
        mode = path.stat().st_mode & 0o7777
        wanted = mode | ((0o777 if path.is_dir() else 0o666) & ~umask)
        if wanted != mode:
            with contextlib.suppress(OSError):
                path.chmod(wanted)


def show(aside: Path, target: Path) -> None:
    """Rename a sealed folder to the name under which it counts, and bring the name to the disk. Raises OSError.

    After a kill between a replacement's renames, `finish_saves` does the second.
    """
    replaced = _doomed(target) if target.exists() else None
    if replaced:
        os.rename(target, replaced)
    try:
        os.rename(aside, target)
    except OSError:
        if replaced:
            os.rename(replaced, target)
        raise
    sync(target.parent)


def _manifest_text(step: int, files: dict[str, Any]) -> str:
    """The one text for these entries, its own digest included: any other byte in the file is damage."""
    entries = {"step": step, "files": files}
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    return json.dumps(entries | {"sha256": digest}, indent=1) + "\n"


def _read_manifest(folder: Path) -> dict[str, Any] | str:
    """The manifest, or the reason why it is none."""
    try:
        text = _manifest_bytes(folder).decode("utf-8")
        manifest = json.loads(text)
        is_intact = text == _manifest_text(manifest["step"], manifest["files"]) and _is_of_files(manifest)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_intact = False
    if not is_intact:
        return f"{MANIFEST} has other content than was written"
    named_step = _step_in_name(folder)
    if named_step is not None and named_step != manifest["step"]:
        return f"{MANIFEST} says step {manifest['step']}, the folder's name {named_step}"
    return manifest


def _manifest_bytes(folder: Path) -> bytes:
    """Of a regular file alone: the folder may be somebody else's, with a pipe in the manifest's place."""
    status = (folder / MANIFEST).stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
        raise OSError(errno.EINVAL, "it is no regular file of the size of a manifest")
    return (folder / MANIFEST).read_bytes()


def _is_of_files(manifest: dict[str, Any]) -> bool:
    """Whether the entries are of the kinds that `seal_folder` writes."""
    entries = manifest["files"]
    step_is_number = isinstance(manifest["step"], int)
    return step_is_number and all(isinstance(each["size"], int) and isinstance(each["sha256"], str) for each in entries.values())


def set_aside(folder: Path, name: str) -> bool:
    """Rename a checkpoint so that it is never resumed. True where it is damaged: then its manifest is taken away, and `remove_damaged` knows it."""
    is_damaged = verify_checkpoint(folder) is not None
    target = folder.parent / name
    folder.rename(target)
    if is_damaged:
        remove(target / MANIFEST)
    return is_damaged


def remove_damaged(root: Path) -> list[str]:
    """Remove the damaged checkpoints among those that were set aside, and return their names. Call it when a newer one stands."""
    damaged = [path for path in sorted(root.glob("set-aside-*-checkpoint-*")) if path.is_dir() and not (path / MANIFEST).exists()]
    for path in damaged:
        remove(path)
    return [path.name for path in damaged]


def remove_old_checkpoints(root: Path, step: int, keep: int | None) -> None:
    """Remove what a save replaced. A failure here costs space, not the checkpoint: the next start cleans up."""
    earlier = [path for path in list_checkpoints(root) if _step_in_name(path) <= step]
    for path in earlier[:-keep] if keep is not None else []:
        try:
            os.rename(path, _doomed(path))
        except OSError:
            continue
    for path in root.glob(".del-*"):
        remove(path)


def _step_in_name(folder: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match and folder.is_dir() else None


def _doomed(path: Path) -> Path:
    """A name under which a folder no longer counts, from one rename on, however long its removal takes."""
    name = path.parent / f".del-{path.name}-{os.getpid()}"
    remove(name)
    return name


def remove(path: Path) -> None:
    """A file, or a folder with all in it, as far as it can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def _replace(aside: Path, target: Path) -> None:
    sync(aside)
    os.replace(aside, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 where there is none."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _failure_text(root: Path, target: Path, reason: str, needed: int) -> str:
    """Path, reason, space needed (at least what was written or what the newest checkpoint takes) and space free."""
    earlier = list_checkpoints(root)
    needed = max(needed, folder_size(earlier[-1]) if earlier else 0)
    needs = f"it needs at least {needed / 1e6:.1f} MB, " if needed else ""
    free = shutil.disk_usage(next(path for path in [root, *root.parents] if path.exists())).free
    space = f"{needs}{free / 1e6:.1f} MB are free"
    return f"{target} was not written: {reason}; {space}; make room, what was saved before is untouched"
