"""Signals as a flag; the launchers above a process. tests/fault plays the rest through with real launchers."""

import os
import signal
import subprocess
import sys

import pytest

from vision_core import stopping
from vision_core.errors import StoppedBeforeTraining, run_script, undo_if_failed
from vision_core.stopping import StopRequest


def test_a_signal_is_remembered_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest([]) as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed() and stop.exit_status == 143
        os.kill(os.getpid(), signal.SIGINT)  # the first one gives the status
        assert stop.exit_status == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("number, status", [(signal.SIGUSR1, 138), (signal.SIGUSR2, 140)])
def test_a_schedulers_warning_is_a_stop_request(number, status):
    """Without a handler it would end the process at once."""
    with StopRequest([]) as stop:
        assert stop.time_taken == ""
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # the scheduler's next word, at the time limit
        assert stop.agreed() and stop.exit_status == status
        assert stop.time_taken.endswith(f" s after {number.name})")


def test_a_second_ctrl_c_is_obeyed_at_once():
    with StopRequest([]) as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed() and stop.exit_status == 130
        os.kill(os.getpid(), signal.SIGINT)


def test_a_step_is_broken_off_only_where_it_and_a_save_outlast_the_grace_time(monkeypatch):
    """And nobody is asked between micro-batches of any other run."""
    asked: list[tuple[bool, ...]] = []
    monkeypatch.setattr(stopping, "any_true", lambda *flags: (asked.append(flags), list(flags))[1])
    with StopRequest([], grace_seconds=10.0) as stop:
        stop.step_took(6.0)
        stop.save_took(3.0, print)
        assert not stop.agreed_at_step_end(can_break_off=True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.breaks_off() and len(asked) == 1
        stop.step_took(8.0)
        assert not stop.breaks_off() and stop.agreed_at_step_end(can_break_off=False)
        assert not stop.breaks_off() and len(asked) == 2
        assert stop.agreed_at_step_end(can_break_off=True) and stop.breaks_off() and len(asked) == 4


@pytest.mark.parametrize("number, status", [(signal.SIGUSR1, 138), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_program_that_gets_ready_is_left_at_once_and_what_it_made_is_taken_back(number, status, capsys):
    done: list[str] = []

    def main():
        with StopRequest([], getting_ready=True):
            undo_if_failed(lambda: done.append("taken back"))
            os.kill(os.getpid(), number)
            done.append("more work")

    with pytest.raises(StoppedBeforeTraining) as end:
        run_script(main)
    assert end.value.code == status and done == ["taken back"]
    said = f"told to stop by {number.name} before the first step: nothing had to be saved; the same command starts again\n"
    assert capsys.readouterr().out == said


def test_a_signal_that_a_library_swallowed_is_obeyed_when_training_begins_and_a_later_one_is_remembered():
    with StopRequest([], getting_ready=True) as stop, pytest.raises(StoppedBeforeTraining, match="143"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            os.kill(os.getpid(), signal.SIGUSR1)  # does not disturb whoever leaves
        stop.training_begins()
    with StopRequest([], getting_ready=True) as stop:
        stop.training_begins()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.agreed() and stop.exit_status == 138


@pytest.mark.skipif(sys.platform != "linux", reason="there is /proc on Linux only")
@pytest.mark.parametrize("name, expected", [("torchrun", 1), ("torch.distributed.run", 1), ("my_launcher", 0)])
def test_launchers_are_found_among_the_ancestors(name, expected):
    """A parent with a launcher's name on its command line starts a child; the child says how many launchers it sees."""
    child = "from vision_core.launchers import launchers_above; print(len(launchers_above()))"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    result = subprocess.run([sys.executable, "-c", parent, name], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == str(expected)
