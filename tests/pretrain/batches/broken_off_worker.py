"""dinov2.py, of whose processes the second is told to stop: STEP NUMBER OPTIONS..., with the
micro-batch of this number, from 0, behind this step; -1: not."""

import os
import signal
import sys

from pretrain import dinov2
from vision_core.errors import run_script

step, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
plain = dinov2.DistillationTrainer.on_device
seen: list[int] = []


def told(self, batch: dict) -> dict:
    seen.append(self.step)
    if os.environ["RANK"] == "1" and seen.count(step) == number + 1 > 0:
        os.kill(os.getpid(), signal.SIGTERM)
    assert number < 0 or seen.count(step) <= number + 1, "no micro-batch may follow"
    return plain(self, batch)


dinov2.DistillationTrainer.on_device = told
run_script(dinov2.main)
