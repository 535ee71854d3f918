"""The grades that official code gives to the answers in official_grades.json. Where lmms_eval is,
it writes them anew.

    python tests/fusion/evaluation/official_grades.py                           lmms-eval's grades: of all but
    POPE python tests/fusion/evaluation/official_grades.py --pope_evaluation FILE    and POPE's, by
    evaluate.py of AoiDragon/POPE

`official` is the grade of an answer by lmms-eval 0.7.3, of POPE by its own script. Our graders give the same grade, but
for answers that tell their letter in a way that the official code does not read: these have a `why`, and ours is the
other grade.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")


def load() -> dict[str, Any]:
    """Benchmark -> {"answers": [...], ...}."""
    return json.loads(FILE.read_text(encoding="utf-8"))


@functools.cache
def lmms_eval_folder() -> Path:
    return Path(importlib.util.find_spec("lmms_eval").submodule_search_locations[0])


@functools.cache
def lmms_eval_module(name: str) -> Any:
    """A module of lmms-eval without what its packages import: some want 80 libraries to grade an
    answer."""
    root = lmms_eval_folder()
    parts = name.split(".")
    for depth in range(len(parts)):
        package = ".".join(["lmms_eval", *parts[:depth]])
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(root.joinpath(*parts[:depth]))]
    return importlib.import_module(f"lmms_eval.{name}")


def mmvp(row: dict[str, Any]) -> float:
    document = {"Correct Answer": f"({row['expected'].lower()})", "Index": 1}
    result = lmms_eval_module("tasks.mmvp.utils").mmvp_process_results(document, [row["given"]])
    return float(result["mmvp_accuracy"]["is_correct"])


def cv_bench(row: dict[str, Any]) -> float:
    document = {"answer": f"({row['expected']})", "idx": 0, "type": "2D", "task": "Count", "source": "COCO"}
    result = lmms_eval_module("tasks.cv_bench.utils").cv_bench_process_results(document, [row["given"]])
    return float(result["cv_bench_acc"]["is_correct"])


def mmbench(row: dict[str, Any]) -> float:
    import pandas

    evaluator = lmms_eval_module("tasks.mmbench.mmbench_evals").MMBench_Evaluator()
    choices = {
        letter: choice or None for letter, choice in zip("ABCD", [*row["choices"], *[None] * 4], strict=False)
    }
    table = pandas.DataFrame([{"index": 1, "prediction": row["given"], **choices}])
    return float(evaluator.eval_sub_data(table, {1: row["expected"]}, static_only=True))


def people(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"answer": answer, "answer_id": number} for number, answer in enumerate(row["expected"])]


def vqa(row: dict[str, Any]) -> float:
    document = {"answers": people(row), "question_id": 0}
    return lmms_eval_module("tasks.vqav2.utils").vqav2_process_results(document, [row["given"]])[
        "exact_match"
    ]


def textvqa(row: dict[str, Any]) -> float:
    document = {"answers": list(row["expected"]), "question_id": 0}
    return lmms_eval_module("tasks.textvqa.utils").textvqa_process_results(document, [row["given"]])[
        "exact_match"
    ]


def gqa(row: dict[str, Any]) -> float:
    match = lmms_eval_module("api.metrics").exact_match_hf_evaluate
    return float(
        match([row["given"]], [row["expected"]], ignore_case=True, ignore_punctuation=True)["exact_match"]
    )


GRADES = {"mmvp": mmvp, "cv_bench": cv_bench, "mmbench": mmbench, "vqa": vqa, "textvqa": textvqa, "gqa": gqa}


def lmms_eval_grades(benchmark: str, rows: list[dict[str, Any]]) -> list[float]:
    """Of each answer."""
    return [round(GRADES[benchmark](row), 12) for row in rows]


def pope(evaluation: Path, rows: list[dict[str, Any]]) -> tuple[list[float], dict[str, float]]:
    """The grades and figures of POPE's own script, which has the names of its two files at its
    head."""
    files = {
        "answers": "\n".join(json.dumps({"answer": row["given"]}) for row in rows),
        "labels": "\n".join(json.dumps({"label": row["expected"]}) for row in rows),
    }
    source = evaluation.read_text(encoding="utf-8")
    source = source.replace("ans_file = ''", "ans_file = 'answers'").replace(
        "label_file = ''", "label_file = 'labels'"
    )
    names: dict[str, Any] = {"open": lambda name, mode: io.StringIO(files[name])}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, str(evaluation), "exec"), names)
    grades = [
        float(said["answer"] == row["expected"]) for said, row in zip(names["answers"], rows, strict=True)
    ]
    figures = {
        "accuracy": "acc",
        "F1": "f1",
        "precision": "precision",
        "recall": "recall",
        "yes ratio": "yes_ratio",
    }
    return grades, {name: round(100 * names[variable], 9) for name, variable in figures.items()}


def write(cases: dict[str, Any], file: Path) -> None:
    """One line to an answer."""
    parts = []
    for benchmark, case in cases.items():
        rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in case["answers"])
        others = "".join(
            f' "{name}": {json.dumps(value)},\n' for name, value in case.items() if name != "answers"
        )
        parts.append(f'"{benchmark}": {{\n{others} "answers": [\n{rows}\n ]\n}}')
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--pope_evaluation", type=Path, help="its own evaluate.py; default: POPE's grades stay"
    )
    parser.add_argument("--output", type=Path, default=FILE)
    args = parser.parse_args()
    cases = load()
    for benchmark in GRADES:
        rows = cases[benchmark]["answers"]
        for row, grade in zip(rows, lmms_eval_grades(benchmark, rows), strict=True):
            row["official"] = grade
    if args.pope_evaluation:
        rows = cases["pope"]["answers"]
        grades, cases["pope"]["figures"] = pope(args.pope_evaluation, rows)
        for row, grade in zip(rows, grades, strict=True):
            row["official"] = grade
    write(cases, args.output)


if __name__ == "__main__":
    main()
