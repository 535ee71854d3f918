"""Names and counts images that cannot be read, and ends the run above a share."""

from vision_core.errors import UserError
from vision_core.processes.distributed import gather_objects
from vision_core.runs.run_folder import RunFolder
from vision_core.unreadable import cure


class BadImageWatch:
    """Names the unreadable images of all processes in the run's bad_samples.jsonl and stops the run
    above a share of the draws.

    The share counts once at least `MIN_DRAWS` images were drawn, or as many bad ones as the share
    allows of them. Batches are remembered by `look_at` and counted by `report`, which every process
    calls at the same step.
    """

    MIN_DRAWS = 1000

    def __init__(self, max_fraction: float, run: RunFolder | None) -> None:
        self.max_fraction = max_fraction
        self.run = run
        self.drawn = 0
        self.bad = 0
        self._drawn_here = 0  # since the last report, by this process
        self._bad_here: list[tuple[str, str]] = []

    def look_at(self, batch: dict) -> None:
        """Remember what a batch of `collate` says of its draws."""
        self._drawn_here += len(batch["ids"]) + len(batch["bad"])
        self._bad_here += batch["bad"]

    def forget(self, batches: list[dict]) -> None:
        """Take back `look_at` of the last `batches`, which a resumed run will draw again."""
        for batch in reversed(batches):
            self._drawn_here -= len(batch["ids"]) + len(batch["bad"])
            del self._bad_here[len(self._bad_here) - len(batch["bad"]) :]

    def report(self) -> None:
        """Name and count what was remembered; raises `UserError` above the share."""
        shares = gather_objects((self._drawn_here, self._bad_here))
        self._drawn_here = 0
        self._bad_here = []
        bad: list[tuple[str, str]] = []
        for drawn, samples in shares:
            self.drawn += drawn
            bad += samples
        self.bad += len(bad)
        for name, reason in bad:
            if self.run is not None:
                self.run.append_bad_sample(name, reason)
        if bad and self.bad > self.max_fraction * max(self.drawn, self.MIN_DRAWS):
            name, reason = bad[-1]
            raise UserError(
                f"{self.bad} of {self.drawn} images drawn are unreadable, more than "
                f"max_bad_fraction={self.max_fraction}; the last is {name} ({reason}), bad_samples.jsonl "
                f"names them all; {cure(reason)}; or remove them, or raise max_bad_fraction"
            )

    def state_dict(self) -> dict:
        """The counts, for a checkpoint; after `report`."""
        return {"drawn": self.drawn, "bad": self.bad}

    def load_state_dict(self, state: dict) -> None:
        """Go on counting from `state_dict`."""
        self.drawn = state["drawn"]
        self.bad = state["bad"]
