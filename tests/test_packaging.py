"""What pyproject.toml promises: the packages that are there, extras that keep loading light,
scripts that run from a plain clone."""

import ast
import importlib.metadata
import re
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]
TOP_PACKAGES = [name for name in PACKAGES if "." not in name]
SCRIPTS = [
    path
    for folder in ("pretrain", "recipes")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(requirements: list[str]) -> set[str]:
    """`torch>=2.11` -> torch."""
    return {normalized(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def third_party_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - set(TOP_PACKAGES)


def test_distribution_and_its_floors():
    assert (PROJECT["name"], PROJECT["requires-python"]) == ("vision-encoder-fusion", ">=3.11")
    assert {"torch>=2.11", "transformers>=5.23"} <= set(PROJECT["dependencies"])
    assert set(EXTRAS) == {"pretrain", "encoders", "recipes", "lmms", "scientific", "slides", "heif", "test"}
    assert all((ROOT / name).is_file() for name in [PROJECT["readme"], *PROJECT["license-files"]])


def test_loading_a_model_needs_no_training_or_plotting_library():
    heavy = {
        "deepspeed",
        "peft",
        "accelerate",
        "datasets",
        "matplotlib",
        "tensorboard",
        "timm",
        "open-clip-torch",
    }
    assert not heavy & requirement_names(PROJECT["dependencies"])
    assert not {"deepspeed", "peft"} & requirement_names(EXTRAS["pretrain"] + EXTRAS["encoders"])


def test_every_folder_with_modules_is_a_listed_package():
    folders = {path.parent.relative_to(ROOT) for top in TOP_PACKAGES for path in (ROOT / top).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == set(PACKAGES)
    assert [name for name in PACKAGES if not (ROOT / name.replace(".", "/") / "__init__.py").is_file()] == []


def test_configs_are_package_data():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    installed = {
        path for package, globs in patterns.items() for g in globs for path in (ROOT / package).glob(g)
    }
    data = {
        path
        for top in TOP_PACKAGES
        for kind in ("yaml", "yml", "json")
        for path in (ROOT / top).rglob(f"*.{kind}")
    }
    assert data <= installed


def test_every_import_is_a_declared_dependency():
    declared = {"huggingface-hub", "tokenizers"}  # transformers stands on them; their floors are its to say
    declared |= requirement_names(
        PROJECT["dependencies"] + [x for name in EXTRAS if name != "test" for x in EXTRAS[name]]
    )
    owners = importlib.metadata.packages_distributions()
    for path in (path for top in TOP_PACKAGES for path in (ROOT / top).rglob("*.py")):
        for name in third_party_imports(path):
            assert {normalized(owner) for owner in owners.get(name, [name])} & declared, f"{path}: {name}"


@pytest.mark.parametrize("last", ["accelerate launch pretrain/dinov2.py", "pytest -n 2"])
def test_readme_shows_a_command_from_nothing_to(last):
    """One line sets up everything on a fresh machine. `.ci/run` takes the second one from below `#
    install and test`."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [
        i
        for i, line in enumerate(lines)
        if line.startswith("python3 -m venv .venv && ") and line.endswith(last)
    ]
    assert len(commands) == 1
    assert last != "pytest -n 2" or lines[commands[0] - 1] == "# install and test"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_runs_from_another_folder_of_an_uninstalled_clone(runs, script):
    assert f"usage: {script.name}" in runs.finish(runs.start_plain(script, "--help"))


def test_script_is_started_from_another_folder_of_an_uninstalled_clone(runs):
    """`-S` leaves out .pth files and with them an editable install; the libraries come in through
    PYTHONPATH."""
    environment = {"PYTHONPATH": sysconfig.get_path("purelib")}
    shown = runs.finish(
        runs.launch([sys.executable, "-S"], "pretrain/dinov2.py", "--help", environment=environment)
    )
    assert "usage: dinov2.py" in shown
