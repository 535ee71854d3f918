import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from vision_core.processes.distributed import (
    all_reduce_max,
    all_reduce_sum,
    all_true,
    any_true,
    broadcast_text,
    gather_rows,
    is_main_process,
    rank,
    share_cores,
    wait_for_all,
    world_size,
)
from vision_core.processes.launchers import is_first_launched


def rows() -> torch.Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def weight() -> torch.Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def loss_of(features: torch.Tensor) -> torch.Tensor:
    """Every row meets every other one, so that a gradient that stays on its process is a wrong
    one."""
    weights = torch.arange(len(features), dtype=features.dtype)
    return ((features @ features.T).cos() * weights).sum()


def check_on_one_of_two_processes() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=10))
    process = int(os.environ["RANK"])
    time.sleep(12 * process)  # longer than what they do together may take otherwise
    wait_for_all()
    assert (rank(), world_size(), is_main_process()) == (process, 2, process == 0)

    value = torch.full((2, 2), float(process + 1)).T
    assert torch.equal(all_reduce_sum(value), torch.full((2, 2), 3.0))
    assert torch.equal(value, torch.full((2, 2), float(process + 1)))
    assert not all_reduce_sum(value.clone().requires_grad_()).requires_grad

    sides = torch.tensor([float(process), -float(process), -5.0])
    assert torch.equal(all_reduce_max(sides), torch.tensor([1.0, 0.0, -5.0]))
    assert torch.equal(sides, torch.tensor([float(process), -float(process), -5.0]))

    assert any_true(process == 0, process == 1, False, True) == [True, True, False, True]
    assert [all_true(True), all_true(process == 0), all_true(process == 1), all_true(False)] == [
        True,
        False,
        False,
        False,
    ]
    assert broadcast_text(f"outputs/run-{process}") == "outputs/run-0"

    own, matrix = rows()[4 * process : 4 * process + 4], weight()
    gathered = gather_rows(own @ matrix)
    loss = loss_of(gathered)
    loss.backward()
    expected_matrix = weight()
    expected = loss_of(rows() @ expected_matrix)
    expected.backward()
    averaged = all_reduce_sum(matrix.grad) / 2  # what data parallel does
    assert torch.allclose(gathered, rows() @ weight(), rtol=1e-12, atol=1e-12)
    assert torch.allclose(loss, expected, rtol=1e-12, atol=0)
    assert torch.allclose(averaged, expected_matrix.grad, rtol=1e-10, atol=1e-10)

    scattered = torch.randn(
        3, 4
    ).T.requires_grad_()  # not contiguous, and each process uses only the other's rows
    other = gather_rows(scattered)[4 * (1 - process) : 4 * (1 - process) + 4]
    (other * (process + 1)).sum().backward()
    assert torch.equal(scattered.grad, torch.full((4, 3), float(2 - process)))
    dist.destroy_process_group()


def test_two_processes_equal_one(runs):
    runs.finish(*runs.start_two(Path(__file__)))


def test_before_the_processes_join_the_launcher_says_which_is_first(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_first_launched()
    for number, first in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", number)
        assert is_first_launched() == first


def test_without_a_process_group_nothing_changes():
    assert (rank(), world_size(), is_main_process()) == (0, 1, True)
    features = rows().requires_grad_()
    assert gather_rows(features) is features
    assert torch.equal(all_reduce_sum(features), features) and not all_reduce_sum(features).requires_grad
    assert torch.equal(all_reduce_max(features), features) and not all_reduce_max(features).requires_grad
    assert all_true(True) and not all_true(False)
    assert any_true(True, False) == [True, False]
    assert broadcast_text("here") == "here"


def test_a_gradient_that_stays_on_its_process_would_be_noticed():
    """The reference loss tells a gather with gradient from one without: the other half's part is
    not zero."""
    matrix, whole = weight(), weight()
    loss_of(torch.cat([rows()[:4] @ matrix, (rows()[4:] @ matrix).detach()])).backward()
    loss_of(rows() @ whole).backward()
    assert not torch.allclose(matrix.grad, whole.grad, rtol=1e-3, atol=1e-3)


def test_processes_share_the_cores(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
        for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"):
            monkeypatch.setenv(name, "")  # so that it is put back as it was, share_cores sets one
            monkeypatch.delenv(name)
        torch.set_num_threads(3)
        share_cores()
        assert torch.get_num_threads() == 3  # alone
        monkeypatch.setenv("WORLD_SIZE", "16")
        monkeypatch.setenv("LOCAL_SIZE", "4")  # as deepspeed says it
        share_cores()
        assert torch.get_num_threads() == 2 and os.environ["OMP_NUM_THREADS"] == "2"
        torch.set_num_threads(1)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        share_cores()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    check_on_one_of_two_processes()
