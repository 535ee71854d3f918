"""Collective operations of torch.distributed that training needs; without a process group each is a
no-op."""

import os
import socket
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vision_core.errors import UserError
from vision_core.printable import printable, say

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 .. world_size() - 1."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _is_distributed() else 1


def is_main_process() -> bool:
    """True on the one process that writes files."""
    return rank() == 0


def print_once(lines: Iterable[str]) -> None:
    """Print lines at once, also into a log file, on the main process alone."""
    if is_main_process():
        say("\n".join(map(printable, lines)))


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, as a new tensor without gradient; the argument keeps
    its value.

    With one process the argument itself, detached, is returned. All processes must give the same
    shape and dtype.
    """
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The greatest value over all processes, element by element, as a new tensor without
    gradient."""
    greatest = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    return greatest


def mean_over_processes(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of every number over all processes, in one reduction, without gradient; one that is
    not finite anywhere is not finite.

    All processes must give the same names in the same order.
    """
    if world_size() == 1:
        return {name: value.detach() for name, value in values.items()}
    packed = all_reduce_sum(torch.stack([value.float() for value in values.values()])) / world_size()
    return dict(zip(values, packed, strict=True))


def gather_rows(tensor: Tensor) -> Tensor:
    """The rows of all processes in rank order, [B, ...] -> [W * B, ...], with gradient; B is the
    same on every process.

    The gradient of a row is the sum of what every process sends back to it. So when each process computes the same loss
    from the gathered rows and data parallel averages parameter gradients over the W processes, the result is the
    gradient of that loss in one process.
    """
    if world_size() == 1:
        return tensor
    return _GatherRows.apply(tensor)


def all_true(flag: bool) -> bool:
    """True if `flag` is true on every process; all of them get the same answer."""
    if world_size() == 1:
        return flag
    agreed = torch.tensor(int(flag), device=_collective_device())
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return bool(agreed.item())


def any_true(*flags: bool) -> list[bool]:
    """Of each flag, whether it is true on any process, in one reduction; all of them get the same
    answer."""
    if world_size() == 1:
        return list(flags)
    found = torch.tensor([int(flag) for flag in flags], device=_collective_device())
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return [bool(number) for number in found.tolist()]


def broadcast_text(text: str) -> str:
    """The main process's `text`, on every process: how the others learn the run folder that it
    chose."""
    if world_size() == 1:
        return text
    messages = [text]
    dist.broadcast_object_list(messages, src=0)
    return messages[0]


def gather_objects(value: Any) -> list[Any]:
    """What every process gave, in rank order, on every process: small things, now and then."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def refuse_unequal(counts: dict[str, int]) -> None:
    """Raise UserError, on all processes alike, unless all count the same: a machine's copy of the
    data may be another.

    Each process would draw its share of other data, or wait for ever for the rest of the others'.
    counts: what -> its rows on this process.
    """
    of_all = gather_objects((counts, socket.gethostname()))
    first, first_host = of_all[0]
    for number, (theirs, host) in enumerate(of_all):
        for what in (name for name in first if theirs.get(name) != first[name]):
            raise UserError(
                f"{what} has {theirs.get(what, 0):,} rows for process {number} on {host}, "
                f"and {first[what]:,} for process 0 on {first_host}; give every machine the same data"
            )


def wait_for_all() -> None:
    """Until every process is here, however long the slowest takes; what else processes do together
    gives up after its group's timeout, often 30 minutes."""
    if world_size() > 1:
        group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        dist.barrier(group)
        dist.destroy_process_group(group)


class _GatherRows(torch.autograd.Function):
    """`torch.distributed.nn` has one too, deprecated as of torch 2.15 and not compilable."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        ctx.num_rows = len(tensor)
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = all_reduce_sum(gradient)
        return total.narrow(0, rank() * ctx.num_rows, ctx.num_rows)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _collective_device() -> torch.device:
    """Where a tensor must lie for the process group to reduce it: NCCL takes none on the CPU."""
    return (
        torch.device("cpu")
        if "cpu:" in dist.get_backend_config()
        else torch.accelerator.current_accelerator()
    )


def share_cores() -> None:
    """Without accelerators, each of several processes on this machine takes its share of the cores;
    OMP_NUM_THREADS, where it is set, holds.

    deepspeed starts every process on all cores, where they wait for each other forty times as long
    as they compute; and accelerate, which takes a process of deepspeed's for the only one here,
    gives each all cores again where the variable is not set. So it is set.
    """
    if processes_here() > 1 and "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
        os.environ["OMP_NUM_THREADS"] = str(own_cores())
        torch.set_num_threads(own_cores())


def processes_here() -> int:
    """Processes of this run on this machine, as torchrun and accelerate, deepspeed, or a launcher
    that knows of one machine says it."""
    return next(
        (
            int(os.environ[name])
            for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")
            if name in os.environ
        ),
        1,
    )


def set_cpu_threads(threads: int | None) -> None:
    """`threads`, or this process's share of the cores. Launchers set OMP_NUM_THREADS=1; on a CPU
    that would leave cores idle."""
    if not torch.cuda.is_available():
        torch.set_num_threads(threads or own_cores())


def own_cores() -> int:
    """This process's share of the cores, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // processes_here(), 1)


def together(work: Callable[[], T]) -> T:
    """What `work` gives on this process, once it has ended on all of them; a UserError of one is
    raised on every one.

    So none waits in a collective for one that has failed, and all say the same line.
    """
    result = None
    problem = None
    try:
        result = work()
    except UserError as error:
        problem = str(error)
    wait_for_all()
    problems = [each for each in gather_objects(problem) if each]
    if problems:
        raise UserError(problems[0])
    return result
