"""Training of fused models that goes on: what is refused leaves the run's folder as it was, and what is possible says what is other."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from recipes.small_default import write_small_default
from vision_core.printable import MOST_CHARACTERS

SFT, ALIGN = "recipes/sva_sft.py", "recipes/sva_align.py"
ZERO = Path(__file__).parents[2] / "recipes" / "zero"
RESUME = ("--resume_from_checkpoint", "true")


def tree(folder: Path) -> str:
    """A hash over names, bytes and times of change of all that a folder holds."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(repr((str(path.relative_to(folder)), path.lstat().st_mtime_ns)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Rows with an image each, and a small model."""
    folder = tmp_path_factory.mktemp("given")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / "a.png")
    rows = [
        {"image": "a.png", "conversations": [{"from": "human", "value": f"<image>\nquestion {n}"}, {"from": "gpt", "value": f"answer {n}"}]}
        for n in range(12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_small_default(folder / "model", ["question word answer yes 0 1 2 3 4 5 6 7 8 9"] * 9, seed=0)
    write_small_default(folder / "other", ["question word answer yes 0 1 2 3 4 5 6 7 8 9"] * 9, seed=1)
    return folder


class Finished:
    """A finished run, and what another start in its folder says."""

    def __init__(self, runs, given: Path, folder: Path, script: str = SFT, **more) -> None:
        self.runs, self.folder, self.script = runs, folder, script
        self.options = {
            "--init_from": given / "model",
            "--conversations": f"llava:{given / 'rows.jsonl'}",
            "--eval_conversations": "[]",
            "--max_steps": 4,
            "--save_steps": 2,
            "--logging_steps": 1,
            "--per_device_train_batch_size": 2,
            "--learning_rate": 1e-3,
            "--output_dir": folder,
            **{f"--{name}": value for name, value in more.items()},
        }
        runs.finish(runs.start(*self.command()))

    def command(self, *edit) -> tuple:
        options = self.options | dict(zip(edit[::2], edit[1::2], strict=True))
        return self.script, *(word for name, value in options.items() if value is not None for word in (name, value))

    def refused(self, said: str, *edit) -> None:
        """By a dry run too."""
        before = tree(self.folder)
        for rehearsed in ((), ("--dry_run", "true")):
            line = self.runs.error(*self.command(*RESUME, *edit, *rehearsed))
            assert tree(self.folder) == before, line
            assert said in line and len(line) <= MOST_CHARACTERS, line

    def rehearsed(self, *edit) -> str:
        """What a dry run prints that goes on; it changes nothing."""
        before = tree(self.folder)
        printed = self.runs.finish(self.runs.start(*self.command(*RESUME, *edit, "--dry_run", "true")))
        assert tree(self.folder) == before and "nothing is written" in printed
        return printed

    def goes_on(self, *edit) -> str:
        return self.runs.finish(self.runs.start(*self.command("--resume_from_checkpoint", self.folder / "checkpoint-2", *edit)))


def test_a_refused_resume_changes_nothing_whole(runs, given, tmp_path):
    run = Finished(runs, given, tmp_path / "run")
    run.refused("a run that goes on has the weights of its checkpoint", "--init_from", given / "other")
    run.refused("a run that goes on has the weights of its checkpoint", "--init_from", None)
    printed = runs.finish(runs.start(*run.command(*RESUME, "--init_from", None)), expect=2)
    assert "stand-ins are made" not in printed, printed  # they learn for minutes
    run.refused("an adapter of LoRA", "--lora_rank", 4)
    run.refused("was trained in other parts", "--encoder_learning_rate", 1e-4)
    run.refused("is not there", "--conversations", "llava:nowhere.jsonl")
    run.refused("is not there", "--eval_conversations", "llava:nowhere.jsonl")
    run.refused("has had 4 steps, and the run ends after 3", "--max_steps", 3)
    run.refused("was saved without --deepspeed, and this run is under ZeRO stage 1 or 2", "--deepspeed", ZERO / "zero2.json")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{\n" * 12)
    # with steps left to do: a run that has none reads no row
    run.refused("no JSON", "--conversations", f"llava:{broken}", "--max_steps", 6)
    run.refused("no JSON", "--eval_conversations", f"llava:{broken}", "--max_steps", 6)
    assert "seed: 0 before and 3 now" in run.rehearsed("--seed", 3)
    run.script = ALIGN
    run.refused("is a run of recipes/sva_sft.py")


@pytest.mark.timeout(200)
def test_other_groups_of_the_optimizer_keep_each_parameters_states(runs, given, logged, tmp_path):
    """weight_decay makes two groups of one; with a decay of all but nothing the course is that of the run without."""
    run = Finished(runs, given, tmp_path / "run")
    whole = logged(run.folder)
    printed = run.goes_on("--weight_decay", 1e-12, "--sampler_learning_rate", 1e-3 * (1 + 1e-9))
    assert "weight_decay 0.0 -> 1e-12" in printed
    np.testing.assert_allclose(logged(run.folder).numpy(), whole.numpy(), rtol=1e-5)
    decayed = run.goes_on("--weight_decay", 0.5)
    assert "0.5" in decayed and abs(float(logged(run.folder)[-1] - whole[-1])) > 0
    printed = run.goes_on("--seed", 3)
    assert "seed: 0 before and 3 now" in printed
    printed = run.goes_on("--per_device_train_batch_size", 1)
    assert "samples of a step: 2 before and 1 now" in printed


def test_a_refused_resume_changes_nothing_lora(runs, given, tmp_path):
    run = Finished(runs, given, tmp_path / "run", lora_rank=2)
    run.refused("r of LoRA is 2 in the checkpoint and 4", "--lora_rank", 4)
    run.refused("it holds an adapter of LoRA", "--lora_rank", 0)
    run.refused("a run that goes on has the weights of its checkpoint", "--init_from", given / "other")
    expected = load_file(run.folder / "model.safetensors")
    moved = Path(shutil.copytree(given / "model", tmp_path / "elsewhere"))
    run.rehearsed("--init_from", moved)
    assert "init_from" in run.goes_on("--init_from", moved)
    found = load_file(run.folder / "model.safetensors")
    assert found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in found)


def test_a_refused_resume_changes_nothing_zero(runs, given, tmp_path):
    run = Finished(runs, given, tmp_path / "run", deepspeed=ZERO / "zero2.json")
    assert (run.folder / "checkpoint-4" / "global_step4").is_dir()
    run.refused(
        "was saved under ZeRO stage 1 or 2 by 1 process with --bf16 false, and this run is under ZeRO stage 3",
        "--deepspeed",
        ZERO / "zero3.json",
    )
    run.refused("and this run is without --deepspeed", "--deepspeed", None)
    assert "seed" in run.goes_on("--seed", 1)


def test_changed_rows_are_told_in_one_line_or_refused(runs, given, tmp_path):
    for name in ("rows.jsonl", "a.png"):
        shutil.copy2(given / name, tmp_path / name)
    rows = tmp_path / "rows.jsonl"
    run = Finished(runs, given, tmp_path / "run", script=ALIGN, conversations=f"llava:{rows}")
    assert "the data has changed" not in run.goes_on()
    text = rows.read_text()
    for content, change in (
        (text + text.splitlines()[0] + "\n", "conversations 1 has 1 rows more (13 instead of 12)"),
        (text.replace("answer 3", "answer three"), "the same number, other names or sizes"),
    ):
        rows.write_text(content)
        run.refused(change, "--changed_data", "refuse", "--resume_from_checkpoint", run.folder / "checkpoint-2")
        assert change in run.goes_on()
        rows.write_text(text)
    run = Finished(runs, given, tmp_path / "again", script=ALIGN, conversations=f"llava:{rows}")
    rows.write_text(text.replace("answer 3", "answer 4"))
    run.refused("the same names and sizes, written anew since", "--changed_data", "refuse")
