import subprocess
import sys
from pathlib import Path

import pytest

from vision_core.errors import UserError, run_script

ROOT = Path(__file__).resolve().parents[2]


def test_user_error_becomes_one_line_and_status_2(capsys):
    def main():
        raise UserError("no images under x: give --dataset")

    with pytest.raises(SystemExit) as caught:
        run_script(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no images under x: give --dataset\n"


def test_an_error_of_a_data_worker_is_its_last_line(capsys):
    def main():
        trace = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  File ...\n"
        raise UserError(f"{trace}vision_core.errors.UserError: too many unreadable images: raise --max_bad\n")

    with pytest.raises(SystemExit):
        run_script(main)
    assert capsys.readouterr().err == "error: too many unreadable images: raise --max_bad\n"


def test_the_line_of_an_error_is_the_last_one_of_a_log_file():
    """Where stdout is a file it waits in memory, and stderr does not."""
    code = (
        "from vision_core.errors import UserError, run_script\ndef main():\n print('step 1')\n raise "
        "UserError('no')\nrun_script(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert (done.returncode, done.stdout) == (2, "step 1\nerror: no\n")


def test_an_error_without_words_is_said_too(capsys):
    def main():
        raise UserError("")

    with pytest.raises(SystemExit):
        run_script(main)
    assert capsys.readouterr().err == "error: no reason given\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)


def test_a_script_that_ends_well_returns():
    assert run_script(lambda: None) is None
    assert issubclass(UserError, ValueError)
