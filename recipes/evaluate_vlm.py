"""Evaluates a vision-language model on benchmarks in their published formats.

    python recipes/evaluate_vlm.py --model outputs/sft-1 \\
        --tasks "scenes?count=400&split=held_out" "cv_bench:$DATA/CV-Bench/test*.parquet"

The same questions are also asked without images and with the wrong images. What a task is called:
fusion/evaluation/benchmarks.py.
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass
from typing import Any, Literal

from recipes.judging_args import check_counts
from vision_core.arguments import option, parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.runs.work_folder import WorkFolder, check_work, config_of, resume_option
from vision_core.start import look_first

PROGRAM = "recipes/evaluate_vlm.py"
NAME = "vlm-evaluation"  # of the default folder


@dataclass
class EvaluateVlmArguments:
    """The options: which model answers which questions."""

    model: str | None = option(
        None,
        "folder of a fused vision-language model that recipes/sva_sft.py or fusion.fuse wrote",
        "model",
    )
    tasks: list[str] = option(
        ["scenes?count=400&split=held_out"],
        "cv_bench:, mmvp:, pope:, gqa:, mmbench:, captions:, vqa:, textvqa:, or conversations",
        "tasks",
    )
    max_samples: int | None = option(
        None, "how many questions of each task are asked, the first ones; default: all", "tasks"
    )
    baselines: list[Literal["blind", "shuffled"]] = option(
        ["blind", "shuffled"],
        "ask the same questions without images, and with the images of other questions",
        "tasks",
    )
    thought_tokens: int = option(
        0,
        "tokens of thoughts in front of an answer, for a model that was trained to think; "
        "0 asks without thoughts",
        "tasks",
    )
    batch_size: int = option(32, "how many questions are answered at once", "run")
    output_dir: str | None = option(
        None,
        "new folder for table, JSON, answers and pictures; default: the next free one in outputs/",
        "run",
    )
    resume_from_checkpoint: str | None = resume_option()


def check_arguments(args: EvaluateVlmArguments) -> None:
    """Raises UserError for what cannot work, before anything is loaded."""
    if args.model is None:
        raise UserError(
            "--model is missing; name a folder that recipes/sva_sft.py wrote, e.g. --model outputs/sft-1"
        )
    if not args.tasks or len(set(args.tasks)) < len(args.tasks):
        raise UserError(f"--tasks {' '.join(args.tasks) or '[]'}: name at least one, each once")
    check_counts(args, "max_samples", "batch_size")
    if args.thought_tokens < 0:
        raise UserError(f"--thought_tokens {args.thought_tokens} is not possible; give 0 or more")
    check_work(args.output_dir, NAME, config_of(args), args.resume_from_checkpoint, PROGRAM)


if __name__ == "__main__":
    look_first(EvaluateVlmArguments, __doc__, check_arguments)

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

from PIL import Image, ImageDraw, ImageFont

from encoders.pictures.sheets import LINE_HEIGHT, TILE, contact_sheet, to_picture, wrap
from fusion.evaluation.answers import Score, answer_and_score, chance, pick_examples
from fusion.evaluation.benchmarks import open_task
from fusion.evaluation.kept_answers import KeptAnswers, header_of, model_fingerprint
from fusion.evaluation.tasks import BenchmarkTask
from fusion.training.models import check_model_folder, load_model
from vision_core.files.json_reports import write_json
from vision_core.markdown import table_of_records
from vision_core.printable import printable, say
from vision_core.processes.distributed import broadcast_text, is_main_process
from vision_core.processes.joining import join_processes

Scores = dict[str, Score]  # by the condition of the images: images, blind, shuffled
TABLE_COLUMNS = {"images": "score", "blind": "blind", "shuffled": "wrong images"}
QUESTION_LINES = 5  # above the image of an example
ANSWER_LINES = 2  # below it
FONT_SIZE = 13


def main() -> None:
    """Load the model, ask and grade each task, write the report."""
    args = parse_arguments(EvaluateVlmArguments, description=__doc__)
    check_arguments(args)
    check_model_folder(args.model)
    device = join_processes()
    tasks = [open_task(text, args.max_samples) for text in args.tasks]
    model, processor = load_model(args.model)
    model.to(device).eval()
    work = None
    if is_main_process():
        work = WorkFolder.open(args.output_dir, NAME, config_of(args), args.resume_from_checkpoint, PROGRAM)
    answers_folder = Path(broadcast_text(str(work.partial) if work else ""))
    fingerprint = broadcast_text(model_fingerprint(Path(args.model), device.type) if work else "")
    results = []
    for task in tasks:
        kept = KeptAnswers(answers_folder, header_of(fingerprint, task, args.batch_size, args.thought_tokens))
        if len(kept) and is_main_process():
            say(f"{task.name}: {len(kept):,} answers of an earlier start are kept")
        scores = {}
        for condition in ("images", *args.baselines):
            scores[condition] = answer_and_score(
                model,
                processor,
                task,
                condition,
                batch_size=args.batch_size,
                thought_tokens=args.thought_tokens,
                kept=kept,
            )
        results.append((task, scores))
        if is_main_process():
            say_scores(task, scores)
    if work is not None:
        work.publish(lambda folder: write_report(folder, args, results))
        say(f"\ntable, JSON, answers and pictures: {work.path}")


def say_scores(task: BenchmarkTask, scores: Scores) -> None:
    """Print what was asked, and the table of its scores."""
    count = f"{len(task.questions):,} questions"
    how = f"grader {task.grader}; prompt {task.prompt!r}"
    say(f"\n{printable(task.name)}: {count}; {how}\n\n{score_table(task, scores)}")


def score_table(task: BenchmarkTask, scores: Scores) -> str:
    """A table of the score with its standard error, the loss, the benchmark's other figures and the
    score of each group; one column for each condition of the images."""
    rows: list[dict[str, str]] = []

    def add_row(name: str, texts: Iterable[str]) -> None:
        columns = [TABLE_COLUMNS[condition] for condition in scores]
        rows.append({"questions": name, **dict(zip(columns, texts, strict=True))})

    with_images = scores["images"]
    add_row(
        f"all ({len(task.questions)})",
        [f"{score.score:.1f} ± {score.error:.1f}" for score in scores.values()],
    )
    guess = chance(task)
    if guess is not None:
        rows[0]["chance"] = f"{guess:.1f}"
    add_row("loss of the right answer", [f"{score.loss:.3f}" for score in scores.values()])
    for name in with_images.figures:
        add_row(name, [f"{score.figures[name]:.1f}" for score in scores.values()])
    if len(with_images.groups) > 1:
        for group, (_, count) in with_images.groups.items():
            add_row(f"{group} ({count})", [f"{score.groups[group][0]:.1f}" for score in scores.values()])
    if guess is not None:
        for row in rows[1:]:
            row["chance"] = ""
    return table_of_records(rows)


def write_report(
    folder: Path, args: EvaluateVlmArguments, results: list[tuple[BenchmarkTask, Scores]]
) -> None:
    """Write results.json, answers.jsonl, README.md with the tables, and figures/."""
    reports = {}
    sections = [f"# {args.model}"]
    (folder / "figures").mkdir(exist_ok=True)
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
        for number, (task, scores) in enumerate(results):
            reports[task.name] = report_of_task(task, scores)
            for record in answer_records(task, scores):
                file.write(json.dumps(record) + "\n")
            example_sheet(task, scores["images"]).save(folder / "figures" / f"{number}.png")
            sections += [
                f"## {task.name}",
                f"Prompt `{task.prompt!r}`, grader {task.grader}.",
                score_table(task, scores),
                f"![examples](figures/{number}.png)",
            ]
    arguments = asdict(replace(args, resume_from_checkpoint=None))
    write_json(folder / "results.json", {"model": args.model, "arguments": arguments, "tasks": reports})
    (folder / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def report_of_task(task: BenchmarkTask, scores: Scores) -> dict[str, Any]:
    """What results.json says of a task."""
    report: dict[str, Any] = {
        "prompt": task.prompt,
        "grader": task.grader,
        "questions": len(task.questions),
        "chance": chance(task),
    }
    for condition, score in scores.items():
        report[condition] = score_as_json(score)
    return report


def score_as_json(score: Score) -> dict[str, Any]:
    """Everything but the single answers; figures where the benchmark has some beside its score."""
    report = {"score": score.score, "error": score.error, "loss": score.loss, "groups": score.groups}
    if score.figures:
        report["figures"] = score.figures
    return report


def answer_records(task: BenchmarkTask, scores: Scores) -> Iterable[Mapping[str, Any]]:
    """What answers.jsonl says of each question, with the answers under all conditions."""
    for number, question in enumerate(task.questions):
        record: dict[str, Any] = {
            "task": task.name,
            "where": question.where,
            "question": question.text,
            "expected": question.expected,
            "points": scores["images"].points[number],
        }
        for condition, score in scores.items():
            record[condition] = score.answers[number]
        yield record


def example_sheet(task: BenchmarkTask, score: Score, count: int = 12, columns: int = 4) -> Image.Image:
    """Some questions with their image and the answer, green where it is right."""
    tiles = []
    for question, answer, points in pick_examples(task, score, count):
        picture = Image.new("RGB", (TILE, TILE), "white")
        images = question.images()
        if images:
            picture = to_picture(images[0] / 255).resize((TILE, TILE))
        is_right = points == 1
        below = answer or "(nothing)"
        if not is_right:
            below += f"   [{question.expected[0]}]"
        tiles.append(_example_tile(picture, question.text, below, is_right))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    return contact_sheet(rows)


def _example_tile(picture: Image.Image, question: str, answer: str, is_right: bool) -> Image.Image:
    """The question above an image, the answer below it."""
    font = ImageFont.load_default(FONT_SIZE)
    width = 2 * TILE
    above = wrap(question.split("Answer with")[0], width, font)[:QUESTION_LINES]
    below = wrap(answer, width, font)[:ANSWER_LINES]
    height = TILE + (QUESTION_LINES + ANSWER_LINES) * LINE_HEIGHT
    tile = Image.new("RGB", (width, height), "white")
    tile.paste(picture, (0, QUESTION_LINES * LINE_HEIGHT))
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(above, start=QUESTION_LINES - len(above)):
        draw.text((2, number * LINE_HEIGHT), line, fill="black", font=font)
    colour = "darkgreen" if is_right else "firebrick"
    for number, line in enumerate(below):
        draw.text((2, TILE + (QUESTION_LINES + number) * LINE_HEIGHT), line, fill=colour, font=font)
    return tile


if __name__ == "__main__":
    run_script(main)
