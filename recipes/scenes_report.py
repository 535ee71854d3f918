"""Writes a page about fused models that answer questions about scenes: a table over seeds, curves,
and example answers side by side.

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

from PIL.Image import Image

from encoders.pictures.curves import bar_picture, curve_picture
from encoders.pictures.sheets import contact_sheet, to_picture
from fusion.evaluation.benchmarks import open_task
from fusion.evaluation.tasks import BenchmarkQuestion
from vision_core.errors import UserError, run_script
from vision_core.markdown import table
from vision_core.printable import say

# The kinds of questions, by what they ask about.
QUESTION_KINDS = {
    "what": ("category", "colour", "texture"),
    "where": ("left_of", "above", "nearest", "count", "depth_order"),
}
TOTALS = ("what", "where", "all")
COLUMNS = (*TOTALS, *QUESTION_KINDS["what"], *QUESTION_KINDS["where"])
WITH_IMAGES = "images"
# What stands in for the question's image, and how the table calls it.
WITHOUT_IMAGES = {"blind": "blind", "shuffled": "wrong images"}
EXAMPLES = 12


@dataclass(frozen=True)
class JudgedModel:
    """A fused model that was fine-tuned and judged.

    Attributes:
        task: the questions that it answered.
        scores: percent of right answers, by what was shown and by kind of question.
        losses: steps and losses of fine-tuning.
        answers: the rows of answers.jsonl.
    """

    variant: str
    seed: str
    task: str
    scores: dict[str, dict[str, float]]
    losses: tuple[list[float], list[float]]
    answers: list[dict[str, Any]]


def main() -> None:
    """Read what was judged, and write the page."""
    args = parse_arguments(ReportArguments, description=__doc__)
    check_arguments(args)
    folders = sorted(folder.parent for folder in Path(args.models).glob("*-*/judged"))
    if not folders:
        raise UserError(
            f"{args.models} holds no VARIANT-SEED/judged; run recipes/everything_on_scenes.sh first"
        )
    models = [read_model(folder) for folder in folders]
    work = WorkFolder.open(args.output_dir, NAME, config_of(args), args.resume_from_checkpoint, PROGRAM)
    work.publish(lambda folder: write_page(folder, models))
    say(f"{score_table(models, TOTALS)}\n\nthe page: {work.path / 'README.md'}")


def read_model(folder: Path) -> JudgedModel:
    """What fine-tuning and judging left in a model's folder, VARIANT-SEED."""
    variant, _, seed = folder.name.rpartition("-")
    results = json.loads((folder / "judged" / "results.json").read_text(encoding="utf-8"))
    task, result = next(iter(results["tasks"].items()))
    scores = {shown: scores_of(result[shown]["groups"]) for shown in (WITH_IMAGES, *WITHOUT_IMAGES)}
    steps = []
    losses = []
    for line in read_json_lines(folder / "sft" / "metrics.jsonl"):
        if "loss" in line:
            steps.append(line["step"])
            losses.append(line["loss"])
    answers = read_json_lines(folder / "judged" / "answers.jsonl")
    return JudgedModel(variant, seed, task, scores, losses=(steps, losses), answers=answers)


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects in a file of one JSON object a line."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def scores_of(groups: dict[str, tuple[float, int]]) -> dict[str, float]:
    """Percent of each kind of question, and their means, of groups of (percent, count)."""
    return with_means({kind: percent for kind, (percent, _) in groups.items()})


def with_means(percent: dict[str, float]) -> dict[str, float]:
    """The percent of each kind of question, and the means over the kinds of `what`, of `where` and
    of both."""
    means = {}
    for name, kinds in QUESTION_KINDS.items():
        means[name] = statistics.fmean(percent[kind] for kind in kinds)
    return means | {"all": statistics.fmean(percent.values())} | percent


def write_page(folder: Path, models: Sequence[JudgedModel]) -> None:
    """Write README.md and the pictures in figures/."""
    first_seeds = models_of_first_seed(models)
    examples = Examples(models[0].task)
    figures = folder / "figures"
    figures.mkdir()
    comparison_picture(models).save(figures / "comparison.png")
    loss_picture(first_seeds).save(figures / "loss.png")
    examples.picture().save(figures / "examples.png")
    parts = [
        "# Fused models on drawn scenes",
        introduction(models),
        score_table(models, COLUMNS),
        "![comparison](figures/comparison.png)",
        "The same models without any image, and with the images of other questions:",
        score_table_without_images(models),
        "![loss](figures/loss.png)",
        "## Answers",
        "![the images](figures/examples.png)",
        examples.answer_table(first_seeds),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def models_of_first_seed(models: Sequence[JudgedModel]) -> list[JudgedModel]:
    """Of each variant the model of the smallest seed. Models are in the order of their folders."""
    by_variant: dict[str, JudgedModel] = {}
    for each in models:
        by_variant.setdefault(each.variant, each)
    return list(by_variant.values())


def introduction(models: Sequence[JudgedModel]) -> str:
    """What the tables below show."""
    return (
        f"`{models[0].task}`, {len(models[0].answers)} questions. "
        "Percent of right answers, mean and standard deviation over seeds; "
        f"*what* is the mean over {', '.join(QUESTION_KINDS['what'])}, "
        f"*where* over {', '.join(QUESTION_KINDS['where'])}. "
        "All variants saw the same conversations for as many steps."
    )


def score_table(models: Sequence[JudgedModel], columns: Sequence[str]) -> str:
    """The answers of each variant, with the questions' images."""
    return table(["variant", "seeds", *columns], score_rows(models, columns, WITH_IMAGES))


def score_table_without_images(models: Sequence[JudgedModel]) -> str:
    """The answers of each variant without an image, then with the images of other questions."""
    rows = []
    for shown, title in WITHOUT_IMAGES.items():
        for variant, *cells in score_rows(models, COLUMNS, shown):
            rows.append([f"{variant} {title}", *cells])
    return table(["variant", "seeds", *COLUMNS], rows)


def score_rows(models: Sequence[JudgedModel], columns: Sequence[str], shown: str) -> list[list[str]]:
    """A row for each variant: its name, its number of seeds, and the percents over its seeds."""
    rows = []
    for variant, scores in scores_by_variant(models, shown).items():
        spreads = [mean_and_deviation([each[name] for each in scores]) for name in columns]
        rows.append([variant, str(len(scores)), *spreads])
    return rows


def scores_by_variant(models: Sequence[JudgedModel], shown: str) -> dict[str, list[dict[str, float]]]:
    """The scores of each variant, one entry a seed."""
    scores: dict[str, list[dict[str, float]]] = {}
    for each in models:
        scores.setdefault(each.variant, []).append(each.scores[shown])
    return scores


def mean_and_deviation(values: Sequence[float]) -> str:
    """`60.0 ± 10.0`; of a single value itself alone."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def comparison_picture(models: Sequence[JudgedModel]) -> Image:
    """Bars of the means over seeds, with those of all models without an image beside them."""
    blind = [each.scores["blind"] for each in models]
    bars: dict[str, dict[str, float]] = {}
    for name in TOTALS:
        bars[name] = {}
        for variant, scores in scores_by_variant(models, WITH_IMAGES).items():
            bars[name][variant] = statistics.fmean(each[name] for each in scores)
        bars[name]["blind"] = statistics.fmean(each[name] for each in blind)
    return bar_picture(bars, "questions about held-out scenes", "% right")


def loss_picture(models: Sequence[JudgedModel]) -> Image:
    """The losses of fine-tuning as curves."""
    curves = {each.variant: each.losses for each in sorted(models, key=lambda model: model.variant)}
    return curve_picture(curves, "fine-tuning, first seed", "loss")


class Examples:
    """Some of a task's questions, spread over all of them, and numbered from 1."""

    def __init__(self, task: str) -> None:
        questions = open_task(task).questions
        step = max(len(questions) // EXAMPLES, 1)
        places = range(0, len(questions), step)[:EXAMPLES]
        self.questions: dict[int, BenchmarkQuestion] = {place: questions[place] for place in places}

    def picture(self) -> Image:
        """The questions' images in two rows, in the order of their numbers."""
        tiles = [to_picture(question.images()[0] / 255) for question in self.questions.values()]
        half = (len(tiles) + 1) // 2
        return contact_sheet([tiles[:half], tiles[half:]])

    def answer_table(self, models: Sequence[JudgedModel]) -> str:
        """What each model answers; wrong answers are struck out."""
        rows = []
        for number, (place, question) in enumerate(self.questions.items(), 1):
            answers = [shown_answer(each.answers[place]) for each in models]
            rows.append([str(number), question.text, question.expected[0], *answers])
        variants = [each.variant for each in models]
        return table(["image", "question", "right", *variants], rows)


def shown_answer(answer: dict[str, Any]) -> str:
    """An answer with the image, struck out where it is wrong."""
    given = answer["images"] or "(nothing)"
    return given if answer["points"] else f"~~{given}~~"


if __name__ == "__main__":
    run_script(main)
