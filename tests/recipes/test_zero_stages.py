"""The promises under ZeRO's stages, with LoRA and accumulated batches: two processes are one, and a
kill inside a save changes no bit.

Each run leaves what proves that it was one of DeepSpeed's. The runs that are killed start through
the deepspeed launcher, as users start them, once for each stage.
"""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SFT = "recipes/sva_sft.py"
ATTEMPTS = 4
slow = pytest.mark.slow


def is_saving(run):
    """Whether a checkpoint of this run is being written: its folder, under whichever name, has no
    manifest yet."""
    folders = [*run.glob("checkpoint-*"), *run.glob(".tmp-*")]
    return any(folder.is_dir() and not (folder / "MANIFEST.json").exists() for folder in folders)


def killed_inside_a_save(runs, start, folder):
    """Starts the run until a kill of everything has hit a save behind the first one."""
    for attempt in range(ATTEMPTS):
        processes = start(folder, "--resume_from_checkpoint", "true" if attempt else "none")
        processes[0].wait_until(
            lambda: any(folder.glob("checkpoint-*/MANIFEST.json")) and is_saving(folder), seconds=200
        )
        runs.kill(*processes)
        if is_saving(folder):
            return
    pytest.fail(f"{ATTEMPTS} kills came behind the save")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("stage", "way"),
    [
        pytest.param(1, "forked", id="1"),
        pytest.param(1, "launched", id="1-launched", marks=slow),
        pytest.param(2, "launched", id="2-launched", marks=slow),
        pytest.param(3, "launched", id="3-launched", marks=slow),
        pytest.param(1, "lora", id="1-lora", marks=slow),
        pytest.param(2, "lora", id="2-lora", marks=slow),
        pytest.param(3, "lora", id="3-lora", marks=slow),
    ],
)
def test_two_processes_are_one_and_a_kill_inside_a_save_changes_no_bit(
    stage, way, runs, logged, weights, zero_left, text_run_options, tmp_path
):
    common = {"max_steps": 6, "lora_rank": 4 if way == "lora" else 0}
    sharded = {
        **common,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "save_steps": 2,
        "deepspeed": ROOT / "recipes" / "zero" / f"zero{stage}.json",
    }

    def start(folder, *more):
        words = [*text_run_options(folder, **sharded), *more]
        if way == "launched":
            return [runs.launch(runs.deepspeed(), SFT, *words, environment={"DS_ACCELERATOR": "cpu"})]
        return runs.start_two(SFT, *words)

    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    runs.finish(runs.start(SFT, *text_run_options(one, per_device_train_batch_size=4, **common)))
    runs.finish(*runs.start_two(SFT, *text_run_options(two, **sharded)), seconds=280)
    zero_left(two, stage, processes=2)
    torch.testing.assert_close(logged(two), logged(one), rtol=1e-4, atol=0)
    difference = (logged(two) / logged(one) - 1).abs().max()
    print(f"ZeRO {stage}, {way}: losses of two processes and of one differ by {difference:.1e}")

    killed_inside_a_save(runs, start, killed)
    resumed = text_run_options(killed, **sharded), "--resume_from_checkpoint", "true"
    runs.finish(*runs.start_two(SFT, *resumed[0], *resumed[1:]), seconds=280)
    zero_left(killed, stage, processes=2)
    assert torch.equal(logged(killed), logged(two)) and len(logged(two)) == 6
    expected, got = weights(two), weights(killed)
    assert expected.keys() == got.keys() and all(
        torch.equal(got[name], tensor) for name, tensor in expected.items()
    )
