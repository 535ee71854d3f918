"""A work folder of several processes: the main one holds it, and all of them know where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vision_core.processes.distributed import broadcast_text, is_main_process
from vision_core.runs.work_folder import PARTIAL, WorkFolder


class SharedWorkFolder:
    """A work folder whose path and `partial` are the same on every process."""

    def __init__(
        self, output_dir: str | None, name: str, config_yaml: str, resume: str | None, program: str
    ) -> None:
        """Open the folder on the main process; the arguments are those of `check_work`."""
        self._work: WorkFolder | None = None
        if is_main_process():
            self._work = WorkFolder.open(output_dir, name, config_yaml, resume, program)
        self.path = Path(broadcast_text(str(self._work.path) if self._work else ""))

    @property
    def partial(self) -> Path:
        """The folder for what a later start of the same command need not do again."""
        return self.path / PARTIAL

    def publish(self, write: Callable[[Path], None]) -> None:
        """Write the results by `write(folder)` on the main process; the others do nothing."""
        if self._work is not None:
            self._work.publish(write)
