"""A resume that is refused leaves the run's folder as it was, to the byte and the time of change;
one that is possible says what is other.

Each edit goes through the real program, on one run that is finished and has a checkpoint in the
middle.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_core.printable import MOST_CHARACTERS

DINOV2 = """
global_crop_size: [16]
local_crop_size: [8]
num_local_crops: 1
patch_size: 8
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
num_prototypes: 16
head_hidden_dim: 16
head_bottleneck_dim: 8
bf16: false
per_device_train_batch_size: 4
dataloader_num_workers: 0
max_steps: 4
warmup_steps: 1
logging_steps: 1
save_steps: 2
num_cpu_threads: 1
"""
OTHERS = """
image_size: 16
patch_size: 8
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
per_device_train_batch_size: 4
max_steps: 4
logging_steps: 1
save_steps: 2
"""
SCENES = ("--dataset", "scenes?size=32&count=40", "--eval_dataset", "none")
RESUME = ("--resume_from_checkpoint", "true")


def tree(folder: Path) -> str:
    """A hash over names, bytes and times of change of all that a folder holds."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(repr((str(path.relative_to(folder)), path.lstat().st_mtime_ns)).encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def write_images(folder: Path, count: int, channels: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24, channels), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def command(script: str, given: dict, *edit) -> tuple:
    """Words for `runs`, with `edit` in place of what is given; a list's values are a tuple."""
    options = given | dict(zip(edit[::2], edit[1::2], strict=True))
    return script, *(
        word
        for name, value in options.items()
        for word in (name, *(value if isinstance(value, tuple) else (value,)))
    )


class Finished:
    """A finished run of a program on images in a folder, and what another start in it says."""

    def __init__(self, runs, name: str, folder: Path) -> None:
        self.runs, self.script, self.folder = runs, f"pretrain/{name}.py", folder / "run"
        self.images = write_images(folder / "images", 24)
        self.config = folder / "tiny.yaml"
        self.config.write_text(DINOV2 if name == "dinov2" else OTHERS)
        runs.finish(runs.start(*self.command()))

    def command(self, *edit, folder: Path | None = None):
        images = f"folder:{self.images}"
        given = {
            "--config": self.config,
            "--dataset": images,
            "--eval_dataset": "none",
            "--output_dir": folder or self.folder,
        }
        return command(self.script, given, *edit)

    def refused(self, *edit, folder: Path | None = None) -> str:
        """The one line; the folder is as it was, the lock's file too."""
        folder = folder or self.folder
        before = tree(folder)
        line = self.runs.error(*self.command(*RESUME, *edit, folder=folder))
        assert tree(folder) == before, line
        assert len(line) <= MOST_CHARACTERS, line
        return line

    def goes_on(self, folder: Path, *edit) -> str:
        return self.runs.finish(
            self.runs.start(
                *self.command("--resume_from_checkpoint", folder / "checkpoint-2", *edit, folder=folder)
            )
        )


@pytest.fixture(scope="module", params=["dinov2", "mae", "siglip"])
def finished(request, runs, tmp_path_factory):
    if request.param == "siglip":
        pytest.skip("its images have captions; see test_siglip_is_refused_too")
    return Finished(runs, request.param, tmp_path_factory.mktemp(request.param))


MODEL = [
    (("--hidden_size", 48), "--hidden_size was 32 and is 48"),
    (("--num_attention_heads", 4), "num_attention_heads is 2 in the checkpoint and 4 in this run's model"),
    (("--num_hidden_layers", 2), "--num_hidden_layers was 1 and is 2"),
    (("--patch_size", 4), "--patch_size was 8 and is 4"),
    (("--max_steps", 3, "--warmup_steps", 0), "has had 4 steps, and the run ends after 3; give it more by --max_steps"),
    (("--init_from", "somewhere"), "--init_from"),
    (("--config", "nowhere.yaml"), "nowhere.yaml"),
    (("--dataset", "folder:nowhere"), "nowhere"),
    (("--eval_dataset", "folder:nowhere"), "nowhere"),
    (("--per_device_train_batch_size", 30), "fewer than"),
    (("--gradient_accumulation_steps", 30), "fewer than"),
    (("--per_device_train_batch_size", 0), "it must be above 0"),
    (("--gradient_accumulation_steps", 0), "it must be above 0"),
    (("--seed", "many"), "--seed"),
    (("--save_steps", 0), "it must be above 0"),
    (("--resume_from_checkpoint", "nowhere/checkpoint-2"), "nowhere/checkpoint-2"),
]  # fmt: skip
OF_DINOV2 = [
    (("--num_prototypes", 24), "--num_prototypes was 16 and is 24"),
    (("--head_bottleneck_dim", 4), "--head_bottleneck_dim was 8 and is 4"),
    (("--separate_ibot_head", "true"), "--separate_ibot_head was False and is True"),
    (("--num_register_tokens", 2), "--num_register_tokens was 0 and is 2"),
    (("--num_channels", 4, "--image_mean", (0.5,) * 4, "--image_std", (1,) * 4), "--num_channels was 3 and is 4"),
]  # fmt: skip


@pytest.mark.timeout(300)
def test_a_refused_resume_changes_nothing(finished, tmp_path):
    edits = MODEL + (OF_DINOV2 if "dinov2" in finished.script else [])
    for edit, said in edits:
        line = finished.refused(*edit)
        assert said in line, line
        print(f"refused, tree unchanged: {' '.join(map(str, edit))}: {line}")
    print(
        f"{finished.script}: {len(edits)} of {len(edits)} edits refused, names, bytes and times of the folder "
        "are equal before and after"
    )
    assert len(edits) >= (20 if "dinov2" in finished.script else 15)


@pytest.mark.timeout(300)
def test_data_that_cannot_be_read_and_damaged_folders_are_refused_with_nothing_changed(finished, tmp_path):
    unreadable = tmp_path / "unreadable"
    unreadable.mkdir()
    for number in range(24):
        (unreadable / f"{number:03}.png").write_bytes(b"no picture")
    # with steps left to do: a run that has none reads no image
    line = finished.refused("--dataset", f"folder:{unreadable}", "--max_steps", 6)
    assert "unreadable" in line or "cannot be read" in line, line
    damaged = Path(shutil.copytree(finished.folder, tmp_path / "damaged"))
    config, named = (
        damaged / "checkpoint-2" / "config.json",
        ("--resume_from_checkpoint", damaged / "checkpoint-2"),
    )
    whole = config.read_bytes()
    for content, said in (
        (whole + b" ", "bytes instead of"),
        (whole[:-1] + b" ", "config.json has other content than was written"),
    ):
        config.write_bytes(content)
        assert said in finished.refused(*named, folder=damaged)
    (damaged / ".lock").unlink()
    (damaged / "config.yaml").write_text("a: [")
    assert "config.yaml of the run is not valid YAML" in finished.refused(folder=damaged)
    other = "pretrain/mae.py" if "dinov2" in finished.script else "pretrain/dinov2.py"
    before = tree(finished.folder)
    line = finished.runs.error(other, *SCENES, "--output_dir", finished.folder, *RESUME)
    assert "is a run of" in line and tree(finished.folder) == before


@pytest.mark.timeout(300)
def test_what_is_possible_goes_on_and_says_so(finished, tmp_path):
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    for edit, said in (
        (("--seed", 1), "seed 0 -> 1"),
        (("--per_device_train_batch_size", 8), "per_device_train_batch_size 4 -> 8"),
        (("--gradient_accumulation_steps", 2), "gradient_accumulation_steps 1 -> 2"),
        (("--weight_decay", 0.3), "weight_decay"),
    ):
        printed = finished.goes_on(folder, *edit)
        assert said in printed and "resuming with a changed config" in printed, printed
        assert "the data has changed" not in printed
        if "weight" not in said:
            assert " before and " in printed or " was " in printed


@pytest.mark.timeout(300)
def test_a_dry_run_refuses_what_the_run_would(finished, tmp_path):
    """Other weights to start from, fewer steps, another model, other data: said before a job waits
    in a queue."""
    rehearsed = ("--dry_run", "true")
    for edit, said in (*MODEL[:6], (("--max_steps", 3), "the run ends after 3")):
        assert said in finished.refused(*rehearsed, *edit)
    images = Path(shutil.copytree(finished.images, tmp_path / "images"))
    (images / "000.png").unlink()
    fewer = (*rehearsed, "--dataset", f"folder:{images}")
    assert "1 images fewer (23 instead of 24)" in finished.refused(*fewer, "--changed_data", "refuse")
    before = tree(finished.folder)
    printed = finished.runs.finish(finished.runs.start(*finished.command(*RESUME, *fewer)))
    assert "1 images fewer (23 instead of 24)" in printed and "nothing is written" in printed
    assert tree(finished.folder) == before


@pytest.mark.timeout(300)
def test_changed_data_is_told_in_one_line_or_refused(finished, tmp_path):
    """Added, removed, renamed, replaced; a copy elsewhere is the same."""
    images, run = (
        Path(shutil.copytree(finished.images, tmp_path / "images")),
        Path(shutil.copytree(finished.folder, tmp_path / "run")),
    )
    here = ("--dataset", f"folder:{images}")
    assert "the data has changed" not in finished.goes_on(run, *here)

    def refused_and_told(change: str) -> None:
        line = finished.refused(
            "--changed_data", "refuse", *here, "--resume_from_checkpoint", run / "checkpoint-2", folder=run
        )
        assert change in line and "--changed_data note" in line, line
        assert change in finished.goes_on(run, *here)

    shutil.copyfile(images / "000.png", images / "100.png")
    refused_and_told("dataset has 1 images more (25 instead of 24)")
    (images / "001.png").unlink()
    refused_and_told("the same number, other names or sizes")
    (images / "100.png").unlink()
    refused_and_told("dataset has 1 images fewer (23 instead of 24)")
    shutil.copyfile(finished.images / "001.png", images / "001.png")  # now, and not when the others were
    refused_and_told("the same names and sizes, written anew since")
    facts = json.loads(
        (
            run
            / "checkpoint-4"
            / ("training_state.json" if "dinov2" in finished.script else "resume_facts.json")
        ).read_text()
    )
    assert [each["count"] for each in facts["data"]] == [24]


@pytest.mark.timeout(300)
def test_weights_to_start_from_may_have_moved(finished, tmp_path):
    """The same weights at another path are the same start, as in a real start so in a dry run;
    others are not, and the line says so.
    """
    moved = tmp_path / "moved"
    others = tmp_path / "others"
    shutil.copytree(
        finished.folder,
        tmp_path / "start",
        ignore=shutil.ignore_patterns("checkpoint-*", ".lock", "config.yaml"),
    )
    run = tmp_path / "run"
    start = ("--init_from", tmp_path / "start")
    finished.runs.finish(finished.runs.start(*finished.command(*start, folder=run)))
    shutil.copytree(tmp_path / "start", others)
    (tmp_path / "start").rename(moved)
    weights = bytearray((others / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (others / "model.safetensors").write_bytes(weights)
    for rehearsed in ((), ("--dry_run", "true")):
        line = finished.refused("--init_from", others, *rehearsed, folder=run)
        assert "has the weights of its checkpoint" in line and "resume it with the weights of" in line, line
    dry = finished.command(*RESUME, "--init_from", moved, "--dry_run", "true", folder=run)
    assert "nothing is written" in finished.runs.finish(finished.runs.start(*dry))
    assert "init_from" in finished.goes_on(run, "--init_from", moved)


@pytest.mark.timeout(300)
def test_siglip_is_refused_too(runs, tmp_path):
    config, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(OTHERS)
    given = {
        "--config": config,
        "--dataset": "scenes?size=32&count=40",
        "--eval_dataset": "none",
        "--output_dir": folder,
    }
    runs.finish(runs.start(*command("pretrain/siglip.py", given)))
    before = tree(folder)
    for edit, said in (
        (("--hidden_size", 48), "--hidden_size was 32 and is 48"),
        (("--num_attention_heads", 4), "num_attention_heads is 2 in the checkpoint and 4"),
        (("--max_steps", 3, "--warmup_steps", 0), "has had 4 steps"),
        (
            ("--changed_data", "refuse", "--dataset", "scenes?size=32&count=44"),
            "4 images more (44 instead of 40)",
        ),
    ):
        for rehearsed in ((), ("--dry_run", "true")):
            line = runs.error(*command("pretrain/siglip.py", given, *RESUME, *edit, *rehearsed))
            assert said in line and tree(folder) == before, line
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    (damaged / "checkpoint-2" / "tokenizer.json").write_bytes(b"")
    before = tree(damaged)
    named = ("--output_dir", damaged, "--resume_from_checkpoint", damaged / "checkpoint-2")
    for edit in (named, (*named, "--dry_run", "true")):
        line = runs.error(*command("pretrain/siglip.py", given, *edit))
        assert (
            "checkpoint-2 is no whole checkpoint: tokenizer.json has 0 bytes instead of" in line
            and tree(damaged) == before
        ), line
    more = ("--dataset", "scenes?size=32&count=44", "--max_steps", 5)
    assert "4 images more (44 instead of 40)" in runs.finish(
        runs.start(*command("pretrain/siglip.py", given, *RESUME, *more))
    )
