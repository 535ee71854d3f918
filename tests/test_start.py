"""How programs start: options before imports, the first sign, the right word for an unknown option,
the last word under a launcher."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vision_core.processes import launchers

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    str(path.relative_to(ROOT))
    for folder in ("pretrain", "recipes")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]
MODULES = ["fusion.fuse", "fusion.convert_cambrian"]
HEAVY = {"torch", "transformers", "numpy", "accelerate", "datasets", "PIL", "pyarrow"}
TYPO = "error: command line: unknown option 'no_such_word'; --help lists the options"


def start(program: str, *arguments: str) -> tuple[int, str, str, set[str]]:
    """Status, stdout, stderr, and the modules that a program imports, by Python's own list of
    them."""
    words = ["-m", program] if program in MODULES else [str(ROOT / program)]
    command = [sys.executable, "-X", "importtime", *words, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:")]
    return done.returncode, done.stdout, "\n".join(said), imported


@pytest.mark.parametrize("program", [*SCRIPTS, *MODULES])
def test_help_and_a_mistyped_option_are_answered_before_anything_heavy_is_imported(program):
    status, shown, said, imported = start(program, "--help")
    assert status == 0 and shown.startswith("usage: ") and "\n  --" in shown and not said
    assert "vision_core.arguments" in imported and not imported & HEAVY
    status, shown, said, imported = start(program, "--no_such_word", "1")
    assert (status, shown, said) == (2, "", TYPO) and not imported & HEAVY


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("pretrain/dinov2.py", ("--num_channels", "4"), "image_mean has 3 values, num_channels is 4"),
        ("pretrain/dinov2.py", ("--output_dir", "docs"), "docs is not empty"),
        ("pretrain/mae.py", ("--mask_ratio", "1"), "--mask_ratio 1.0 must hide some"),
        ("pretrain/siglip.py", ("--output_dir", "docs"), "docs is not empty"),
        ("recipes/sva_align.py", ("--conversations", "[]"), "--conversations is empty"),
        ("recipes/sva_sft.py", ("--output_dir", "docs"), "docs is not empty"),
        ("recipes/sva_sft.py", ("--deepspeed", "absent.json"), "absent.json"),
        ("recipes/evaluate_vlm.py", (), "--model is missing"),
        ("recipes/evaluate_encoder.py", ("--batch_size", "0"), "--batch_size 0 is not possible"),
        ("recipes/compare_encoders.py", ("--encoders",), "--encoders"),
        ("recipes/compare_encoders.py", ("--encoders", "[]"), "need at least one name"),
        ("recipes/check_conversations.py", ("--output_dir", "docs"), "docs is not empty"),
        ("fusion.fuse", ("--output_dir", "docs"), "docs is not empty"),
        ("fusion.fuse", ("--num_sva_layers", "2"), "--num_sva_layers goes with --language_model"),
    ],
)
def test_options_that_cannot_work_are_refused_as_early(program, arguments, said):
    status, _, line, imported = start(program, *arguments)
    if status == 0:
        pytest.fail("the options were taken")
    assert (
        status == 2
        and line.startswith("error: ")
        and said in line
        and "\n" not in line
        and not imported & HEAVY
    )


@pytest.mark.timeout(120)
def test_the_first_sign_comes_before_torch_is_imported(runs):
    began = time.monotonic()
    run = runs.launch([sys.executable], "pretrain/dinov2.py", "--dry_run")
    run.wait_until(lambda: "loading torch and transformers ..." in run.printed)
    assert time.monotonic() - began < 3
    runs.kill(run)


def test_another_process_of_a_launcher_says_nothing(monkeypatch):
    assert launchers.is_first_launched()
    monkeypatch.setenv("RANK", "1")
    assert not launchers.is_first_launched()


def test_a_package_knows_the_program_that_it_is_imported_for(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["-m", "--seed", "1"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "fusion.fuse", "--seed", "1"])
    assert launchers.is_program("fusion.fuse") and not launchers.is_program("fusion.convert_cambrian")
    monkeypatch.setattr(sys, "orig_argv", ["python", "mine.py", "-m", "fusion.fuse"])
    monkeypatch.setattr(sys, "argv", ["mine.py", "-m", "fusion.fuse"])
    assert not launchers.is_program("fusion.fuse", "fuse")


def test_a_package_knows_its_installed_command(monkeypatch, tmp_path):
    """And not a program of the user's own that has its name."""
    monkeypatch.setattr(launchers.sysconfig, "get_path", lambda name: str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "fuse"), "--help"])
    assert launchers.is_program("fusion.fuse", "fuse")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "mine" / "fuse"), "--help"])
    assert not launchers.is_program("fusion.fuse", "fuse")


# Of each launcher its command, and its own status where the program's is 2.
LAUNCHERS = {
    "accelerate": ([sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"], 1),
    "torchrun": ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], 1),
    "deepspeed": (
        [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "1", "--no_local_rank"],
        2,
    ),
}


@pytest.mark.timeout(280)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_line_stands_behind_what_a_launcher_says_of_its_end(name, runs):
    """Once, also where two processes have failed."""
    launcher, status = LAUNCHERS[name]
    run = runs.launch(launcher, "pretrain/dinov2.py", "--lr", "1")
    assert run.wait(250) == status, run.printed
    deadline = time.monotonic() + 10
    while run.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = run.printed.splitlines()
    assert not run.processes() and any("error" in line.lower() for line in lines[:-1])
    assert lines[-1] == "error: command line: unknown option 'lr'; did you mean learning_rate?" != lines[-2]
