"""What one of two processes meets alone, under each launcher and on a disk of its own.

`tests/vision_core/processes/test_fail_together.py` has the rest.
"""

import json
import resource
import sys
import time
from pathlib import Path

import pytest

from fusion.training.small_default import write_small_default

ROOT = Path(__file__).parents[2]
SFT = "recipes/sva_sft.py"
ZERO2 = ("--deepspeed", ROOT / "recipes" / "zero" / "zero2.json")
# several processes of accelerate's are torchrun's
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """talk(absent image's row) -> the words of a run on 16 rows."""
    folder = tmp_path_factory.mktemp("talk")
    write_small_default(folder / "model", ["question answer yes 0 1 2 3 4 5 6 7 8 9"] * 9, seed=0)

    def talk(absent=None):
        turns = [{"from": "human", "value": "question"}, {"from": "gpt", "value": "yes"}]
        rows = [{"conversations": turns} for _ in range(16)]
        if absent is not None:
            rows[absent] = {
                "image": "absent.png",
                "conversations": [{"from": "human", "value": "<image>\nquestion"}, turns[1]],
            }
        (folder / f"{absent}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        given = (
            "--init_from",
            folder / "model",
            "--conversations",
            f"llava:{folder / f'{absent}.jsonl'}",
            "--eval_conversations",
            "[]",
        )
        return (*given, "--per_device_train_batch_size", 1, "--num_train_epochs", 100)

    return talk


@pytest.mark.parametrize("name", ["accelerate", "deepspeed"])
def test_all_of_a_job_ends_in_the_words_of_the_process_that_met_it(runs, talk, tmp_path, name):
    """One row of 16 names an image that is not there; the launcher's own report comes first."""
    more = ZERO2 if name == "deepspeed" else ()
    environment = {"DS_ACCELERATOR": "cpu"} if more else {"ACCELERATE_USE_CPU": "true"}
    run = runs.launch(
        runs.deepspeed() if name == "deepspeed" else ACCELERATE,
        SFT,
        *talk(absent=3),
        *more,
        "--output_dir",
        tmp_path / "run",
        environment=environment,
    )
    run.wait_until(lambda: "error: " in run.printed, seconds=150)
    began = time.monotonic()
    while run.processes() and time.monotonic() < began + 40:
        run.poll()
        time.sleep(0.05)
    assert not run.processes() and run.poll() not in (0, None), run.printed[-3000:]
    print(f"{name}: all of the job gone {time.monotonic() - began:.1f} s after the line")
    lines = [line for line in run.printed.replace("\r", "\n").splitlines() if line.strip()]
    assert lines[-1].startswith("error: ") and "absent.png cannot be read" in lines[-1]
    assert not any(words in run.printed for words in ("Connection closed by peer", "Exception raised from"))


def test_a_disk_that_is_full_for_one_process(runs, talk, tmp_path):
    """Under ZeRO each process writes its own share of a checkpoint. What was saved before is whole,
    and goes on."""
    words = (*talk(), *ZERO2, "--output_dir", tmp_path / "run", "--save_steps", 1)
    ranks = runs.start_two(SFT, *words)
    ranks[1].wait_until((tmp_path / "run" / "checkpoint-2" / "MANIFEST.json").exists)
    resource.prlimit(ranks[1].pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    limited = time.monotonic()
    while None in [rank.poll() for rank in ranks]:
        assert time.monotonic() < limited + 60, [rank.printed[-2000:] for rank in ranks]
        time.sleep(0.02)
    assert 0 not in [rank.poll() for rank in ranks]
    print(f"a full disk of process 1: both ended {time.monotonic() - limited:.1f} s later")
    runs.finish(*runs.start_two(SFT, *words, "--max_steps", 6, "--resume_from_checkpoint", "true"))
