"""No message advises an option that the program which prints it refuses: every `--name` in the
strings of every program's modules is looked up."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vision_core", "encoders", "pretrain", "fusion", "recipes")
# program -> where the dataclass of its options is
PROGRAMS = {
    "fusion.fuse": "fusion.fuse_args.FuseArguments",
    "fusion.convert_cambrian": "fusion.fuse_args.ConvertArguments",
    "pretrain.data_stats": "pretrain.data_stats.DataStatsArguments",
    "pretrain.dinov2": "pretrain.run.args.DINOv2Arguments",
    "pretrain.mae": "pretrain.run.image_args.MaeArguments",
    "pretrain.siglip": "pretrain.run.image_args.SiglipArguments",
    "recipes.check_conversations": "recipes.check_conversations.CheckArguments",
    "recipes.compare_encoders": "recipes.judging_args.CompareArguments",
    "recipes.convert_flickr8k_vl": "recipes.convert_flickr8k_vl.ConvertArguments",
    "recipes.evaluate_encoder": "recipes.judging_args.EvaluateArguments",
    "recipes.evaluate_vlm": "recipes.evaluate_vlm.EvaluateVlmArguments",
    "recipes.scenes_report": "recipes.scenes_report.ReportArguments",
    "recipes.small_language_model": "recipes.small_language_model.LanguageModelArguments",
    "recipes.sva_align": "recipes.vlm_args.AlignArguments",
    "recipes.sva_sft": "recipes.vlm_args.SftArguments",
}
OF_THE_PARSER = {"config", "help", "key", "local"}
# --signal is of sbatch
OF_LAUNCHERS = {"signal", "nproc", "nnodes", "num_nodes", "num_gpus"}
# Modules that programs with other options share: what they advise, all of the programs named here
# must take.
SHARED = {
    "encoders.evaluation.": ("recipes.evaluate_encoder", "recipes.compare_encoders"),
    "vision_core.images.": tuple(PROGRAMS),
    "vision_core.runs.work_folder": tuple(
        name for name in PROGRAMS if name.startswith(("fusion.", "recipes.")) and "sva" not in name
    ),
}
PROGRAM_IN_TEXT = re.compile(r"(?:(fusion)\.(fuse|convert_cambrian)|(pretrain|recipes)/(\w+)\.py)")


@cache
def options_of(program: str) -> set[str]:
    """The names of the options, read without the libraries that some of these modules import."""
    module, _, name = PROGRAMS[program].rpartition(".")
    return fields_of(module, name)


def fields_of(module: str, name: str) -> set[str]:
    """Those of a dataclass and of the classes that it is made from, here or in the module that they
    come from."""
    for node in tree_of(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            inherited = [fields_of(module, base.id) for base in node.bases]
            return {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}.union(*inherited)
        if isinstance(node, ast.ImportFrom) and name in [each.name for each in node.names]:
            return fields_of(node.module, name)
    raise AssertionError(f"{module} has no {name}")


def path_of(module: str) -> Path | None:
    place = ROOT / module.replace(".", "/")
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


@cache
def imported_by(module: str) -> set[str]:
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return {name for name in found if name.split(".")[0] in PACKAGES and path_of(name)}


@cache
def reached_by(program: str) -> set[str]:
    """The modules that a program imports, and those that they import."""
    seen: set[str] = set()
    to_do = [program]
    while to_do:
        module = to_do.pop()
        if module not in seen:
            seen.add(module)
            to_do += imported_by(module)
    return seen


def texts(module: str) -> Iterator[str]:
    """String constants but docstrings; of an f-string its fixed parts, with the option that resumes
    by its name."""
    tree = tree_of(module)
    left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
            yield "".join(
                part.value if isinstance(part, ast.Constant) else _inserted(part) for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.value


def _inserted(part: ast.FormattedValue) -> str:
    return "resume_from_checkpoint" if ast.unparse(part.value).endswith("RESUME_KEY") else "{}"


def names_in(text: str) -> set[str]:
    """The options in a text that are not those of a program which the text itself names."""
    named = [
        "".join(filter(None, (a, c))) + "." + "".join(filter(None, (b, d)))
        for a, b, c, d in PROGRAM_IN_TEXT.findall(text)
    ]
    theirs = set().union(*(options_of(program) for program in named if program in PROGRAMS))
    return set(re.findall(r"--([a-z][a-z0-9_]*)", text)) - theirs - OF_THE_PARSER - OF_LAUNCHERS


@cache
def advised() -> list[tuple[str, str, str]]:
    """(module, option, text) of everything that a program can print."""
    modules = sorted(set().union(*map(reached_by, PROGRAMS)))
    return [(module, name, text) for module in modules for text in texts(module) for name in names_in(text)]


def test_every_option_in_a_message_is_one_of_a_program_that_can_print_it():
    found = advised()
    assert len(found) > 100  # the test has found the messages
    for module, name, text in found:
        takes = [
            program for program in PROGRAMS if module in reached_by(program) and name in options_of(program)
        ]
        is_to_paste = module == "pretrain.data_stats" and name in options_of("pretrain.dinov2")
        assert takes or is_to_paste, (
            f"{module} advises --{name}, which no program that reaches it takes: {text!r}"
        )


def test_modules_of_several_programs_advise_what_all_of_them_take():
    for module, name, text in advised():
        for beginning, programs in SHARED.items():
            if module.startswith(beginning):
                lacking = [
                    program
                    for program in programs
                    if module in reached_by(program) and name not in options_of(program)
                ]
                assert not lacking, f"{module} advises --{name}, which {lacking} refuse: {text!r}"


@pytest.mark.parametrize(
    "text",
    ["give another --no_such_option", "`python recipes/sva_sft.py --init_from X --cache_dir Y` trains it"],
)
def test_a_wrong_name_would_be_seen(text):
    assert names_in(text) & {"no_such_option", "cache_dir"}
