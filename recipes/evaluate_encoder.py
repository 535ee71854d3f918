"""Measures what a frozen encoder is good for: k-NN, linear probe, segmentation, depth, retrieval
and more, as a table, a JSON and pictures.

    python recipes/evaluate_encoder.py --encoder outputs/dinov2-1 --dataset $DATA/cifar10 --tasks knn linear
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from recipes.judging_args import EvaluateArguments, check_evaluation, folder_options, suite_options
from vision_core.start import look_first

if __name__ == "__main__":
    look_first(EvaluateArguments, __doc__, check_evaluation)

from dataclasses import asdict, replace
from typing import Any

from encoders.base import Encoder
from encoders.evaluation.encoder_facts import viewing_protocol
from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.results import TaskResult, figure_in_words
from encoders.evaluation.suite import EvaluationSuite, range_notes_for
from encoders.evaluation.tasks import data_problem, encoder_problem
from vision_core.arguments import parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.files.json_reports import write_json
from vision_core.images.splits import Splits, open_splits
from vision_core.markdown import table_of_records
from vision_core.processes.distributed import print_once
from vision_core.processes.joining import join_processes
from vision_core.runs.shared_work_folder import SharedWorkFolder


def main() -> None:
    """Load the encoder, extract its features, judge them, write the report."""
    args = parse_arguments(EvaluateArguments, description=__doc__)
    check_evaluation(args)
    suite = EvaluationSuite(device=join_processes(), **suite_options(args))
    encoder = suite.load(args.encoder)
    splits = open_splits(args.dataset, args.test_dataset, encoder.num_channels)
    check_tasks(args.tasks, splits, encoder)
    frozen = suite.frozen_features(encoder, splits)
    output = SharedWorkFolder(**folder_options(args, "evaluation"))
    untrained = ", untrained" if encoder.untrained else ""
    print_once([f"{args.encoder}: {viewing_protocol(encoder)}{untrained}"])
    for note in range_notes_for(encoder, splits):
        print_once([note])
    results = suite.run(frozen, args.tasks, args.dataset, output.path)
    output.publish(lambda folder: write_report(folder, args, frozen, results))
    print_once([f"table, JSON and pictures: {output.path}"])


def check_tasks(tasks: list[str], splits: Splits, encoder: Encoder) -> None:
    """Raise UserError for a task that the data or the encoder does not allow."""
    for name in tasks:
        problem = data_problem(name, splits) or encoder_problem(name, encoder)
        if problem:
            raise UserError(f"{problem}; leave it out of --tasks, or name other data")


def write_report(
    folder: Path, args: EvaluateArguments, frozen: FrozenFeatures, results: dict[str, TaskResult]
) -> None:
    """Write results.json, figures/, and README.md with the table and the figures."""
    write_json(folder / "results.json", report_of(args, frozen, results))
    parts = [
        f"# {args.encoder} on {args.dataset}",
        viewing_protocol(frozen.encoder),
        table_of_records(table_rows(results)),
        f"Read: {frozen.used_in_words}.",
    ]
    for name, result in results.items():
        if result.picture is not None:
            (folder / "figures").mkdir(exist_ok=True)
            result.picture.save(folder / "figures" / f"{name}.png")
            parts.append(f"![{name}](figures/{name}.png)")
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def report_of(
    args: EvaluateArguments, frozen: FrozenFeatures, results: dict[str, TaskResult]
) -> dict[str, Any]:
    """The content of results.json."""
    encoder = frozen.encoder
    return {
        "encoder": {
            "source": args.encoder,
            "protocol": viewing_protocol(encoder),
            "untrained": encoder.untrained,
            "config": encoder.config().to_dict(),
        },
        "images": {split: frozen.num_read(split) for split in frozen.indices},
        "unreadable": {split: len(bad) for split, bad in frozen.bad.items()},
        "test_images_in_training": frozen.in_both,
        "results": {name: result.without_picture() for name, result in results.items()},
        "arguments": asdict(replace(args, resume_from_checkpoint=None)),
    }


def table_rows(results: dict[str, TaskResult]) -> list[dict[str, str]]:
    """A row for each figure; the first one of a task says how the task was measured."""
    rows = []
    for name, result in results.items():
        headline, _ = result.headline
        for metric, value in result.metrics.items():
            is_first = metric == headline
            row = {
                "task": name,
                "figure": metric,
                "value": figure_in_words(value),
                "images": result.images_in_words if is_first else "",
                "protocol": result.protocol if is_first else "",
            }
            rows.append(row)
    return rows


if __name__ == "__main__":
    run_script(main)
