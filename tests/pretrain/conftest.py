"""SigLIP and MAE as users start them, in processes of their own that are forked from one server (`fork_server.py`)."""

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
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SERVER = Path(__file__).with_name("fork_server.py")
CLOCKS = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
EVAL_CLOCKS = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


class Run:
    """One process of a run, and what it printed."""

    def __init__(self, pid: int, log: Path, ask) -> None:
        self.pid, self.log, self.ask, self.status = pid, log, ask, None

    def wait(self) -> int:
        """The exit status; negative: the signal that ended it."""
        if self.status is None:
            self.status = self.ask({"wait": self.pid})
        return self.status

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait_for(self, file: Path, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not file.exists():
            assert time.monotonic() < deadline and Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][0] != "Z", self.printed
            time.sleep(0.002)

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Runs:
    """`start(script, *arguments)`, `start_two`, `finish`; scripts by name, options as on the command line."""

    def __init__(self, orders, answers, folder: Path) -> None:
        self.orders, self.answers, self.folder, self.started = orders, answers, folder, []

    def ask(self, order: dict) -> int:
        print(json.dumps(order), file=self.orders, flush=True)
        return json.loads(self.answers.readline())

    def start(self, script: str, *arguments, environment: dict[str, str] | None = None) -> Run:
        log = self.folder / f"{len(self.started)}.log"
        words = [str(each) for each in arguments]
        pid = self.ask({"script": script, "arguments": words, "environment": environment or {}, "log": str(log)})
        self.started.append(Run(pid, log, self.ask))
        return self.started[-1]

    def start_two(self, script: str, *arguments) -> list[Run]:
        """The processes of one job, with the environment that torchrun gives its own."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
        }
        return [self.start(script, *arguments, environment=common | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]

    def finish(self, *runs: Run, expect: int = 0) -> str:
        """What the first printed, once all are through."""
        assert {run.wait() for run in runs} == {expect}, "\n".join(run.printed[-3000:] for run in runs)
        return runs[0].printed

    def error(self, script: str, *arguments) -> str:
        """The one line that a mistake ends with."""
        printed = self.finish(self.start(script, *arguments), expect=2)
        lines = [line for line in printed.replace("\r", "\n").splitlines() if line.strip()]
        assert "Traceback" not in printed and [line for line in lines if line.startswith("error: ")] == lines[-1:], printed
        return lines[-1]


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    answers, written = os.pipe()
    command = [sys.executable, str(SERVER), str(written)]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[written], text=True)
    os.close(written)
    runs = Runs(server.stdin, os.fdopen(answers), tmp_path_factory.mktemp("runs"))
    yield runs
    for run in runs.started:
        if run.status is None:
            run.kill()
    server.stdin.close()
    server.wait(30)


@pytest.fixture(scope="session")
def metrics():
    def metrics(folder: Path) -> list[dict]:
        """metrics.jsonl without what depends on the clock. JSON holds every float exactly."""
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines = [{name: value for name, value in line.items() if name not in (*CLOCKS, *EVAL_CLOCKS)} for line in lines]
        return [line for line in lines if "train_loss" not in line]  # the mean since the last start

    return metrics


@pytest.fixture(scope="session")
def same(metrics):
    def same(ours: Path, theirs: Path) -> None:
        """Every logged number and every byte of the weights are equal."""
        assert metrics(ours) == metrics(theirs)
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        assert all(torch.isfinite(tensor).all() for tensor in load_file(ours / "model.safetensors").values())

    return same


@pytest.fixture(scope="session")
def snippet():
    def snippet(card: Path, picture: Path) -> dict:
        """The names that the card's code leaves behind when it is run on its folder and a picture."""
        text = card.read_text()
        code = text[text.index("```python\n") + 10 :].partition("```")[0]
        names: dict = {}
        exec(code.replace("path/to/this/folder", str(card.parent)).replace("image.jpg", str(picture)), names)
        return names

    return snippet
