"""Frozen features of a data source, computed once and kept where only the same encoder on the same
images finds them."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from encoders.base import Encoder
from encoders.evaluation.stored_features import (
    CONTENTS,
    KEPT,
    Shard,
    StoredFeatures,
    read_shard,
    shard_path,
    write_shard,
)
from encoders.evaluation.used_images import content_hash, none_readable
from encoders.modes import evaluating
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError
from vision_core.files.disk_space import check_room, not_written
from vision_core.files.files_aside import remove_litter
from vision_core.files.sealed_tensors import DamagedTensors, NotSealed, remove_damaged
from vision_core.images.one_kind import OneKind
from vision_core.images.source import ImageSource, UnreadableSample
from vision_core.printable import say
from vision_core.processes.data_workers import leave_signals_to_parent
from vision_core.processes.distributed import (
    broadcast_text,
    gather_objects,
    is_main_process,
    rank,
    together,
    world_size,
)
from vision_core.runs.checkpoints import MANIFEST
from vision_core.unreadable import UnreadableImage

SHARD_BYTES = 2**28
MAKE_ROOM = (
    "make room and start again, which goes on from what is there, or name another folder by --cache_dir"
)

Compute = Callable[[Encoder, Tensor], dict[str, Tensor]]


class ImageView(NamedTuple):
    """What a data worker gives of an image: its view `[C, H, W]`, or why there is none."""

    index: int
    view: Tensor | None
    reason: str = ""


def cached_features(
    encoder: Encoder,
    source: ImageSource,
    compute: Compute,
    name: str,
    cache_dir: Path,
    *,
    transform: ImageTransform | None = None,
    indices: list[int] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
    image_bytes: int = 0,
) -> StoredFeatures:
    """Features `compute(encoder, pixel_values)` of the images `indices` of `source` (default: all),
    from `cache_dir` if they are there.

    The folder's name is a hash of the encoder's weights and config, the transform, the data's
    fingerprint, the indices and `name`, which stands for `compute`. Every file in it is verified.
    What is missing or damaged is computed, and so is what could not be read and can be now. Several
    processes compute a part each and all of them read everything; several runs may do the same at
    once, and one that was killed goes on.

    image_bytes: what the features of an image take, where it is known, for the question whether all
    have room.

    Raises UserError where features are not finite, no image can be read, or the disk has no room.
    """
    transform = transform or encoder.transform
    indices = list(range(len(source))) if indices is None else indices
    key = _key(encoder, source, name, transform, indices)
    folder = cache_dir / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    there = together(lambda: _shards_there(folder, key, source, progress) if is_main_process() else [])
    names = json.loads(broadcast_text(json.dumps([shard.path.name for shard in there])))
    missing = _uncovered(names, len(indices))
    together(lambda: _say_what_is_needed(folder, encoder, len(missing), image_bytes, progress))
    share = torch.tensor(missing, dtype=torch.long).tensor_split(world_size())[rank()].tolist()
    filling = _CacheFill(encoder, source, compute, transform, indices, folder, key)
    for made in gather_objects(together(lambda: filling.fill(share, batch_size, num_workers, progress))):
        names += made
    stored = StoredFeatures(together(lambda: _opened(folder, sorted(names), key, there)))
    if not len(stored.kept):
        raise none_readable(source.description, stored.unreadable_samples(source))
    return stored


def unreadable_left_out(
    source: ImageSource,
    indices: list[int],
    transform: ImageTransform,
    batch_size: int,
    progress: bool,
    note: Callable[[UnreadableSample], None],
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of (indices, views `[B, C, H, W]`) of the images that can be read.

    note: is told of every image that cannot be read. Raises UserError where no image can be read,
    or where they are of two kinds.
    """
    found = False
    bad: list[UnreadableSample] = []
    batches = _batches_of(range(len(indices)), batch_size)
    loader = _view_loader(source, indices, transform, batches, 0)
    for images in tqdm(loader, desc="images", disable=not progress, leave=False):
        for image in images:
            if image.view is None:
                bad.append(UnreadableSample(source.id_of(image.index), image.reason))
                note(bad[-1])
        read = _readable(images)
        if read:
            found = True
            yield [image.index for image in read], _stacked_views(read)
    if not found:
        raise none_readable(source.description, bad)


def encoder_fingerprint(encoder: Encoder) -> str:
    """A hash of what decides about an encoder's features: weights, buffers and config, but not
    where it was loaded from."""
    config = encoder.config().to_dict()
    del config["source"]
    described = json.dumps([config, str(encoder.dtype)], sort_keys=True)
    digest = hashlib.blake2b(described.encode(), digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _key(
    encoder: Encoder, source: ImageSource, name: str, transform: ImageTransform, indices: list[int]
) -> str:
    """A text that names the features: another encoder, other images or another view have another
    one."""
    fields = {
        "encoder": encoder_fingerprint(encoder),
        "data": source.fingerprint,
        "features": name,
        "beside": "contents, reasons",  # entries of earlier versions lack them
        "transform": transform.to_dict(),
        "indices": hashlib.blake2b(torch.tensor(indices).numpy().tobytes(), digest_size=16).hexdigest(),
        "device": encoder.device.type,  # another device rounds in another way
    }
    return json.dumps(fields, indent=1, sort_keys=True)


def _shards_there(folder: Path, key: str, source: ImageSource, progress: bool) -> list[Shard]:
    """The intact shards of a folder, in order and without overlap.

    Damaged ones are removed, and a line says how many. Removed too are shards with an image that
    can be read by now.
    """
    remove_litter([*folder.parent.glob(".tmp-*"), *folder.glob(".tmp-*")])
    if (folder / MANIFEST).exists():
        shutil.rmtree(folder)  # of an earlier version, whose files carry no digest
    shards = []
    damaged = 0
    paths = sorted(folder.glob("*.safetensors"))
    for path in tqdm(paths, desc="cached features read", unit="file", disable=not progress, leave=False):
        status = path.lstat()
        try:
            shard = read_shard(path, key)
        except (OSError, NotSealed, DamagedTensors):
            remove_damaged(path, status)
            damaged += 1
            continue
        if _reads_as_before(shard, source):
            shards.append(shard)
        else:
            remove_damaged(path, status)
    if damaged:
        lost = f"{damaged:,} files were not what was written; their features are computed again"
        say(f"{folder}: {lost}", file=sys.stderr)
    return _without_overlap(shards)


def _without_overlap(shards: Sequence[Shard]) -> list[Shard]:
    """The shards that begin behind the one before: runs of other batch sizes divide the images at
    other places."""
    chosen: list[Shard] = []
    for shard in sorted(shards, key=_longest_first):
        if not chosen or shard.start >= chosen[-1].stop:
            chosen.append(shard)
    return chosen


def _longest_first(shard: Shard) -> tuple[int, int]:
    """The order of shards by their start; of one start the longest comes first."""
    return shard.start, -shard.stop


def _uncovered(names: Sequence[str], count: int) -> list[int]:
    """The positions below `count` that no shard of these names holds."""
    covered = torch.zeros(count, dtype=torch.bool)
    for name in names:
        start, stop = Path(name).stem.split("-")
        covered[int(start) : int(stop)] = True
    return (~covered).nonzero()[:, 0].tolist()


def _opened(folder: Path, names: Sequence[str], key: str, there: Sequence[Shard]) -> list[Shard]:
    """The shards of these names; those that are in memory already are not read again."""
    known = {shard.path.name: shard for shard in there}
    try:
        return [known.get(name) or read_shard(folder / name, key) for name in names]
    except (OSError, NotSealed, DamagedTensors) as error:
        raise UserError(
            f"{folder} has changed while it was filled: {error}; start the evaluation again"
        ) from None


def _say_what_is_needed(folder: Path, encoder: Encoder, count: int, image_bytes: int, progress: bool) -> None:
    """Check that the features of `count` images have room, and say how much they take."""
    if count and image_bytes and is_main_process():
        what = f"features of {encoder.name} for {count:,} images"
        line = check_room(folder, count * image_bytes, what, MAKE_ROOM)
        if progress:
            say(line, file=sys.stderr)


def _reads_as_before(shard: Shard, source: ImageSource) -> bool:
    """Whether what could not be read when the features were made still cannot, for the same reason.

    A link may be followed now, a package installed, a permission given, and none of that is in the
    data's fingerprint.
    """
    return all(_reason_now(source, index) == reason for index, reason in shard.reasons.items())


def _reason_now(source: ImageSource, index: int) -> str:
    try:
        source[index]
    except UnreadableImage as error:
        return error.reason
    return ""


class _Views(Dataset):
    """The views of a source's images."""

    def __init__(self, source: ImageSource, indices: list[int], transform: ImageTransform) -> None:
        self.source = source
        self.indices = indices
        self.transform = transform
        self.kind = OneKind()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> ImageView:
        index = self.indices[position]
        try:
            record = self.source[index]
        except UnreadableImage as error:
            return ImageView(index, None, error.reason)
        self.kind.look_at(record.image, record.id)
        return ImageView(index, self.transform.view(record.image))


def _view_loader(
    source: ImageSource,
    indices: list[int],
    transform: ImageTransform,
    batches: Sequence[list[int]],
    num_workers: int,
) -> DataLoader:
    return DataLoader(
        _Views(source, indices, transform),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=leave_signals_to_parent,
    )


def _readable(images: Sequence[ImageView]) -> list[ImageView]:
    return [image for image in images if image.view is not None]


def _reasons(images: Sequence[ImageView]) -> dict[int, str]:
    """Why images could not be read, by their indices."""
    return {image.index: image.reason for image in images if image.view is None}


def _stacked_views(images: Sequence[ImageView]) -> Tensor:
    return torch.stack([image.view for image in images])


def _batches_of(positions: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of neighbours: none reaches over a gap between `positions`, which rise."""
    batches: list[list[int]] = []
    for position in positions:
        if batches and len(batches[-1]) < batch_size and batches[-1][-1] == position - 1:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


class _CacheFill:
    """The features that a process computes, written shard after shard."""

    def __init__(
        self,
        encoder: Encoder,
        source: ImageSource,
        compute: Compute,
        transform: ImageTransform,
        indices: list[int],
        folder: Path,
        key: str,
    ) -> None:
        self.encoder = encoder
        self.source = source
        self.compute = compute
        self.transform = transform
        self.indices = indices
        self.folder = folder
        self.key = key

    def fill(self, positions: list[int], batch_size: int, num_workers: int, progress: bool) -> list[str]:
        """Compute and write the features of the images at `positions` of the indices, and give the
        names of the files. Raises UserError."""
        batches = _batches_of(positions, batch_size)
        loader = _view_loader(self.source, self.indices, self.transform, batches, num_workers)
        bar = self._with_bar(loader, progress)
        waiting: list[dict[str, Tensor]] = []
        reasons: dict[int, str] = {}
        start = 0
        made = []
        with evaluating(self.encoder):
            for number, (batch, images) in enumerate(zip(batches, bar, strict=True)):
                start = start if waiting or reasons else batch[0]
                waiting += self._features(images)
                reasons |= _reasons(images)
                stop = batch[-1] + 1
                is_end = number + 1 == len(batches) or batches[number + 1][0] != stop
                if is_end or _bytes_of(waiting) >= SHARD_BYTES:
                    made.append(self._write(start, stop, waiting, reasons))
                    waiting = []
                    reasons = {}
        return made

    def _with_bar(self, loader: DataLoader, progress: bool) -> tqdm:
        """The batches of a loader with a progress bar, which the main process alone shows."""
        is_silent = not progress or not is_main_process()
        name = f"features of {self.encoder.name}"
        return tqdm(loader, desc=name, unit="batch", disable=is_silent, leave=False)

    def _features(self, images: list[ImageView]) -> list[dict[str, Tensor]]:
        """The tensors of the images of a batch that could be read, as a list of one; an empty list
        where none could."""
        read = _readable(images)
        if not read:
            return []
        contents = torch.stack([content_hash(image.view) for image in read])
        views = _stacked_views(read).to(self.encoder.device)
        computed = self.compute(self.encoder, self.transform.pixels(views))
        features = {name: value.cpu().contiguous() for name, value in computed.items()}
        indices = [image.index for image in read]
        self._check_finite(features, indices)
        return [{**features, KEPT: torch.tensor(indices), CONTENTS: contents}]

    def _check_finite(self, features: dict[str, Tensor], indices: Sequence[int]) -> None:
        for row, index in enumerate(indices):
            if not all(value[row].isfinite().all() for value in features.values()):
                where = f"{self.encoder.name}: the features of {self.source.id_of(index)}"
                raise UserError(f"{where} are not finite; use float32, or another checkpoint")

    def _write(self, start: int, stop: int, batches: list[dict[str, Tensor]], reasons: dict[int, str]) -> str:
        tensors = _joined(batches)
        path = shard_path(self.folder, start, stop)
        try:
            write_shard(path, self.key, tensors, reasons)
        except OSError as error:
            with suppress(OSError):
                self.folder.rmdir()  # where nothing is in it
            raise not_written(path, error, _bytes_of([tensors]), MAKE_ROOM) from None
        return path.name


def _joined(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several batches, one behind the other; without a batch those of no image."""
    if not batches:
        return {KEPT: torch.empty(0, dtype=torch.long), CONTENTS: torch.empty(0, 2, dtype=torch.long)}
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _bytes_of(batches: list[dict[str, Tensor]]) -> int:
    total = 0
    for batch in batches:
        total += sum(value.nbytes for value in batch.values())
    return total
