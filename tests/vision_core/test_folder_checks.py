"""Looks at a run's folder before minutes are spent: they refuse what `RunFolder.open` would refuse, and change nothing."""

from pathlib import Path

import pytest

from vision_core.checkpoints import write_checkpoint
from vision_core.errors import UserError
from vision_core.folder_checks import changed_keys, check_folder, checkpoint_ahead
from vision_core.run_folder import RunFolder

CONFIG = "learning_rate: 0.001\n"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def old_run() -> None:
    run = RunFolder.open("run", "dinov2", CONFIG)
    for step in (10, 20):
        write_checkpoint(run.path, step, lambda aside: (aside / "state.bin").write_bytes(bytes(100)), keep=None)
    run.close()


def refusal(output_dir: str | None, resume: bool | str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        RunFolder.open(output_dir, "dinov2", CONFIG, resume)
    return str(caught.value)


def test_changed_keys():
    assert changed_keys("a: 1\nb: [1, 2]", "b: [1, 2]\na: 1") == {}
    assert changed_keys("a: 1", "b: null") == {"a": (1, "(absent)"), "b": ("(absent)", None)}
    assert changed_keys("resume_from_checkpoint: null", "resume_from_checkpoint: 'true'") == {}
    assert changed_keys("", "a: 1") == {"a": ("(absent)", 1)}
    for text in ("a: [", "- a"):
        with pytest.raises(UserError, match="config.yaml of the run"):
            changed_keys(text, "a: 1")


def test_a_check_refuses_what_would_be_refused_and_makes_nothing():
    old_run()
    Path("file").touch()
    for arguments in (("run",), ("file/run",), ("absent", True), (None, True), ("run", "run/checkpoint-7"), (None, "absent/checkpoint-7")):
        with pytest.raises(UserError) as checked:
            check_folder(arguments[0], "dinov2", *arguments[1:])
        assert str(checked.value)[:20] == refusal(*arguments)[:20]
    before = sorted(Path().rglob("*"))
    assert check_folder("new/run", "dinov2") is None and check_folder(None, "dinov2") is None
    assert check_folder("run", "dinov2", True) == Path("run/checkpoint-20")
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("damage", ["cut", "without a manifest"])
def test_the_checkpoint_that_lies_ahead_is_a_whole_one(damage):
    """`true` and `auto` take the one before it; the one that is asked for by its name is refused, and the bad file is
    named.
    """
    old_run()
    whole, damaged = Path("run/checkpoint-10"), Path("run/checkpoint-20")
    bad = damaged / ("state.bin" if damage == "cut" else "MANIFEST.json")
    bad.write_bytes(b"") if damage == "cut" else bad.unlink()
    assert checkpoint_ahead("run", "true") == checkpoint_ahead("run", "auto") == checkpoint_ahead(None, str(whole)) == whole
    assert checkpoint_ahead("run", None) is None and checkpoint_ahead(None, "run/checkpoint-7") is None
    with pytest.raises(UserError, match=f"{damaged} is no whole checkpoint: {bad.name}"):
        checkpoint_ahead(None, str(damaged))


def test_the_folder_may_be_named_by_another_path():
    """Where a run is and how it is started are not what it is."""
    old, new = "output_dir: outputs/a\ngrace_seconds: 30\nseed: 0\n", "output_dir: /data/outputs/a\ngrace_seconds: 60\nseed: 1\n"
    assert changed_keys(old, new) == {"seed": (0, 1)}
