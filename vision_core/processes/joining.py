"""How the processes of an evaluation join."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from vision_core.processes.fail_together import fail_together


def join_processes() -> torch.device:
    """Start the process group under torchrun or accelerate, and give this process's device.

    The processes of an evaluation tell each other Python objects alone, so gloo serves GPUs too.
    Their timeout is long, because all wait while the main process works at a task.
    """
    device = _own_device()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    fail_together()
    return device


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device
