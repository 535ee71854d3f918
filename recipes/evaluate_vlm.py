"""What a vision-language model can answer: benchmarks in their published formats, beside the same
model blind and with the wrong images.

python recipes/evaluate_vlm.py --model outputs/sft-1 --tasks "scenes?count=400&split=held_out"
"cv_bench:$DATA/CV-Bench/test*.parquet"
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
    """Which model answers which questions."""

    model: str | None = option(
        None, "folder of a fused vision-language model: of recipes/sva_sft.py, or of fusion.fuse", "model"
    )
    tasks: list[str] = option(
        ["scenes?count=400&split=held_out"],
        "cv_bench:, mmvp:, pope:, gqa:, mmbench:, captions:, vqa:, textvqa:, or conversations",
        "tasks",
    )
    max_samples: int | None = option(None, "questions of each task, the first ones; default: all", "tasks")
    baselines: list[Literal["blind", "shuffled"]] = option(
        ["blind", "shuffled"], "the same without images, and with those of other questions", "tasks"
    )
    thought_tokens: int = option(
        0,
        "tokens of thoughts in front of an answer, of a model that was trained to think; 0 asks without thoughts",
        "tasks",
    )
    batch_size: int = option(32, "questions that are answered at once", "run")
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
from dataclasses import asdict, replace

from PIL import Image, ImageDraw, ImageFont

from encoders.pictures.sheets import LINE_HEIGHT, TILE, contact_sheet, to_picture, wrap
from fusion.evaluation.answers import Score, answer_and_score, chance, examples
from fusion.evaluation.benchmarks import open_task
from fusion.evaluation.kept_answers import KeptAnswers, header_of, model_fingerprint
from fusion.evaluation.tasks import Task
from fusion.training.models import check_model_folder, load_model
from vision_core.files.json_reports import write_json
from vision_core.markdown import table_of_records
from vision_core.printable import printable, say
from vision_core.processes.distributed import broadcast_text, is_main_process
from vision_core.processes.joining import join_processes


def main() -> None:
    """Load, ask, grade, write."""
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
    partial = Path(broadcast_text(str(work.partial) if work else ""))
    fingerprint = broadcast_text(model_fingerprint(Path(args.model), device.type) if work else "")
    results = []
    for task in tasks:
        kept = KeptAnswers(partial, header_of(fingerprint, task, args.batch_size, args.thought_tokens))
        if len(kept) and is_main_process():
            say(f"{task.name}: {len(kept):,} answers of an earlier start are kept")
        scores = {
            shown: answer_and_score(model, processor, task, shown, args.batch_size, args.thought_tokens, kept)
            for shown in ("images", *args.baselines)
        }
        results.append((task, scores))
        if is_main_process():
            say(
                f"\n{printable(task.name)}: {len(task.questions):,} questions; grader {task.grader}; prompt {task.prompt!r}\n\n{table(task, scores)}"
            )
    if work is not None:
        work.publish(lambda folder: write_report(folder, args, results))
        say(f"\ntable, JSON, answers and pictures: {work.path}")


def table(task: Task, scores: dict[str, Score]) -> str:
    """The whole with standard errors, the benchmark's other figures and each group, with images and
    without."""
    guessed = chance(task)
    columns = {"images": "score", "blind": "blind", "shuffled": "wrong images"}
    rows = [
        {"questions": f"all ({len(task.questions)})"}
        | {columns[shown]: f"{score.score:.1f} ± {score.error:.1f}" for shown, score in scores.items()}
        | ({} if guessed is None else {"chance": f"{guessed:.1f}"})
    ]
    rows.append(
        {"questions": "loss of the right answer"}
        | {columns[shown]: f"{score.loss:.3f}" for shown, score in scores.items()}
    )
    for name in scores["images"].figures:
        values = {columns[shown]: f"{score.figures[name]:.1f}" for shown, score in scores.items()}
        rows.append({"questions": name} | values)
    for group, (_, count) in scores["images"].groups.items() if len(scores["images"].groups) > 1 else ():
        rows.append(
            {"questions": f"{group} ({count})"}
            | {columns[shown]: f"{score.groups[group][0]:.1f}" for shown, score in scores.items()}
        )
    return table_of_records([{name: row.get(name, "") for name in rows[0]} for row in rows])


def write_report(
    folder: Path, args: EvaluateVlmArguments, results: list[tuple[Task, dict[str, Score]]]
) -> None:
    """results.json, answers.jsonl, README.md with the tables, figures/."""
    report = {
        "model": args.model,
        "arguments": asdict(replace(args, resume_from_checkpoint=None)),
        "tasks": {},
    }
    lines = [f"# {args.model}"]
    (folder / "figures").mkdir(exist_ok=True)
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
        for number, (task, scores) in enumerate(results):
            report["tasks"][task.name] = {
                "prompt": task.prompt,
                "grader": task.grader,
                "questions": len(task.questions),
                "chance": chance(task),
                **{shown: score_as_json(score) for shown, score in scores.items()},
            }
            for at, question in enumerate(task.questions):
                said = {shown: score.answers[at] for shown, score in scores.items()}
                points = scores["images"].points[at]
                row = {
                    "task": task.name,
                    "where": question.where,
                    "question": question.text,
                    "expected": question.expected,
                    "points": points,
                }
                file.write(json.dumps(row | said) + "\n")
            sheet(task, scores["images"]).save(folder / "figures" / f"{number}.png")
            lines += [
                f"## {task.name}",
                f"Prompt `{task.prompt!r}`, grader {task.grader}.",
                table(task, scores),
                f"![examples](figures/{number}.png)",
            ]
    write_json(folder / "results.json", report)
    (folder / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def score_as_json(score: Score) -> dict[str, Any]:
    """Everything but the single answers; figures where the benchmark has some beside its score."""
    report = {"score": score.score, "error": score.error, "loss": score.loss, "groups": score.groups}
    return report | ({"figures": score.figures} if score.figures else {})


def sheet(task: Task, score: Score, count: int = 12, columns: int = 4) -> Image.Image:
    """Some questions with their image and the answer, green where it is right."""
    tiles = []
    for question, given, points in examples(task, score, count):
        shown = question.images()
        picture = (
            to_picture(shown[0] / 255).resize((TILE, TILE))
            if shown
            else Image.new("RGB", (TILE, TILE), "white")
        )
        tiles.append(_with_text(picture, question.text, given, question.expected[0], points))
    return contact_sheet([tiles[start : start + columns] for start in range(0, len(tiles), columns)])


def _with_text(picture: Image.Image, asked: str, given: str, expected: str, points: float) -> Image.Image:
    """The question above an image, the answer below it."""
    font, width = ImageFont.load_default(13), 2 * TILE
    above = wrap(asked.split("Answer with")[0], width, font)[:5]
    below = wrap(f"{given or '(nothing)'}" + ("" if points == 1 else f"   [{expected}]"), width, font)[:2]
    tile = Image.new("RGB", (width, TILE + 7 * LINE_HEIGHT), "white")
    tile.paste(picture, (0, 5 * LINE_HEIGHT))
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(above, start=5 - len(above)):
        draw.text((2, number * LINE_HEIGHT), line, fill="black", font=font)
    for number, line in enumerate(below):
        draw.text(
            (2, TILE + (5 + number) * LINE_HEIGHT),
            line,
            fill="darkgreen" if points == 1 else "firebrick",
            font=font,
        )
    return tile


if __name__ == "__main__":
    run_script(main)
