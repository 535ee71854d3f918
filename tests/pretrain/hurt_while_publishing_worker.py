"""dinov2.py, hurt between its last checkpoint and the published files: HOW OPTIONS..., where HOW is kill, for kill -9,
or full, for a full disk.
"""

import os
import resource
import signal
import sys

from pretrain import dinov2, run_files
from vision_core.errors import run_script

how = sys.argv.pop(1)
plain = run_files.replace_files


def hurt(checkpoint, root, names) -> None:
    if checkpoint.name == "checkpoint-4":
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))  # the config fits, weights do not
    plain(checkpoint, root, names)


run_files.replace_files = hurt
run_script(dinov2.main)
