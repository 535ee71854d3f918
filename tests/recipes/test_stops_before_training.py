"""Real programs that are told to stop while they get ready: they leave within seconds, with the
words and the status of a stop, and train nothing.
"""

import os
import signal

import pytest

SFT = (
    "recipes/sva_sft.py",
    "--conversations",
    "scenes?count=3000",
    "--eval_conversations",
    "[]",
    "--max_steps",
    2,
)
# each takes long to get ready
DINOV2 = (
    "pretrain/dinov2.py",
    "--dataset",
    "scenes?size=32&count=64",
    "--eval_dataset",
    "scenes?size=32&count=30000&split=held_out",
    "--knn_bank_size",
    20000,
)
IMAGES = (
    "--dataset",
    "scenes?size=64&count=20000",
    "--eval_dataset",
    "none",
    "--per_device_train_batch_size",
    20000,
)
SECONDS = 8.0


def last_line(printed: str) -> str:
    """Progress bars write over themselves."""
    return printed.replace("\r", "\n").strip().splitlines()[-1].strip()


def words(number: signal.Signals) -> str:
    return (
        f"told to stop by {number.name} before the first step: nothing had to be saved; the same command "
        "starts again"
    )


@pytest.mark.timeout(280)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_while_the_cache_of_features_is_filled(number, status, runs, text_given, tmp_path):
    """What was made stays, and the same command makes the rest."""
    folder = tmp_path / "run"
    cache = tmp_path / "cache"
    command = (
        *SFT,
        "--init_from",
        text_given / "model",
        "--feature_cache",
        cache,
        "--output_dir",
        folder,
        "--resume_from_checkpoint",
        "auto",
    )
    run = runs.start(*command)
    run.wait_until(lambda: len(list(cache.rglob("*.safetensors"))) > 50)
    os.kill(run.pid, number)
    printed = runs.finish(run, expect=status, seconds=SECONDS)
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert len(made) < 1500 and not folder.exists()
    assert last_line(printed) == words(number) and "Traceback" not in printed
    again = runs.start(*command)
    again.wait_until(lambda: len(list(cache.rglob("*.safetensors"))) > len(made) + 50)
    os.kill(again.pid, number)
    runs.finish(again, expect=status, seconds=SECONDS)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert not list(cache.rglob(".tmp-*"))


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "command",
    [DINOV2, ("pretrain/siglip.py", *IMAGES), ("pretrain/mae.py", *IMAGES)],
    ids=["dinov2", "siglip", "mae"],
)
def test_while_images_are_read(command, runs, tmp_path):
    """dinov2 reads those that it is judged by, the others their first batch, which is a large
    one."""
    folder = tmp_path / "run"
    run = runs.start(*command, "--max_steps", 1, "--output_dir", folder)
    run.wait_until(lambda: "reading images to judge by" in run.printed or "what trains:" in run.printed)
    os.kill(run.pid, signal.SIGUSR1)
    printed = runs.finish(run, expect=138, seconds=SECONDS)
    assert last_line(printed) == words(signal.SIGUSR1) and "Traceback" not in printed
    assert not folder.exists(), "a new run in which nothing was done leaves no folder"


@pytest.mark.timeout(200)
@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)], ids=str)
def test_of_two_processes_any_that_is_told_ends_both(told, runs, tmp_path):
    folder = tmp_path / "run"
    both = runs.start_two("pretrain/mae.py", *IMAGES[:-1], 10000, "--max_steps", 1, "--output_dir", folder)
    both[0].wait_until(lambda: "what trains:" in both[0].printed)
    for number in told:
        os.kill(both[number].pid, signal.SIGTERM)
    printed = runs.finish(*both, expect=143, seconds=2 * SECONDS)
    assert "Traceback" not in printed + both[1].printed and printed.count("told to stop by SIGTERM") == (
        0 in told
    )
    assert not folder.exists()
