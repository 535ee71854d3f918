"""Guards over the whole tree: who imports whom, names that would shadow packages, unsafe loading,
paths in the docs."""

import ast
import dataclasses
import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vision_core.arguments import field_types

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "vision_core": set(),
    "encoders": {"vision_core"},
    "pretrain": {"vision_core", "encoders"},
    "fusion": {"vision_core", "encoders"},
    "recipes": {"vision_core", "encoders", "pretrain", "fusion"},
}
OWN_FOLDERS = {*MAY_IMPORT, "benchmarks", "tests"}
SCRIPT_FOLDERS = ("pretrain", "recipes")
PICKLE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"}
# The dots are escaped and the words broken up, so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.$}>~:/-])/(?:home|root|Users|mnt|opt|srv|scratch|work|tmp)/\w")
REGISTRY = re.compile(
    r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|index[-_]url|find[-_]links", re.IGNORECASE
)
PATH_IN_PROSE = re.compile(
    r"(?<![\w/.$}>-])(?:\.ci|docs|benchmarks|tests|"
    + "|".join(MAY_IMPORT)
    + r")/[\w./-]+\.(?:py|md|yaml|json|png)\b"
)
LINK = re.compile(r'(?:\]\(|src=")(?!\w+:|#)([^)"#\s]+)')


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every absolute import, inside functions too, and of
    `import_module("...")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((node.lineno, name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def wrong_arrows(source: str, package: str) -> list[str]:
    """The imports of the project's own folders that `package` may not have."""
    allowed = MAY_IMPORT[package] | {package}
    names = ((line, name.partition(".")[0]) for line, name in imports(ast.parse(source)))
    return [f"line {line}: {package} imports {name}" for line, name in names if name in OWN_FOLDERS - allowed]


def unsafe_loads(source: str) -> list[str]:
    """Places that could run code from a file: pickle, torch.load or numpy.load of objects, remote
    code of the Hub."""
    tree = ast.parse(source)
    found = [
        f"line {line}: import of {name}"
        for line, name in imports(tree)
        if name.split(".")[0] in PICKLE_MODULES
    ]
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "torch"
            and "load" in {name.name for name in node.names}
        ):
            found.append(f"line {node.lineno}: write torch.load, so that this test sees it")
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        target, method = ast.unparse(node.func.value), node.func.attr
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if target == "torch" and method == "load" and given.get("weights_only") != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if given.get("allow_pickle", "False") != "False":
            found.append(f"line {node.lineno}: allow_pickle")
        is_auto = re.match(r"(transformers\.)?Auto\w+$", target) and method in (
            "from_pretrained",
            "from_config",
        )
        if given.get("trust_remote_code", "True" if is_auto else "False") != "False":
            found.append(f"line {node.lineno}: {target}.{method} without trust_remote_code=False")
    return found


def package_files() -> list[Path]:
    return sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def program_files() -> list[Path]:
    return package_files() + sorted((ROOT / "benchmarks").rglob("*.py"))


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def show(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", package_files(), ids=show)
def test_imports_follow_the_arrows(path):
    assert wrong_arrows(path.read_text(encoding="utf-8"), path.relative_to(ROOT).parts[0]) == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("vision_core", "import encoders"),
        ("encoders", "from pretrain.heads import ProjectionHead"),
        ("pretrain", "def late():\n    import fusion.connectors.base"),
        ("fusion", "import importlib\nimportlib.import_module('pretrain.heads')"),
        ("recipes", "from benchmarks import speed"),
    ],
)
def test_wrong_arrows_are_seen(package, source):
    assert len(wrong_arrows(source, package)) == 1


def test_allowed_arrows_pass():
    assert (
        wrong_arrows(
            "import torch\nfrom encoders import x\nfrom . import y\nimport pretrain.heads", "pretrain"
        )
        == []
    )


def test_script_folders_shadow_no_package():
    """A script's folder is first on sys.path: `pretrain/datasets.py` there would be what every
    library imports as `datasets`."""
    installed = importlib.metadata.packages_distributions()
    others = {name for name, owners in installed.items() if set(owners) != {"vision-encoder-fusion"}}
    entries = [path for folder in SCRIPT_FOLDERS for path in (ROOT / folder).iterdir()]
    modules = [path for path in entries if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))]
    shadowing = [
        show(path) for path in modules if path.stem in (sys.stdlib_module_names | others) - {"__init__"}
    ]
    assert modules and "torch" in others and "json" in sys.stdlib_module_names
    assert shadowing == []


ARGUMENT_FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*args.py"))


@pytest.mark.parametrize("path", ARGUMENT_FILES, ids=show)
def test_options_are_flat_fields_of_plain_types(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    own = [
        x for x in vars(module).values() if dataclasses.is_dataclass(x) and x.__module__ == module.__name__
    ]
    assert own
    for arguments_type in own:
        assert field_types(arguments_type)  # raises TypeError for tuples, dicts, nested dataclasses


def test_nested_options_are_refused():
    inner = dataclasses.make_dataclass("Inner", [("value", int)])
    for kind in (inner, tuple[float, float], dict[str, int], list[list[int]], int | str):
        with pytest.raises(TypeError, match=r"Outer\.field"):
            field_types(dataclasses.make_dataclass("Outer", [("field", kind)]))


def test_no_init_file_under_tests():
    assert [show(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


@pytest.mark.parametrize("path", program_files(), ids=show)
def test_nothing_loads_code_from_a_file(path):
    assert unsafe_loads(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(folder)",
        "transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust)",
        "Dinov2Model.from_pretrained(folder, trust_remote_code=True)",
    ],
)
def test_unsafe_loads_are_seen(source):
    assert len(unsafe_loads(source)) == 1


def test_safe_loads_pass():
    safe = (
        "torch.load(p, weights_only=True); AutoModel.from_pretrained(p, trust_remote_code=False); np.load(p)"
    )
    assert unsafe_loads(safe + "; Dinov2Model.from_pretrained(p)") == []


@pytest.mark.parametrize("page", pages(), ids=show)
def test_paths_in_the_docs_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = {path for path in PATH_IN_PROSE.findall(text) if not (ROOT / path).exists()}
    missing |= {link for link in LINK.findall(text) if not (page.parent / link).exists()}
    assert missing == set()


def test_paths_in_prose_are_seen():
    text = "run `pretrain/dinov2.py --config pretrain/configs/x.yaml`, not ../shared/docs/a.md or $DATA/tests/b.py"
    assert PATH_IN_PROSE.findall(text) == ["pretrain/dinov2.py", "pretrain/configs/x.yaml"]
    assert LINK.findall("![x](images/a.png) [y](https://b.c) [z](#here) [w](d.md#there)") == [
        "images/a.png",
        "d.md",
    ]


def test_tracked_files_name_no_machine():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    found = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png", ".jpg"):
            lines = path.read_text(encoding="utf-8", errors="ignore").splitlines()
            found += [
                f"{name}:{i}"
                for i, line in enumerate(lines, 1)
                if MACHINE_PATH.search(line) or REGISTRY.search(line)
            ]
    assert found == []


def test_machine_paths_are_seen():
    planted = "/".join(["", "home", "me", "data"])
    assert MACHINE_PATH.search(f"open('{planted}')") and REGISTRY.search("https://" + "pypi" + ".org/simple")
    assert not MACHINE_PATH.search(
        "#!/usr/bin/env bash, > /dev/null, $ROOT/work/x, https://a.b/home/c, docs/root/x"
    )
