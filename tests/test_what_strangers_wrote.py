"""Where files are opened and lines are printed: the places are few, so that no other one forgets
what strangers may have put there."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vision_core", "encoders", "pretrain", "fusion", "recipes")
# Each reads only what this project wrote itself, or what the kernel writes; no name in a user's
# options or data leads there.
READ_THEIR_OWN = {
    "encoders/evaluation/stored_features.py": "the cache, whose folder the program makes",
    "fusion/stub.py": "configs of the folder that was saved a moment ago",
    "pretrain/run/monitor.py": "metrics of this run",
    "pretrain/run/training_state.py": "files of a checkpoint whose manifest was verified",
    "fusion/conversations/clean_rows.py": "the file that it has just written, for its fsync",
    "recipes/compare_encoders.py": "the table that it has just written",
    "encoders/evaluation/bad_samples.py": "bad_samples.jsonl of this run",
    "encoders/evaluation/suite.py": "the ground truth, only for its hash; the task reads it by the owner",
    "fusion/evaluation/kept_answers.py": "files of the model that has been loaded from there",
    "encoders/evaluation/kept_results.py": "pictures of this evaluation",
    "recipes/scenes_report.py": "what the recipes' own programs left",
    "vision_core/runs/checkpoint_fit.py": "files of a checkpoint whose manifest was verified",
    "vision_core/runs/checkpoints.py": "manifests and the files that they name, each looked at before",
    "vision_core/files/files_aside.py": "what it wrote itself, for its lock and fsync",
    "vision_core/runs/folder_lock.py": "a lock, opened without waiting, and /proc",
    "vision_core/processes/last_word.py": "/proc",
    "vision_core/processes/launchers.py": "/proc",
    "vision_core/runs/run_facts.py": "/proc",
    "vision_core/files/sealed_tensors.py": "the caches, whose files it looks at before",
    "vision_core/trainer/resume.py": "files of a checkpoint whose manifest was verified",
}
# The owner, through which all others read; vision_core/files/text_files.py makes text, JSON and
# YAML of it.
OWNERS = {"vision_core/files/regular_files.py"}
# A library opens these by their paths, behind `check_openable`, `refuse_special_files` or the like.
CHECKED_FIRST = {
    "encoders/saved.py",
    "encoders/adapters/dinov2_weights.py",
    "fusion/convert_cambrian.py",
    "pretrain/run/build.py",
}
# What is opened so lies in memory, is a run's folder, or an address.
NOT_A_PATH = {"Image", "RunFolder", "WorkFolder", "fits", "archive", "tarfile", "_opener()"}
LOADERS = {
    "load_file", "safe_open", "torch.load", "np.load", "np.loadtxt", "np.genfromtxt", "np.fromfile", "yaml.safe_load", "yaml.load",
    "yaml.compose", "json.load",
}  # fmt: skip
PRINTS = {"vision_core/printable.py", "vision_core/arguments.py"}  # the owner, and the text of --help


def bare_reads(source: str) -> Iterator[str]:
    """Calls that open a path for reading without a look at what stands there."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _reads(node):
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


def _reads(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name in LOADERS:
        return True
    if name in ("open", "io.open", "os.open", "codecs.open"):
        return not _writes(call, 1) and "O_CREAT" not in ast.unparse(call)
    if not isinstance(call.func, ast.Attribute) or ast.unparse(call.func.value) in (*NOT_A_PATH, "os"):
        return False
    if call.func.attr in ("read_text", "read_bytes"):
        return not call.args  # a source's own method takes an index
    return call.func.attr == "open" and not _writes(call, 0)


def _writes(call: ast.Call, place: int) -> bool:
    given = [each.value for each in call.keywords if each.arg == "mode"] + call.args[place : place + 1]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else "r"
    return isinstance(mode, str) and any(letter in mode for letter in "wxa")


def bare_prints(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "print",
            "sys.stdout.write",
            "sys.stderr.write",
        ):
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_others_are_opened_in_one_place(path):
    name = str(path.relative_to(ROOT))
    if name not in OWNERS | CHECKED_FIRST | set(READ_THEIR_OWN):
        found = list(bare_reads(path.read_text()))
        assert not found, (
            f"{name}: read by vision_core/files/text_files.py or vision_core/files/regular_files.py instead: {found}"
        )


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_printed_in_one_place(path):
    name = str(path.relative_to(ROOT))
    if name not in PRINTS:
        found = list(bare_prints(path.read_text()))
        assert not found, (
            f"{name}: printed by vision_core/printable.say instead, which lets no escape code through: {found}"
        )


def test_the_lists_hold_nothing_that_is_not_needed():
    for name in OWNERS | CHECKED_FIRST | set(READ_THEIR_OWN):
        assert list(bare_reads((ROOT / name).read_text())), (
            f"{name} has no bare read any more: take it out of the list"
        )


@pytest.mark.parametrize(
    "line",
    ["open(p)", "open(p, 'rb')", "p.open()", "p.open('r')", "p.read_text()", "p.read_text(encoding='x')", "p.read_bytes()", "os.open(p, 0)",
     "load_file(p)", "torch.load(p, weights_only=True)", "yaml.safe_load(t)", "json.load(f)", "np.load(p)", "open(p, mode)"],
)  # fmt: skip
def test_a_bare_read_is_found(line):
    assert list(bare_reads(line))


@pytest.mark.parametrize(
    "line",
    [
        "open(p, 'w')",
        "p.open('wb')",
        "p.open(mode='x')",
        "source.read_bytes(3)",
        "read_text(p, n, c)",
        "Image.open(io.BytesIO(b))",
    ],
)
def test_what_is_none_passes(line):
    assert not list(bare_reads(line))
