"""What holds for every test: no network, and pictures without a display, set before any test
imports the libraries that read it.

And scripts as users start them, in processes of their own: `runs.start` forks them from one server
(`fork_server.py`), `runs.start_plain` from another that knows nothing of this project,
`runs.launch` goes through an interpreter or a launcher.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker takes its share of the cores; runs have one thread each
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
    )

import torch  # reads OMP_NUM_THREADS
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
MARK = "TEST_RUN_LOG"
# The environment's own programs first: deepspeed compiles with ninja, and compiles again when it
# meets another ninja.
ALIKE = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


class Run:
    """A run in a session of its own, with what it printed and what it wrote."""

    def __init__(self, pid: int, poll: Callable[[], int | None], arguments: list[str], log: Path) -> None:
        self.pid, self._poll, self.arguments, self.log, self.status = (pid, poll, arguments, log, None)

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it lives."""
        if self.status is None:
            self.status = self._poll()
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
            assert self.poll() is None and time.monotonic() < deadline, (
                f"status {self.status}:\n{self.printed}"
            )
            time.sleep(0.002)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: last_step(self.folder) >= step)

    def kill(self) -> None:
        """kill -9 of everything at once, like a machine that stops."""
        kill(self)

    def processes(self) -> list[int]:
        """Everything that lives of the run: in its session, or, as torchrun puts its ranks into
        others, with its mark."""
        return [
            pid
            for pid, fields in _processes()
            if fields[0] != "Z" and (int(fields[3]) == self.pid or self._has_mark(pid))
        ]

    def _has_mark(self, pid: int) -> bool:
        try:
            return f"{MARK}={self.log}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def children(self) -> list[int]:
        """The living children of the run's first process."""
        return [pid for pid, fields in _processes() if int(fields[1]) == self.pid and fields[0] != "Z"]

    def kill_a_child(self) -> bool:
        """kill -9 of one child of the first process; False where there is none just now, as between
        two epochs."""
        for pid in self.children()[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    @property
    def folder(self) -> Path:
        return Path(self.arguments[self.arguments.index("--output_dir") + 1])

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace")


def kill(*runs: Run) -> None:
    """kill -9 of everything of all of them at once, like a machine that stops."""
    for pid in [pid for run in runs for pid in run.processes()]:
        with suppress(ProcessLookupError):  # a data worker goes with its parent
            os.kill(pid, signal.SIGKILL)
    for run in runs:
        run.wait(10)


def _processes():
    """(process id, fields of /proc/<pid>/stat from the third on: state, parent, group, session,
    ...)"""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            yield int(path.parent.name), path.read_text().rpartition(")")[2].split()
        except OSError:
            continue


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def last_step(folder: Path) -> int:
    """The last step in metrics.jsonl, 0 without one; the last line may be in the middle of being
    written."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


class Runs:
    """`start`, `start_two`, `start_plain`, `launch`, `finish`, `error`; scripts by their path in
    the repository, options as on the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started, self.servers = folder, [], {}

    def start(
        self,
        script: str | Path,
        *arguments,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> Run:
        """Forked; in `folder`, where it is given. A file of tests is given as a Path."""
        return self._fork(
            "scripts",
            "file" if isinstance(script, Path) else "script",
            script,
            arguments,
            environment,
            folder,
        )

    def start_plain(
        self,
        code: str | Path,
        *arguments,
        project: bool = False,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> Run:
        """Code, or a file, where the libraries are imported and this project is not, nor is it
        installed: a file has to find it, code does with `project`.

        Forked, with as many threads as here, for the same bits.
        """
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        kind = "file" if isinstance(code, Path) else "code"
        return self._fork(
            "libraries",
            kind,
            code,
            arguments,
            threads | (environment or {}),
            folder,
            str(ROOT) if project else "",
        )

    def start_two(
        self, script: str | Path, *arguments, folders: tuple[Path | None, Path | None] = (None, None)
    ) -> list[Run]:
        """The processes of one job, forked, with the environment that torchrun gives its own; each
        in its folder of `folders`, as on two machines."""
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
        }
        if "--deepspeed" not in arguments:
            common["ACCELERATE_USE_CPU"] = "true"  # under which accelerate takes no DeepSpeed
        ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        return [
            self.start(script, *arguments, environment=rank, folder=folder)
            for rank, folder in zip(ranks, folders, strict=True)
        ]

    def launch(
        self,
        launcher: list[str],
        script: str | Path,
        *arguments,
        environment: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> Run:
        """As a user does, from another folder: by the interpreter, or by a launcher, whose words
        come first; `python -m` takes a module's name."""
        log, words = self._log(), list(map(str, arguments))
        given = os.environ | ALIKE | {MARK: str(log)} | (environment or {})
        with log.open("wb") as file:
            command = [*launcher, script if launcher[-1] == "-m" else str(ROOT / script), *words]
            process = subprocess.Popen(
                command,
                cwd=folder or self.folder,
                env=given,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        return self._begun(Run(process.pid, process.poll, words, log))

    def deepspeed(self, processes: int = 2) -> list[str]:
        """The words of deepspeed's launcher, at a port of its own: by default all jobs of a machine
        meet at 29500."""
        program = str(Path(sys.executable).with_name("deepspeed"))
        return [program, "--num_gpus", str(processes), "--master_port", str(free_port())]

    def finish(self, *runs: Run, expect: int = 0, seconds: float = 240) -> str:
        """What the first printed, once all are through. Of several processes, those that wait for
        one that has failed are killed."""
        deadline = time.monotonic() + seconds
        while (
            None in (found := [run.poll() for run in runs])
            and set(found) <= {None, expect}
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        if set(found) != {expect}:
            kill(*runs)
            raise AssertionError(
                f"statuses {found} (None: not through)\n" + "\n".join(run.printed[-3000:] for run in runs)
            )
        self.started = [
            run for run in self.started if run not in runs
        ]  # their process ids may soon be those of others
        return runs[0].printed

    def error(self, script: str, *arguments, folder: Path | None = None) -> str:
        """The one line that a mistake ends with."""
        printed = self.finish(self.start(script, *arguments, folder=folder), expect=2)
        lines = [line for line in printed.replace("\r", "\n").splitlines() if line.strip()]
        assert (
            "Traceback" not in printed
            and [line for line in lines if line.startswith("error: ")] == lines[-1:]
        ), printed
        return lines[-1]

    def kill(self, *chosen: Run) -> None:
        """kill -9 of everything of all of them at once, like a machine that stops; without any, of
        whatever is left of all that was started."""
        kill(*(chosen or self.started))
        self.started = [run for run in self.started if run not in (chosen or self.started)]

    def stop(self) -> None:
        self.kill()
        for server in self.servers.values():
            server.stop()

    def _log(self) -> Path:
        log = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"
        log.touch()
        return log

    def _begun(self, run: Run) -> Run:
        self.started.append(run)
        return run

    def _fork(
        self,
        imports: str,
        kind: str,
        what: str | Path,
        arguments,
        environment: dict[str, str] | None,
        folder: Path | None,
        path="",
    ) -> Run:
        if imports not in self.servers:
            self.servers[imports] = Server(imports, self.folder)
        server, log, words = self.servers[imports], self._log(), list(map(str, arguments))
        order = {
            "kind": kind,
            "what": str(what),
            "arguments": words,
            "path": str(what.parent) if kind == "file" else path,
        }
        pid = server.ask(
            order | {"environment": environment or {}, "folder": str(folder or self.folder), "log": str(log)}
        )
        return self._begun(Run(pid, lambda: server.ask({"poll": pid}), words, log))


class Server:
    """`fork_server.py` with what it is to import first, "scripts" or "libraries"."""

    def __init__(self, imports: str, folder: Path) -> None:
        plain = imports == "libraries"  # -S leaves out .pth files and with them an editable install
        environment = (
            os.environ
            | ALIKE
            | {
                "PYTHONPATH": sysconfig.get_path("purelib") if plain else str(ROOT),
                "CUDA_VISIBLE_DEVICES": "",
            }
        )
        environment["HF_MODULES_CACHE"] = str(
            folder / "modules"
        )  # where transformers copies code that comes with a model
        answers, written = os.pipe()
        command = [
            sys.executable,
            *["-S"] * plain,
            str(Path(__file__).with_name("fork_server.py")),
            imports,
            str(written),
        ]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[written],
            text=True,
        )
        os.close(written)
        self.answers = os.fdopen(answers)

    def ask(self, order: dict) -> int | None:
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self.answers.readline()
        assert answer, f"the server of the tests' runs has ended with status {self.process.wait(10)}"
        return json.loads(answer)

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(autouse=True, scope="module")
def a_new_state_of_accelerate():
    """accelerate keeps the precision of the first trainer of a process, and refuses another; a file
    of tests leaves none behind."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.stop()


@pytest.fixture(scope="session")
def logged():
    def logged(folder: Path, name: str = "loss") -> torch.Tensor:
        """All values of one name in metrics.jsonl."""
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return torch.tensor([line[name] for line in lines if name in line], dtype=torch.float64)

    return logged


@pytest.fixture(scope="session")
def weights():
    """All tensors of the safetensors files of a folder, by name."""

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        tensors = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(file)
        return tensors

    return weights


@pytest.fixture(scope="session", name="last_step")
def _last_step():
    return last_step
