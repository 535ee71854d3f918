"""Real runs of `pretrain/dinov2.py` in processes of their own, for tests that hurt them from outside.

`start(...)` forks this process, which has imported everything already: a start costs a tenth of a second instead of ten.
`launch(...)` goes through a real launcher. Both give a `Run` whose whole session is killed after the test.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch._dynamo  # noqa: F401  the optimizer imports it, once here instead of once in every run
from safetensors.torch import load_file

from pretrain import dinov2
from vision_core.errors import run_script

SCRIPT = Path(dinov2.__file__)
MARK = "FAULT_TEST_LOG"
SPEEDS = ("images_per_second", "data_wait")
CONFIG = """
dataset: scenes?size=32&count=200
eval_dataset: none
global_crop_size: [32]
local_crop_size: [16]
num_local_crops: 2
patch_size: 8
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 2
num_prototypes: 32
head_hidden_dim: 32
head_bottleneck_dim: 16
drop_path_rate: 0.3
centering: softmax
mixed_precision: "no"
per_device_train_batch_size: 8
dataloader_num_workers: 2
max_steps: 60
warmup_steps: 2
logging_steps: 1
health_steps: 15
save_steps: 5
save_total_limit: 2
num_cpu_threads: 1
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.fault)


class Run:
    """A run in a session of its own, with what it printed and what it wrote."""

    def __init__(self, pid: int, folder: Path, log: Path) -> None:
        self.pid, self.folder, self.log = pid, folder, log
        self.started, self.status = time.monotonic(), None

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it lives."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def wait(self, seconds: float = 120) -> int:
        """The exit status; fails with the run's output when it takes longer."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < deadline, f"still there after {seconds} s:\n{self.printed}"
            time.sleep(0.02)
        return self.status

    def wait_until(self, condition, seconds: float = 60) -> None:
        """Until `condition()`; fails when the run ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.poll() is None and time.monotonic() < deadline, f"status {self.status}:\n{self.printed}"
            time.sleep(0.002)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: last_step(self.folder) >= step)

    def kill(self) -> None:
        """kill -9 of everything at once, like a machine that stops."""
        for pid in self.processes():
            with suppress(ProcessLookupError):  # a data worker goes with its parent
                os.kill(pid, signal.SIGKILL)
        self.wait(10)

    def processes(self) -> list[int]:
        """Everything that lives of the run: in its session, or, as torchrun puts its ranks into others, with its mark."""
        return [pid for pid, fields in _processes() if fields[0] != "Z" and (int(fields[3]) == self.pid or self._has_mark(pid))]

    def _has_mark(self, pid: int) -> bool:
        try:
            return f"{MARK}={self.log}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def children(self) -> list[int]:
        """The living children of the run's first process."""
        return [pid for pid, fields in _processes() if int(fields[1]) == self.pid and fields[0] != "Z"]

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace")


def _processes():
    """(process id, fields of /proc/<pid>/stat from the third on: state, parent, group, session, ...)"""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield int(path.parent.name), path.read_text().rpartition(")")[2].split()
        except OSError:
            continue


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "fault.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def _runs():
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.kill()


@pytest.fixture(scope="session")
def fork(config):
    """fork(log, folder, *options, environment={}) -> Run, of which the caller takes care."""
    torch.set_num_threads(1)  # a process that has run OpenMP threads cannot be forked and run them again

    def fork(log: Path, folder: Path, *options, environment: dict[str, str] | None = None) -> Run:
        log.touch()
        sys.stdout.flush(), sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment or {})
            _be_the_script(log, config, folder, options)
        return Run(pid, folder, log)

    return fork


@pytest.fixture
def start(fork, tmp_path, _runs):
    """start(folder, *options) -> Run, forked."""

    def start(folder: Path, *options) -> Run:
        _runs.append(fork(tmp_path / f"{len(_runs)}.log", folder, *options))
        return _runs[-1]

    return start


@pytest.fixture
def start_two(fork, tmp_path, _runs):
    """start_two(folder, *options) -> two Runs, the ranks of one job, forked; with the environment that torchrun gives its own."""

    def start_two(folder: Path, *options) -> list[Run]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        for rank in ("0", "1"):
            environment = common | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            _runs.append(fork(tmp_path / f"{len(_runs)}.log", folder, *options, environment=environment))
        return _runs[-2:]

    return start_two


def _be_the_script(log: Path, config: Path, folder: Path, options) -> None:
    status = 1
    try:
        os.setsid()
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = [str(SCRIPT), "--config", str(config), "--output_dir", str(folder), *map(str, options)]
        run_script(dinov2.main)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


@pytest.fixture
def launch(config, tmp_path, _runs):
    """launch(launcher's words, folder, *options) -> Run, started as a user does."""

    def launch(launcher: list[str], folder: Path, *options) -> Run:
        log = tmp_path / f"{len(_runs)}.log"
        command = [*launcher, str(SCRIPT), "--config", str(config), "--output_dir", str(folder), *map(str, options)]
        environment = {**os.environ, MARK: str(log), "ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        with open(log, "wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        _runs.append(Run(process.pid, folder, log))
        process.returncode = 0  # Run waits for it
        return _runs[-1]

    return launch


@pytest.fixture(scope="session")
def same():
    """same(a, b): every logged number and every byte of both runs' last checkpoints are equal."""

    def same(ours: Path, theirs: Path) -> None:
        assert metrics(ours) == metrics(theirs)
        newest = f"checkpoint-{last_step(theirs)}"
        for name in ("model", "heads", "student", "optimizer"):
            ours_file, theirs_file = (folder / newest / f"{name}.safetensors" for folder in (ours, theirs))
            assert ours_file.read_bytes() == theirs_file.read_bytes(), name
            assert all(tensor.isfinite().all() for tensor in load_file(ours_file).values()), name

    return same


@pytest.fixture(scope="session")
def whole(fork, tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run = fork(folder.parent / "log", folder)
    assert run.wait() == 0, run.printed
    return folder


def metrics(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock. JSON holds every float exactly."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEEDS} for line in lines]


def last_step(folder: Path) -> int:
    """The last step in metrics.jsonl, 0 without one; the last line may be in the middle of being written."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


@pytest.fixture(scope="session", name="metrics")
def _metrics():
    return metrics


@pytest.fixture(scope="session", name="last_step")
def _last_step():
    return last_step
