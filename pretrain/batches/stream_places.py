"""Keeps where a run is in a streamed data set: the place of each reader behind the last batch that
was used, for the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vision_core.images.stream_order import Place

if TYPE_CHECKING:
    from pretrain.batches.order import BatchLayout


class ReaderPlace(NamedTuple):
    """How far a reader (a data worker, or the process itself) is: `samples` that it has given since
    the run began to read so, the pass that it is in, and the place of its last record in this
    pass."""

    reader: int
    samples: int
    epoch: int
    record: Place | None


class StreamPlaces:
    """The places of this process's readers. Batches that were read ahead do not count: their places
    come with them.

    Readers take turns, and a loader always begins with the first of them. So the places kept are
    those after the last full round. A resumed run reads the `ahead` micro-batches that were used
    since once more and drops them, at most one of each reader.

    Args:
        stream: the images that are read, in words.
        num_workers: data workers of this process.
        first_step: the step before which nothing was read.
    """

    def __init__(self, stream: str, layout: BatchLayout, num_workers: int, first_step: int) -> None:
        self.began = first_step
        self.readers: dict[int, ReaderPlace] = {}
        self._rank = layout.rank
        self._round: dict[int, ReaderPlace] = {}
        self._dealing = {
            "dataset": stream,
            "number of processes": layout.processes,
            "dataloader_num_workers": max(num_workers, 1),
            "per_device_train_batch_size": layout.per_device,
            "gradient_accumulation_steps": layout.micro_batches,
        }
        self.ahead = 0  # micro-batches to read again and to drop, of a run that goes on

    def look_at(self, batch: dict) -> None:
        """Remember where the reader of a batch of `crops.collate` is behind it."""
        place = batch["place"]
        if place is None:
            return
        if place.reader in self._round:
            self.readers |= self._round
            self._round = {}
        self._round[place.reader] = place

    def mark(self) -> tuple[dict[int, ReaderPlace], dict[int, ReaderPlace]]:
        """Where the readers are, for `go_back`."""
        return dict(self.readers), dict(self._round)

    def go_back(self, mark: tuple[dict[int, ReaderPlace], dict[int, ReaderPlace]]) -> None:
        """Forget the batches that were looked at since `mark`."""
        readers, last_round = mark
        self.readers = readers
        self._round = last_round

    def state_dict(self) -> dict | None:
        """Plain values, or None where no stream has been read."""
        if not (self._round or self.readers):
            return None
        readers = [list(place) for place in self.readers.values()]
        return {"began": self.began, "dealing": self._dealing, "readers": readers, "ahead": len(self._round)}

    def load_state_dict(self, states: list[dict | None] | None) -> list[str]:
        """Go on from the `state_dict`s of all processes, in the order of their ranks. Returns a
        line for people where a new pass begins, because the stream is dealt to other readers than
        before."""
        if not states or states[0] is None:
            return [
                "note            the checkpoint is of an older version and holds no place in the stream, "
                "which begins a new pass"
            ]
        changed = self._changed_dealing(states[0]["dealing"])
        if changed:
            return [
                f"note            {', '.join(changed)}: the stream begins a new pass; with what was before "
                "it goes on where it stopped"
            ]
        own = states[self._rank]
        self.began = own["began"]
        self.ahead = own["ahead"]
        self.readers = {reader: ReaderPlace(reader, *rest) for reader, *rest in own["readers"]}
        return []

    def _changed_dealing(self, before: dict) -> list[str]:
        """What deals the stream to other readers than before, in words."""
        changed = []
        for name, now in self._dealing.items():
            if before[name] != now:
                changed.append(f"{name} was {before[name]} and is {now}")
        return changed
