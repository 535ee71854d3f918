import pytest

from vision_core.errors import UserError, run_script


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
