"""Frozen features of a data source, computed once and kept in a folder that only the same encoder on the same images reads again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from encoders.base import Encoder
from encoders.evaluation.features import evaluating
from encoders.evaluation.used_images import content_hash, none_readable
from encoders.preprocess import ImageTransform
from vision_core.checkpoints import WRITE_ERRORS, seal_folder, verify_checkpoint
from vision_core.data_workers import leave_signals_to_parent
from vision_core.distributed import broadcast_text, gather_objects, is_main_process, rank, wait_for_all, world_size
from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.one_kind import OneKind
from vision_core.images.sources import ImageSource, UnreadableSample

KEY_FILE = "key.json"
SHARD_BYTES = 2**28
KEPT, CONTENTS = "kept", "contents"
BAD_FILES = "unreadable-*.json"  # one of every process: [[index, reason], ...]

Compute = Callable[[Encoder, Tensor], dict[str, Tensor]]


class StoredFeatures:
    """A whole folder of features, read from disk as they are asked for.

    Attributes:
        names: of the tensors. kept: `[n]` the indices of the images in their source; unreadable ones are left out. unreadable: how many were.
        reasons: index -> reason of those. contents: `[n, 2]` the hashes of the images (`content_hash`).
    """

    def __init__(self, folder: Path, num_images: int) -> None:
        self.shards = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        self.names = sorted(set(self.shards[0].keys()) - {KEPT, CONTENTS}) if self.shards else []
        self.kept = self.load(KEPT) if self.shards else torch.empty(0, dtype=torch.long)
        self.contents = self.load(CONTENTS) if self.shards else torch.empty(0, 2, dtype=torch.long)
        self.unreadable = num_images - len(self.kept)
        self.reasons = {index: reason for path in sorted(folder.glob(BAD_FILES)) for index, reason in json.loads(path.read_text())}

    def load(self, name: str) -> Tensor:
        """The whole tensor `[n, ...]` in memory."""
        return torch.cat([shard.get_tensor(name) for shard in self.shards])

    def rows(self, name: str) -> StoredRows:
        """The tensor row by row, for what does not fit into memory."""
        parts = [shard.get_slice(name) for shard in self.shards]
        return StoredRows([(part, row) for part in parts for row in range(part.get_shape()[0])])


class StoredRows:
    """`rows[i]` reads one image's tensor from disk."""

    def __init__(self, places: list[tuple[Any, int]]) -> None:
        self.places = places
        self.shape = (len(places), *places[0][0].get_shape()[1:])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        part, row = self.places[index]
        return part[row : row + 1][0]

    def only(self, indices: list[int]) -> StoredRows:
        """Some of the rows."""
        return StoredRows([self.places[index] for index in indices])


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
) -> StoredFeatures:
    """`compute(encoder, pixel_values)` of the images `indices` of `source` (default: all), from `cache_dir` where they lie there already.

    The folder's name is a hash of the encoder's weights and config, the transform, the data's fingerprint, the indices and `name`, which stands for
    `compute`. It becomes visible by one rename, and is read only if its manifest verifies and what could not be read still cannot. Several
    processes compute a part each and all read the whole.

    Raises UserError where features are not finite, no image can be read, or the disk is full.
    """
    transform = transform or encoder.transform
    indices = list(range(len(source))) if indices is None else indices
    key = _key(encoder, source, name, transform, indices)
    folder = cache_dir / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    is_there = is_main_process() and _is_whole(folder, key) and _reads_as_before(folder, source)
    state = "whole" if is_there else "missing"
    if broadcast_text(state) == "missing":
        aside = Path(broadcast_text(str(cache_dir / f".tmp-{folder.name}-{os.getpid()}")))
        share = torch.tensor(indices).tensor_split(world_size())[rank()].tolist()  # in order, so that all shards together are
        loader = _view_loader(source, share, transform, batch_size, num_workers)
        problem = _fill(aside, lambda bad: _batches(encoder, source, compute, transform, loader, progress, bad))
        _publish(aside, folder, key, [said for said in gather_objects(problem) if said])
        wait_for_all()  # nobody reads before it is there
    stored = StoredFeatures(folder, len(indices))
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
    """Batches of (indices, views `[B, C, height, width]`) of the images that can be read. Raises UserError where none can, or where they are
    of two kinds.

    note: is told of every image that cannot.
    """
    found, bad = False, []
    for items in tqdm(_view_loader(source, indices, transform, batch_size, 0), desc="images", disable=not progress, leave=False):
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
    """A hash of what decides about an encoder's features: weights, buffers and config, but not where it was loaded from."""
    config = encoder.config().to_dict()
    del config["source"]
    digest = hashlib.blake2b(json.dumps([config, str(encoder.dtype)], sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _key(encoder: Encoder, source: ImageSource, name: str, transform: ImageTransform, indices: list[int]) -> str:
    fields = {
        "encoder": encoder_fingerprint(encoder),
        "data": source.fingerprint,
        "features": name,
        "beside": f"{CONTENTS}, reasons",  # entries of earlier versions lack them
        "transform": transform.to_dict(),
        "indices": hashlib.blake2b(torch.tensor(indices).numpy().tobytes(), digest_size=16).hexdigest(),
        "device": encoder.device.type,  # another device rounds in another way
    }
    return json.dumps(fields, indent=1, sort_keys=True)


def _is_whole(folder: Path, key: str) -> bool:
    return folder.is_dir() and verify_checkpoint(folder) is None and (folder / KEY_FILE).read_text() == key


def _reads_as_before(folder: Path, source: ImageSource) -> bool:
    """Whether what could not be read when the features were made still cannot, for the same reason.

    A link may be followed now, a package installed, a permission given, and none of that is in the data's fingerprint.
    """
    return all(_reason_now(source, index) == reason for index, reason in StoredFeatures(folder, 0).reasons.items())


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


def _view_loader(source: ImageSource, indices: list[int], transform: ImageTransform, batch_size: int, num_workers: int) -> DataLoader:
    return DataLoader(
        _Views(source, indices, transform),
        batch_size,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=leave_signals_to_parent,
    )


def _batches(
    encoder: Encoder,
    source: ImageSource,
    compute: Compute,
    transform: ImageTransform,
    loader: DataLoader,
    progress: bool,
    bad: list[tuple[int, str]],
) -> Iterator[dict[str, Tensor]]:
    """The tensors of a shard, batch after batch; (index, reason) of what cannot be read goes into `bad`."""
    with evaluating(encoder):
        for items in tqdm(
            loader, desc=f"features of {encoder.name}", unit="batch", disable=not progress or not is_main_process(), leave=False
        ):
            read = [(index, view) for index, view, _ in items if view is not None]
            bad += [(index, reason) for index, view, reason in items if view is None]
            if not read:
                continue
            contents = torch.stack([content_hash(view) for _, view in read])
            views = torch.stack([view for _, view in read]).to(encoder.device)
            features = {name: value.cpu().contiguous() for name, value in compute(encoder, transform.pixels(views)).items()}
            for row, (index, _) in enumerate(read):
                if not all(value[row].isfinite().all() for value in features.values()):
                    raise UserError(
                        f"{encoder.name}: the features of {source.id_of(index)} are not finite; use float32, or another checkpoint"
                    )
            yield {**features, KEPT: torch.tensor([index for index, _ in read]), CONTENTS: contents}


def _fill(aside: Path, batches: Callable[[list[tuple[int, str]]], Iterator[dict[str, Tensor]]]) -> str | None:
    """Write this process's shards and what could not be read; what went wrong, or None. The others wait to hear it."""
    bad: list[tuple[int, str]] = []
    try:
        aside.mkdir(parents=True, exist_ok=True)
        waiting: list[dict[str, Tensor]] = []
        number = 0
        for batch in batches(bad):
            waiting.append(batch)
            if sum(value.nbytes for each in waiting for value in each.values()) >= SHARD_BYTES:
                _write_shard(aside, number, waiting)
                waiting, number = [], number + 1
        if waiting:
            _write_shard(aside, number, waiting)
        (aside / BAD_FILES.replace("*", f"{rank():04d}")).write_text(json.dumps(bad))
    except UserError as error:
        return str(error)
    except WRITE_ERRORS as error:
        if not isinstance(error, OSError) and "o space" not in str(error):
            raise
        return f"features cannot be written to {aside.parent}: {error}; free space or name another folder by --cache_dir"
    return None


def _write_shard(aside: Path, number: int, batches: list[dict[str, Tensor]]) -> None:
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    save_file(whole, aside / f"{rank():04d}-{number:05d}.safetensors")


def _publish(aside: Path, folder: Path, key: str, problems: list[str]) -> None:
    """Show the folder whole, or take it away and say why not, the same on every process."""
    if is_main_process():
        if not problems:
            (aside / KEY_FILE).write_text(key)
            seal_folder(aside)
            shutil.rmtree(folder, ignore_errors=True)  # what lies there did not verify, or says otherwise of images that cannot be read
            aside.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    if problems:
        raise UserError(problems[0])
