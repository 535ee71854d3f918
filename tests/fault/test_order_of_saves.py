"""What reaches the disk when, by `strace` of real runs: a power cut at any moment leaves old or
new, in every trainer.

The system calls are played on a model of a disk that keeps nothing but what was fsynced: a file's
content by an fsync of the file, a name by one of its folder.
"""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

STRACE = shutil.which("strace")
pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed")
WRITES = ("write", "writev", "pwrite64", "ftruncate", "sendfile", "fsync", "fdatasync")
CALLS = (
    *WRITES,
    "openat",
    "copy_file_range",
    "mkdir",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
)
LINE = re.compile(r"(\d+) +(.*)")
OPENED = re.compile(r"\d+<([^>]*)>")
QUOTED = re.compile(r'(?:<([^>]*)>, )?"([^"]*)"')
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trace(runs, tmp_path_factory):
    """`with_trace(start) -> calls` of all processes that are forked while `start()` runs to its
    end."""
    runs.finish(runs.start("pretrain/mae.py", "--help"))  # the server that forks them is there now
    server = runs.servers["scripts"].process.pid

    def trace(start) -> list[tuple[str, ...]]:
        log = tmp_path_factory.mktemp("strace") / "calls"
        command = [
            STRACE,
            "-f",
            "-y",
            "-s",
            "0",
            "-e",
            "signal=none",
            "-e",
            f"trace={','.join(CALLS)}",
            "-o",
            str(log),
            "-p",
            str(server),
        ]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        attached = tracer.stderr.readline()
        if "attached" not in attached:
            pytest.skip(f"strace may not look at other processes here: {attached.strip()}")
        try:
            runs.finish(start())
            time.sleep(0.2)
        finally:
            tracer.terminate()
            tracer.wait(20)
        return list(calls(log.read_text(errors="replace")))

    return trace


def calls(text: str):
    """(name, path) and (name, path, new path) of all calls that succeeded, in the order of their
    ends."""
    begun: dict[str, str] = {}
    for line in text.splitlines():
        process, call = LINE.fullmatch(line).groups()
        if call.endswith("<unfinished ...>"):
            begun[process] = call.removesuffix("<unfinished ...>")
            continue
        if call.startswith("<... "):
            call = begun.pop(process) + call.partition("resumed>")[2]
        name, _, arguments = call.partition("(")
        if name not in CALLS or re.search(r"\) += -1 ", call):
            continue
        if name in WRITES:
            yield name, OPENED.match(arguments)[1]
        elif name == "copy_file_range":
            yield "write", OPENED.findall(arguments)[1]
        elif name == "openat":
            if "O_CREAT" in call or "O_TRUNC" in call:
                yield "open", OPENED.findall(call)[-1]
        else:
            paths = [str(Path(folder, path)) for folder, path in QUOTED.findall(arguments)]
            yield "rename" if name.startswith("rename") else name, *paths


class Disk:
    """`unsynced`: files whose content, and folders whose names, a power cut could take. `shown`:
    renames into the run's folder, in order."""

    def __init__(self, root: Path) -> None:
        self.root, self.unsynced, self.shown, self.existing, self.last_written = (
            str(root),
            set(),
            [],
            set(),
            "",
        )

    def play(self, call: tuple[str, ...]) -> None:
        name, path, *others = call
        if name in ("fsync", "fdatasync"):
            self.unsynced.discard(path)
        elif not is_in(path, self.root) or path.endswith("/.lock"):
            return
        elif name == "rename":
            self.rename(path, others[0])
        elif name in ("unlink", "unlinkat", "rmdir"):
            self.look_at_removal(path)
            self.unsynced -= {each for each in self.unsynced if is_in(each, path)}
        else:
            self.look_at_write(path)
            if name in ("open", "mkdir") and path not in self.existing:
                self.existing.add(path)
                self.unsynced.add(str(Path(path).parent))
            if name != "mkdir":
                self.unsynced.add(path)
                self.last_written = path

    def rename(self, path: str, target: str) -> None:
        is_shown = Path(target).is_relative_to(self.root) and not any(
            part.startswith(".") for part in Path(target).relative_to(self.root).parts
        )
        if is_shown:
            lost = {each for each in self.unsynced if is_in(each, path)}
            assert not lost, f"{target} is shown before these are on the disk: {lost}"
            self.shown.append(str(Path(target).relative_to(self.root)))
        if is_shown and self.is_checkpoint(target):
            assert self.last_written == f"{path}/MANIFEST.json", self.last_written
            assert f"{self.root}/metrics.jsonl" not in self.unsynced
        if self.is_checkpoint(path):
            self.look_at_removal(path)
        moved = {each for each in self.unsynced | self.existing if is_in(each, path)}
        for known in (self.unsynced, self.existing):
            known.update({target + each.removeprefix(path) for each in moved & known})
            known.difference_update(moved)
        self.existing.add(target)
        self.unsynced.update({str(Path(target).parent), str(Path(path).parent)})

    def look_at_removal(self, path: str) -> None:
        if self.is_checkpoint(path):
            assert self.root not in self.unsynced, (
                f"{path} goes before the name of the new one is on the disk"
            )

    def look_at_write(self, path: str) -> None:
        first = Path(path).relative_to(self.root).parts[:1]
        assert not (first and self.is_checkpoint(f"{self.root}/{first[0]}")), (
            f"{path} is written after the checkpoint was shown"
        )

    def is_checkpoint(self, path: str) -> bool:
        return re.fullmatch(rf"{re.escape(self.root)}/checkpoint-\d+", path) is not None


def is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


SMALL = (
    "--dataset",
    "scenes?size=32&count=16",
    "--eval_dataset",
    "none",
    "--image_size",
    32,
    "--patch_size",
    8,
    "--hidden_size",
    32,
    "--num_hidden_layers",
    1,
    "--num_attention_heads",
    2,
    "--per_device_train_batch_size",
    4,
    "--save_total_limit",
    1,
)
STEPS = ("--max_steps", 2, "--save_steps", 1)


@pytest.mark.parametrize("trainer", ["dinov2", "siglip", "sft", "zero2", "lora"])
def test_nothing_is_shown_before_it_is_on_the_disk_and_nothing_old_goes_before(
    trainer, trace, runs, start, talk, tmp_path
):
    folder = tmp_path / "run"
    ways = {
        "dinov2": lambda: start(
            folder, *STEPS, "--warmup_steps", 0, "--save_total_limit", 1, "--dataloader_num_workers", 0
        ),
        "siglip": lambda: runs.start("pretrain/siglip.py", *SMALL, *STEPS, "--output_dir", folder),
        "sft": lambda: talk(folder, *STEPS),
        "zero2": lambda: talk(folder, *STEPS, "--deepspeed", ROOT / "recipes/zero/zero2.json"),
        "lora": lambda: talk(folder, *STEPS, "--lora_rank", 2),
    }
    began, disk = time.monotonic(), Disk(folder)
    for call in trace(ways[trainer]):
        disk.play(call)
    assert [name for name in disk.shown if name.startswith("checkpoint-")] == ["checkpoint-1", "checkpoint-2"]
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    (end, *before) = reversed(disk.shown)
    assert end == "finished.json" and disk.unsynced == set()
    weights = [
        name for name in before if not name.startswith("checkpoint-") and name.endswith(".safetensors")
    ]
    assert "model.safetensors" in weights
    if trainer != "dinov2":  # which draws its figures and writes its card behind the weights, at every save
        assert before[: len(weights)] == weights, "of what is published the weights are last"
    assert list(folder.glob("global_step*")) == [] and (
        trainer != "zero2" or list((folder / "checkpoint-2").glob("global_step*"))
    )
    print(f"{trainer}: {len(disk.shown)} names shown, {time.monotonic() - began:.1f} s")
