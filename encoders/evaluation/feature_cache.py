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
from vision_core.images.decode import UnreadableImage
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

SHARD_BYTES = 2**28
ROOM = "make room and start again, which goes on from what is there, or name another folder by --cache_dir"

Compute = Callable[[Encoder, Tensor], dict[str, Tensor]]


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
    """`compute(encoder, pixel_values)` of the images `indices` of `source` (default: all), from
    `cache_dir` if they are there.

    The folder's name is a hash of the encoder's weights and config, the transform, the data's
    fingerprint, the indices and `name`, which stands for `compute`. Every file in it is verified.
    What is missing or damaged is computed, and so is what could not be read and can be now. Several
    processes compute a part each and all read the whole; several runs may do the same at once, and
    one that was killed goes on.

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
    filling = _Filling(encoder, source, compute, transform, indices, folder, key)
    made = together(lambda: filling.fill(share, batch_size, num_workers, progress))
    names = sorted([*names, *(each for part in gather_objects(made) for each in part)])
    stored = StoredFeatures(together(lambda: _opened(folder, names, key, there)))
    if not len(stored.kept):
        bad = [UnreadableSample(source.id_of(index), reason) for index, reason in stored.reasons.items()]
        raise none_readable(source.description, bad)
    return stored


def unreadable_left_out(
    source: ImageSource,
    indices: list[int],
    transform: ImageTransform,
    batch_size: int,
    progress: bool,
    note: Callable[[UnreadableSample], None],
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of (indices, views `[B, C, height, width]`) of the images that can be read. Raises
    UserError where none can, or where they are of two kinds.

    note: is told of every image that cannot.
    """
    found, bad = False, []
    batches = _batches_of(range(len(indices)), batch_size)
    loader = _view_loader(source, indices, transform, batches, 0)
    for items in tqdm(loader, desc="images", disable=not progress, leave=False):
        read = [(index, view) for index, view, _ in items if view is not None]
        for index, view, reason in items:
            if view is None:
                bad.append(UnreadableSample(source.id_of(index), reason))
                note(bad[-1])
        if read:
            found = True
            yield [index for index, _ in read], torch.stack([view for _, view in read])
    if not found:
        raise none_readable(source.description, bad)


def encoder_fingerprint(encoder: Encoder) -> str:
    """A hash of what decides about an encoder's features: weights, buffers and config, but not
    where it was loaded from."""
    config = encoder.config().to_dict()
    del config["source"]
    digest = hashlib.blake2b(
        json.dumps([config, str(encoder.dtype)], sort_keys=True).encode(), digest_size=16
    )
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _key(
    encoder: Encoder, source: ImageSource, name: str, transform: ImageTransform, indices: list[int]
) -> str:
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
    """What is whole, one behind the other without overlap. What is damaged is removed, and a line
    says how much."""
    remove_litter([*folder.parent.glob(".tmp-*"), *folder.glob(".tmp-*")])
    if (folder / MANIFEST).exists():
        shutil.rmtree(folder)  # of an earlier version, whose files carry no digest
    shards, damaged = [], 0
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
    """Runs of other batch sizes cut the images in other places."""
    chosen: list[Shard] = []
    for shard in sorted(shards, key=lambda each: (each.start, -each.stop)):
        if not chosen or shard.start >= chosen[-1].stop:
            chosen.append(shard)
    return chosen


def _uncovered(names: Sequence[str], count: int) -> list[int]:
    """The positions below `count` that no shard of these names holds."""
    covered = torch.zeros(count, dtype=torch.bool)
    for name in names:
        start, stop = Path(name).stem.split("-")
        covered[int(start) : int(stop)] = True
    return (~covered).nonzero()[:, 0].tolist()


def _opened(folder: Path, names: Sequence[str], key: str, there: Sequence[Shard]) -> list[Shard]:
    """The shards of these names, those that are in memory already as they are."""
    known = {shard.path.name: shard for shard in there}
    try:
        return [known.get(name) or read_shard(folder / name, key) for name in names]
    except (OSError, NotSealed, DamagedTensors) as error:
        raise UserError(
            f"{folder} has changed while it was filled: {error}; start the evaluation again"
        ) from None


def _say_what_is_needed(folder: Path, encoder: Encoder, count: int, image_bytes: int, progress: bool) -> None:
    if count and image_bytes and is_main_process():
        line = check_room(
            folder, count * image_bytes, f"features of {encoder.name} for {count:,} images", ROOM
        )
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
    def __init__(self, source: ImageSource, indices: list[int], transform: ImageTransform) -> None:
        self.source, self.indices, self.transform = source, indices, transform
        self.kind = OneKind()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Tensor | None, str]:
        """Index, view and why there is none."""
        index = self.indices[position]
        try:
            record = self.source[index]
        except UnreadableImage as error:
            return index, None, error.reason
        self.kind.look_at(record.image, record.id)
        return index, self.transform.view(record.image), ""


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


def _batches_of(positions: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of neighbours: none reaches over a gap between `positions`, which rise."""
    batches: list[list[int]] = []
    for position in positions:
        if batches and len(batches[-1]) < batch_size and batches[-1][-1] == position - 1:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


class _Filling:
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
        self.encoder, self.compute = encoder, compute
        self.source, self.transform, self.indices = source, transform, indices
        self.folder, self.key = folder, key

    def fill(self, positions: list[int], batch_size: int, num_workers: int, progress: bool) -> list[str]:
        """Compute and write the images at `positions` of the indices; the names of the files.
        Raises UserError."""
        batches = _batches_of(positions, batch_size)
        loader = _view_loader(self.source, self.indices, self.transform, batches, num_workers)
        name = f"features of {self.encoder.name}"
        bar = tqdm(
            loader, desc=name, unit="batch", disable=not progress or not is_main_process(), leave=False
        )
        waiting: list[dict[str, Tensor]] = []
        reasons: dict[int, str] = {}
        start, made = 0, []
        with evaluating(self.encoder):
            for number, (batch, items) in enumerate(zip(batches, bar, strict=True)):
                start = start if waiting or reasons else batch[0]
                waiting += self._features(items)
                reasons |= {index: reason for index, view, reason in items if view is None}
                stop = batch[-1] + 1
                is_end = number + 1 == len(batches) or batches[number + 1][0] != stop
                if is_end or _bytes_of(waiting) >= SHARD_BYTES:
                    made.append(self._write(start, stop, waiting, reasons))
                    waiting, reasons = [], {}
        return made

    def _features(self, items: list[tuple[int, Tensor | None, str]]) -> list[dict[str, Tensor]]:
        """The tensors of those of a batch that could be read; none, where none could."""
        read = [(index, view) for index, view, _ in items if view is not None]
        if not read:
            return []
        contents = torch.stack([content_hash(view) for _, view in read])
        views = torch.stack([view for _, view in read]).to(self.encoder.device)
        computed = self.compute(self.encoder, self.transform.pixels(views))
        features = {name: value.cpu().contiguous() for name, value in computed.items()}
        for row, (index, _) in enumerate(read):
            if not all(value[row].isfinite().all() for value in features.values()):
                image = self.source.id_of(index)
                where = f"{self.encoder.name}: the features of {image}"
                raise UserError(f"{where} are not finite; use float32, or another checkpoint")
        return [{**features, KEPT: torch.tensor([index for index, _ in read]), CONTENTS: contents}]

    def _write(self, start: int, stop: int, batches: list[dict[str, Tensor]], reasons: dict[int, str]) -> str:
        nothing = {KEPT: torch.empty(0, dtype=torch.long), CONTENTS: torch.empty(0, 2, dtype=torch.long)}
        whole = (
            {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
            if batches
            else nothing
        )
        path = shard_path(self.folder, start, stop)
        try:
            write_shard(path, self.key, whole, reasons)
        except OSError as error:
            with suppress(OSError):
                self.folder.rmdir()  # where nothing is in it
            raise not_written(path, error, _bytes_of([whole]), ROOM) from None
        return path.name


def _bytes_of(batches: list[dict[str, Tensor]]) -> int:
    return sum(value.nbytes for batch in batches for value in batch.values())
