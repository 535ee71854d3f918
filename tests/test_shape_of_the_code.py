"""How dense the code is, measured, so that the next change sees it: `pytest
tests/test_shape_of_the_code.py -rP` prints a line for each folder. Tests are left out. `python
tests/test_shape_of_the_code.py` prints the same at once.
"""

import ast
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vision_core", "encoders", "pretrain", "fusion", "recipes")
FOLDERS = (*PACKAGES, "benchmarks")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Shape:
    """What is counted in some files."""

    counts: Counter = field(default_factory=Counter)
    functions: list[tuple[int, str]] = field(default_factory=list)

    def add(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines():
            self.counts["lines"] += 1
            self.counts["over 120"] += len(line) > 120
            self.counts["over 100"] += len(line) > 100
        for node in ast.walk(ast.parse(text)):
            self.counts["comprehensions"] += isinstance(node, COMPREHENSIONS)
            self.counts["nested"] += is_nested(node)
            self.counts["tuples"] += is_tuple_assignment(node)
            self.counts["conditionals"] += isinstance(node, ast.IfExp)
            if isinstance(node, FUNCTIONS):
                length = node.end_lineno - node.lineno + 1
                self.functions.append((length, f"{path.relative_to(ROOT)}: {node.name}"))

    def per_1000(self, name: str) -> float:
        return 1000 * self.counts[name] / max(self.counts["lines"], 1)

    @property
    def ninth_tenth(self) -> int:
        """The length that nine of ten functions do not exceed."""
        lengths = sorted(length for length, _ in self.functions)
        return lengths[int(0.9 * len(lengths))] if lengths else 0

    def __str__(self) -> str:
        longest = max(self.functions, default=(0, ""))
        return (
            f"{self.counts['lines']:6} lines, {self.counts['over 120']:3} over 120 columns, "
            f"{self.per_1000('over 100') / 10:4.1f} % over 100; per 1000 lines "
            f"{self.per_1000('comprehensions'):4.1f} comprehensions, {self.per_1000('nested'):3.1f} nested, "
            f"{self.per_1000('tuples'):4.1f} tuple assignments, "
            f"{self.per_1000('conditionals'):4.1f} conditional expressions; "
            f"functions: nine of ten at most {self.ninth_tenth} lines, longest {longest[0]} ({longest[1]})"
        )


def is_nested(node: ast.AST) -> bool:
    """A comprehension in a comprehension, or one with two loops."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    inner = any(isinstance(part, COMPREHENSIONS) for part in ast.walk(node) if part is not node)
    return inner or len(node.generators) > 1


def is_tuple_assignment(node: ast.AST) -> bool:
    """`a, b = c, d`: two assignments in one line."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and any(isinstance(target, ast.Tuple) for target in node.targets)
    )


def shape_of(paths: list[Path]) -> Shape:
    shape = Shape()
    for path in paths:
        shape.add(path)
    return shape


def files_of(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


@pytest.fixture(scope="module")
def whole() -> Shape:
    paths = [path for folder in FOLDERS for path in files_of(ROOT / folder, "**/*.py")]
    return shape_of(paths)


def report() -> list[str]:
    lines = []
    for folder in sorted({path.parent for name in FOLDERS for path in (ROOT / name).rglob("*.py")}):
        lines.append(f"{folder.relative_to(ROOT)}: {shape_of(files_of(folder, '*.py'))}")
    return lines


def test_lines_are_short(whole):
    print("\n".join([*report(), f"all: {whole}"]))
    assert whole.counts["over 120"] == 0
    assert whole.per_1000("over 100") <= 60


def test_statements_are_plain(whole):
    assert whole.per_1000("comprehensions") <= 25
    assert whole.per_1000("nested") <= 1
    assert whole.per_1000("tuples") <= 5


def test_functions_fit_a_screen(whole):
    assert whole.ninth_tenth <= 20
    assert max(whole.functions)[0] <= 65


def module_names() -> dict[str, Path]:
    names = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported_names(path: Path) -> set[str]:
    """Everything that a module may import, under `if TYPE_CHECKING` and inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def import_graph() -> networkx.DiGraph:
    modules = module_names()
    graph = networkx.DiGraph()
    for name, path in modules.items():
        for imported in imported_names(path) & set(modules):
            if modules[imported].name != "__init__.py" and imported != name:
                graph.add_edge(name, imported)
    return graph


def test_modules_import_each_other_in_no_circle():
    circles = [sorted(group) for group in networkx.strongly_connected_components(import_graph())]
    assert [circle for circle in circles if len(circle) > 1] == []


def test_what_is_counted():
    tree = ast.parse("a, b = 1, 2\nc = [x for x in [y for y in z]]\nd = [x for y in z for x in y]")
    nodes = list(ast.walk(tree))
    assert sum(map(is_tuple_assignment, nodes)) == 1
    assert sum(map(is_nested, nodes)) == 2


if __name__ == "__main__":
    every = [path for folder in FOLDERS for path in files_of(ROOT / folder, "**/*.py")]
    print("\n".join([*report(), f"all: {shape_of(every)}"]))
