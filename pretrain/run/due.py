"""When a part of a run is due."""

from typing import NamedTuple


class Every(NamedTuple):
    """Every `steps` steps, and with the last step of the run."""

    steps: int
    last_step: int

    def is_due(self, step: int) -> bool:
        """Whether this is such a step; the first one is 1."""
        return step == self.last_step or step % self.steps == 0
