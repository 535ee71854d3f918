"""A disk that is full in the middle of a save or of publishing: one line each time, nothing partial
left, and the run exact once there is room."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vision_core.runs.checkpoints import list_checkpoints, verify_checkpoint

ROOT = Path(__file__).parents[2]
ON_A_SMALL_DISK = Path(__file__).with_name("on_a_small_disk.py")
RESUME = ("--resume_from_checkpoint", "true")
# files of a checkpoint of sva_sft.py, by the begin of their names, and which write to them fails;
# .tmp is safetensors' and the stub's
POINTS = [
    ("config.json", 1),
    ("generation_config.json", 1),
    (".tmp", 1),
    (".tmp", 2),
    ("chat_template.jinja", 1),
    ("tokenizer_config.json", 1),
    ("tokenizer.json", 1),
    ("processor_config.json", 1),
    ("training_args.bin", 1),
    ("training_args.bin", 2),
    ("optimizer.pt", 1),
    ("optimizer.pt", 2),
    ("optimizer.pt", 5),
    ("optimizer.pt", 10),
    ("optimizer.pt", 20),
    ("scheduler.pt", 1),
    ("rng_state.pth", 1),
    ("rng_state.pth", 2),
    ("trainer_state.json", 1),
    ("MANIFEST.json", 1),
]


def whole_and_nothing_else(folder: Path) -> None:
    assert [
        path.name for path in folder.iterdir() if path.name.startswith((".tmp", ".del", "set-aside"))
    ] == []
    assert list_checkpoints(folder) and all(
        verify_checkpoint(path) is None for path in list_checkpoints(folder)
    )


def losses(folder: Path, metrics) -> list[float]:
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def same_weights(ours: Path, theirs: Path) -> bool:
    return (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


def limit(run, size: int) -> None:
    """Of every file that the run writes from now on, or -1 for none."""
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.skipif(
    shutil.which("cc") is None, reason="there is no C compiler for the library that makes single writes fail"
)
def test_a_disk_that_is_full_at_20_points_costs_20_saves_and_no_bit(runs, talk, metrics, tmp_path):
    """Every second save fails, each at another write: of every kind of file in a checkpoint, in its
    middle and at its end."""
    library = tmp_path / "full_disk.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", library, Path(__file__).with_name("full_disk.c"), "-ldl"],
        check=True,
    )
    steps = ("--max_steps", 2 * len(POINTS) + 2)
    runs.finish(talk(tmp_path / "whole", *steps, "--save_steps", 100))
    full_at = ",".join(f"{2 * place + 2}:{name}:{number}" for place, (name, number) in enumerate(POINTS))
    script, *options = talk.arguments(tmp_path / "run", *steps, "--save_steps", 1)
    environment = {"LD_PRELOAD": str(library), "FULL_AT": full_at}
    printed = runs.finish(runs.launch([sys.executable], script, *options, environment=environment))
    lines = [line for line in printed.replace("\r", "\n").splitlines() if "was not written" in line]
    failed = [int(line.partition("checkpoint-")[2].partition(" ")[0]) for line in lines]
    assert failed == [2 * place + 2 for place in range(len(POINTS))], (full_at, lines)
    odd = [
        line
        for line in lines
        if not ("warning: " in line and "MB are free" in line and "tries again 1 steps later" in line)
    ]
    assert odd == []
    assert len(POINTS) == 20 and "Traceback" not in printed
    whole_and_nothing_else(tmp_path / "run")
    assert losses(tmp_path / "run", metrics) == losses(tmp_path / "whole", metrics) and same_weights(
        tmp_path / "run", tmp_path / "whole"
    )
    print(f"{len(lines)} full disks, one line each, no loss and no weight differs")


def test_two_failed_saves_in_a_row_end_a_recipe_and_room_makes_it_go_on(runs, talk, metrics, tmp_path):
    folder, steps = tmp_path / "run", ("--max_steps", 12, "--save_steps", 2)
    runs.finish(talk(tmp_path / "whole", *steps))
    run = talk(folder, *steps)
    run.wait_until((folder / "checkpoint-4").exists)
    limit(run, 100_000)
    printed = runs.finish(run, expect=2)
    last = printed.strip().splitlines()[-1]
    assert (
        last.startswith(f"error: {folder}/checkpoint-") and "needs at least" in last and "make room" in last
    )
    assert printed.count("was not written") == 2 and "Traceback" not in printed
    whole_and_nothing_else(folder)
    runs.finish(talk(folder, *steps, *RESUME))
    assert losses(folder, metrics) == losses(tmp_path / "whole", metrics) and same_weights(
        folder, tmp_path / "whole"
    )


def test_full_when_published_leaves_nothing_torn_and_a_resume_publishes(runs, talk, tmp_path):
    """Checkpoints of LoRA are small; the model into which it is merged is not."""
    folder, steps = tmp_path / "run", ("--max_steps", 2, "--save_steps", 1, "--lora_rank", 2)
    run = talk(folder, *steps)
    limit(run, 6_000_000)
    printed = runs.finish(run, expect=2)
    last = printed.strip().splitlines()[-1]
    # a line has 300 characters, and a long path loses its middle
    assert (
        last.startswith("error: ")
        and "/run was not written: " in last
        and last.endswith(f"/run {' '.join(RESUME)} goes on from it")
    )
    assert printed.count("was not written") == 1 and "Traceback" not in printed
    whole_and_nothing_else(folder)
    assert (
        not list(folder.glob("*.safetensors"))
        and not (folder / "adapter").exists()
        and not (folder / "finished.json").exists()
    )
    assert f"saved {folder}" in runs.finish(talk(folder, *steps, *RESUME))
    assert load_file(folder / "model.safetensors") and load_file(
        folder / "adapter" / "adapter_model.safetensors"
    )
    assert (folder / "finished.json").is_file()
    assert (
        not (folder / "training_args.bin").exists()
        and not (folder / "adapter" / "training_args.bin").exists()
    )


@pytest.mark.parametrize("way", ["plain", "zero2"])
@pytest.mark.parametrize("full", [0, 1])
def test_what_one_of_two_processes_cannot_write_ends_both_alike_and_leaves_nothing(
    way, full, runs, talk, tmp_path
):
    """Process 0 writes the model, process 1 its random states and its share of ZeRO's optimizer:
    neither may leave the other in a collective."""
    folder = tmp_path / "run"
    more = ("--deepspeed", ROOT / "recipes/zero/zero2.json") if way == "zero2" else ()
    steps = ("--max_steps", 40, "--save_steps", 2, *more)
    both = runs.start_two(*talk.arguments(folder, *steps))
    both[0].wait_until((folder / "checkpoint-2").exists)
    limit(both[full], 60_000 if full == 0 or way == "zero2" else 5_000)
    printed = runs.finish(*both, expect=2)
    assert both[1].printed.strip().splitlines()[-1] == printed.strip().splitlines()[-1]
    assert printed.count("was not written") == 2 and "Traceback" not in printed + both[1].printed
    whole_and_nothing_else(folder)


def test_a_real_small_disk_and_room_made_on_it(runs, tmp_path):
    """The first save does not fit, and the disk is not left full; then the filler goes, and the
    rest is saved."""
    disk = tmp_path / "disk"
    disk.mkdir()
    model = (
        "--image_size",
        32,
        "--patch_size",
        8,
        "--hidden_size",
        64,
        "--num_hidden_layers",
        2,
        "--num_attention_heads",
        2,
    )
    data = (
        "--dataset",
        "scenes?size=32&count=64",
        "--eval_dataset",
        "none",
        "--per_device_train_batch_size",
        8,
    )
    options = (
        *data,
        *model,
        "--max_steps",
        30,
        "--save_steps",
        10,
        "--save_total_limit",
        1,
        "--output_dir",
        disk / "run",
    )
    run = runs.start(ON_A_SMALL_DISK, disk, 8_000, 7_700, *options)
    seen = Path(f"/proc/{run.pid}/root{disk}")
    run.wait_until(lambda: "was not written" in run.printed or run.poll() == 77)
    if run.poll() == 77:
        pytest.skip("the system lets nobody but its administrator mount a small disk")
    (seen / "filler").unlink()
    printed = runs.finish(run)
    assert (
        "checkpoint-10 was not written: No space left on device" in printed
        and printed.count("was not written") == 1
    )
    assert "Traceback" not in printed and f"saved {disk / 'run'}" in printed
