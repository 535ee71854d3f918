"""State how a run was made, for its card, with the command that makes it again."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from vision_core.printable import in_code
from vision_core.processes.distributed import world_size

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("torch", "transformers", "accelerate", "safetensors")
DRAWN = ("scenes", "tiny:")  # data and models that the program makes itself
CODE = "vision-encoder-fusion"


def run_again(script: str, folder: Path, launcher: str = "python") -> str:
    """The command that starts the run in `folder` once more, in a new folder, from where it was
    started.

    script: `pretrain/mae.py`, or a module, `-m fusion.fuse`. launcher: of a run of one process;
    several are started as many again.
    """
    is_clone = (ROOT / "pyproject.toml").is_file()
    module = script if script.startswith("-m ") else f"-m {script.removesuffix('.py').replace('/', '.')}"
    program = shlex.quote(_from_here(ROOT / script)) if is_clone and script != module else module
    where = _from_here(folder)
    options = shlex.join(["--config", f"{where}/config.yaml", "--output_dir", f"{where}-again"])
    return f"{_launcher(launcher)} {program} {options}"


def _launcher(launcher: str) -> str:
    processes = world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if processes == 1:
        return "python" if launcher == "deepspeed" else launcher
    if launcher == "deepspeed":
        return (
            f"deepspeed --num_nodes {processes // local} --num_gpus {local}"
            if processes > local
            else f"deepspeed --num_gpus {local}"
        )
    nodes = f" --nnodes {processes // local}" if processes > local else ""
    on_cpu = "" if torch.cuda.is_available() else "ACCELERATE_USE_CPU=true "
    return f"{on_cpu}torchrun{nodes} --nproc-per-node {local}"


def _from_here(path: Path) -> str:
    """Relative to the working directory where it lies beneath it, as users type it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def made_with() -> dict[str, str]:
    """Date, hardware, code and libraries, for a card's table."""
    return {
        "made on": date.today().isoformat(),
        "hardware": hardware(),
        "code": f"{CODE}{_version_after(CODE)}, Apache-2.0",
        "libraries": ", ".join(f"{name}{_version_after(name)}" for name in LIBRARIES),
    }


def hardware() -> str:
    """The accelerators of this process, or the processor and the threads that torch takes of it."""
    processes = world_size()
    times = f"{processes} x " if processes > 1 else ""
    if torch.cuda.is_available():
        return f"{times}{torch.cuda.get_device_name()}"
    return f"{times}{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine() or "CPU"


def _version_after(package: str) -> str:
    try:
        return f" {version(package)}"
    except PackageNotFoundError:  # a clone that is not installed
        return ""


def batch_text(per_device: int, accumulation: int) -> str:
    """`64 a device x 1 accumulated x 1 processes = 64 a step`."""
    total = per_device * accumulation * world_size()
    return f"{per_device} a device x {accumulation} accumulated x {world_size()} processes = {total} a step"


def millions(modules: Iterable[torch.nn.Module]) -> str:
    """Parameters, shared ones counted once: `0.8 M`."""
    sizes = {}
    for module in modules:
        for parameter in module.parameters():
            sizes[id(parameter)] = parameter.numel()
    return f"{sum(sizes.values()) / 1e6:.2f} M"


def data_licence(sources: Iterable[str]) -> str:
    """A sentence about the licence of data that is named by source texts."""
    others = [source for source in sources if not source.startswith(DRAWN)]
    if not others:
        return "Licence of the data: it is drawn by the program, under Apache-2.0 like its code."
    listed = ", ".join(in_code(source) for source in others)
    return (
        f"Licence of the data: not known to the program; look it up for {listed}, and name it here before "
        "the model is handed on."
    )
