"""One page about fused models that answer questions about scenes: a table over seeds, curves,
example answers beside each other.

python recipes/scenes_report.py --models outputs/everything --output_dir outputs/everything/report
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

from vision_core.arguments import option, parse_arguments
from vision_core.runs.work_folder import WorkFolder, check_work, config_of, resume_option
from vision_core.start import look_first

PROGRAM = "recipes/scenes_report.py"
NAME = "report"  # of the default folder


@dataclass
class ReportArguments:
    """Whose results are shown."""

    models: str = option(
        "outputs/everything", "a folder with VARIANT-SEED/sft and VARIANT-SEED/judged in it", "what"
    )
    output_dir: str | None = option(
        None, "a new folder for the page and its pictures; default outputs/report-<n>", "run"
    )
    resume_from_checkpoint: str | None = resume_option()


def check_arguments(args: ReportArguments) -> None:
    """Raises UserError for an output folder that cannot be used."""
    check_work(args.output_dir, NAME, config_of(args), args.resume_from_checkpoint, PROGRAM)


if __name__ == "__main__":
    look_first(ReportArguments, __doc__, check_arguments)

import json
import statistics
from collections.abc import Sequence
from typing import Any

from encoders.pictures.curves import bar_picture, curve_picture
from encoders.pictures.sheets import contact_sheet, to_picture
from fusion.evaluation.benchmarks import open_task
from fusion.evaluation.tasks import Question
from vision_core.errors import UserError, run_script
from vision_core.markdown import table_of_records
from vision_core.printable import say

KINDS = {
    "what": ("category", "colour", "texture"),
    "where": ("left_of", "above", "nearest", "count", "depth_order"),
}
SHOWN = {"images": "", "blind": " blind", "shuffled": " wrong images"}
EXAMPLES = 12


@dataclass(frozen=True)
class Judged:
    """One fused model. scores: shown -> group -> percent. losses: (steps, values) of fine-tuning.
    answers: rows of answers.jsonl."""

    variant: str
    seed: str
    task: str
    scores: dict[str, dict[str, float]]
    losses: tuple[list[float], list[float]]
    answers: list[dict[str, Any]]


def main() -> None:
    """Read, put together, write."""
    args = parse_arguments(ReportArguments, description=__doc__)
    check_arguments(args)
    folders = sorted(folder.parent for folder in Path(args.models).glob("*-*/judged"))
    if not folders:
        raise UserError(
            f"{args.models} holds no VARIANT-SEED/judged; run recipes/everything_on_scenes.sh first"
        )
    models = [read(folder) for folder in folders]
    work = WorkFolder.open(args.output_dir, NAME, config_of(args), args.resume_from_checkpoint, PROGRAM)
    work.publish(lambda folder: write_page(folder, models))
    say(f"{table_of_records(rows(models, TOTALS))}\n\nthe page: {work.path / 'README.md'}")


def read(folder: Path) -> Judged:
    """What a model's fine-tuning and its judgement left."""
    variant, _, seed = folder.name.rpartition("-")
    tasks = json.loads((folder / "judged" / "results.json").read_text(encoding="utf-8"))["tasks"]
    name, task = next(iter(tasks.items()))
    scores = {
        shown: with_means({kind: value for kind, (value, _) in task[shown]["groups"].items()})
        for shown in SHOWN
    }
    metrics = [
        json.loads(line)
        for line in (folder / "sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    losses = [(line["step"], line["loss"]) for line in metrics if "loss" in line]
    answers = [
        json.loads(line)
        for line in (folder / "judged" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return Judged(
        variant, seed, name, scores, ([step for step, _ in losses], [loss for _, loss in losses]), answers
    )


def with_means(groups: dict[str, float]) -> dict[str, float]:
    """Percent of each kind of question, and the means over the kinds of `what`, of `where` and of
    both."""
    means = {name: statistics.fmean(groups[kind] for kind in kinds) for name, kinds in KINDS.items()}
    return means | {"all": statistics.fmean(groups.values())} | groups


TOTALS = ("what", "where", "all")


def rows(models: Sequence[Judged], columns: Sequence[str], shown: str = "images") -> list[dict[str, str]]:
    """A row for each variant: mean and spread over its seeds."""
    table = []
    for variant in dict.fromkeys(each.variant for each in models):
        runs = [each.scores[shown] for each in models if each.variant == variant]
        table.append(
            {"variant": variant, "seeds": str(len(runs))}
            | {name: spread([each[name] for each in runs]) for name in columns}
        )
    return table


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.fmean(values):.1f}" + (
        f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    )


def write_page(folder: Path, models: Sequence[Judged]) -> None:
    """README.md and figures/."""
    kinds = [kind for of_name in KINDS.values() for kind in of_name]
    figures = folder / "figures"
    figures.mkdir()
    comparison(models).save(figures / "comparison.png")
    first = {each.variant: each for each in reversed(models)}  # of each variant the smallest seed
    curve_picture(
        {name: first[name].losses for name in sorted(first)}, "fine-tuning, first seed", "loss"
    ).save(figures / "loss.png")
    sheet, said = examples(list(first.values())[::-1])
    sheet.save(figures / "examples.png")
    blind = [
        row | {"variant": f"{row['variant']}{SHOWN[shown]}"}
        for shown in ("blind", "shuffled")
        for row in rows(models, (*TOTALS, *kinds), shown)
    ]
    parts = [
        "# Fused models on drawn scenes",
        f"`{models[0].task}`, {len(models[0].answers)} questions. Percent of right answers, mean and standard deviation over seeds; *what* is the mean over "
        f"{', '.join(KINDS['what'])}, *where* over {', '.join(KINDS['where'])}. All variants saw the same conversations for as many steps.",
        table_of_records(rows(models, (*TOTALS, *kinds))),
        "![comparison](figures/comparison.png)",
        "The same models without any image, and with the images of other questions:",
        table_of_records(blind),
        "![loss](figures/loss.png)",
        "## Answers",
        "![the images](figures/examples.png)",
        table_of_records(said),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def comparison(models: Sequence[Judged]) -> Any:
    """Bars of the means over seeds, and blind ones beside them."""
    variants = list(dict.fromkeys(each.variant for each in models))
    groups: dict[str, dict[str, float]] = {}
    for name in TOTALS:
        groups[name] = {
            variant: statistics.fmean(
                each.scores["images"][name] for each in models if each.variant == variant
            )
            for variant in variants
        }
        groups[name]["blind"] = statistics.fmean(each.scores["blind"][name] for each in models)
    return bar_picture(groups, "questions about held-out scenes", "% right")


def examples(models: Sequence[Judged]) -> tuple[Any, list[dict[str, str]]]:
    """Some questions' images, numbered by their place, and what each variant answers; wrong answers
    are struck out."""
    questions = open_task(models[0].task).questions
    step = max(len(questions) // EXAMPLES, 1)
    chosen = list(range(0, len(questions), step))[:EXAMPLES]
    tiles = [to_picture(questions[at].images()[0] / 255) for at in chosen]
    half = (len(tiles) + 1) // 2
    return contact_sheet([tiles[:half], tiles[half:]]), [
        _said(number, questions[at], at, models) for number, at in enumerate(chosen, 1)
    ]


def _said(number: int, question: Question, at: int, models: Sequence[Judged]) -> dict[str, str]:
    row = {"image": str(number), "question": question.text, "right": question.expected[0]}
    for each in models:
        given = each.answers[at]["images"] or "(nothing)"
        row[each.variant] = given if each.answers[at]["points"] else f"~~{given}~~"
    return row


if __name__ == "__main__":
    run_script(main)
