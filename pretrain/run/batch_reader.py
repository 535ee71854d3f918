"""Reads the micro-batches of each step, and knows how to give the last step's back."""

import time
from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader

from pretrain.batches.stream_places import StreamPlaces
from pretrain.run.bad_images import BadImageWatch
from pretrain.run.data_workers import time_limit


class BatchReader:
    """The batches of `loader`, a step's micro-batches at a time.

    What a checkpoint must know of them is noted on the way: `places` of the stream's readers,
    `bad_images`. count_waiting: is told the seconds that each micro-batch was waited for.
    timeout: seconds after which a data worker counts as hung; 0 waits for ever.
    """

    def __init__(
        self,
        loader: DataLoader,
        micro_batches: int,
        *,
        places: StreamPlaces,
        bad_images: BadImageWatch,
        timeout: float,
        count_waiting: Callable[[float], None],
    ) -> None:
        self.loader = loader
        self.micro_batches = micro_batches
        self.places = places
        self.bad_images = bad_images
        self.timeout = timeout
        self.count_waiting = count_waiting
        self._batches: Iterator[dict] = iter(())
        self._first: list[dict] = []  # read by `start`, and not yet given
        self._last_step: list[dict] = []
        self._places_before = places.mark()

    def start(self, needs_one: bool) -> None:
        """Start the data workers, drop what the interrupted run has already used of a stream, and
        read the first batch, so that what cannot be read is known before the run's folder changes.

        needs_one: there is a step to take.
        """
        self._batches = iter(self.loader)
        for _ in range(self.places.ahead):
            self.places.look_at(self._read())
        if needs_one:
            self._first = [self._read()]

    def next_step(self) -> list[dict]:
        """The micro-batches of the next step."""
        self._places_before = self.places.mark()
        self._last_step = [self._next() for _ in range(self.micro_batches)]
        return self._last_step

    def go_back(self) -> None:
        """Forget the last step's batches, which a resumed run will draw again."""
        self.places.go_back(self._places_before)
        self.bad_images.forget(self._last_step)

    def _next(self) -> dict:
        before = time.perf_counter()
        batch = self._first.pop() if self._first else self._read()
        self.places.look_at(batch)
        self.count_waiting(time.perf_counter() - before)
        self.bad_images.look_at(batch)
        return batch

    def _read(self) -> dict:
        with time_limit(self.timeout):
            return next(self._batches)
