"""What a frozen encoder is good for: k-NN, linear probe, segmentation, depth, retrieval and more,
as a table, a JSON and pictures.

python recipes/evaluate_encoder.py --encoder outputs/dinov2-1 --dataset $DATA/cifar10 --tasks knn
linear
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from recipes.judging_args import EvaluateArguments, check_evaluation
from vision_core.start import look_first

if __name__ == "__main__":
    look_first(EvaluateArguments, __doc__, check_evaluation)

from dataclasses import asdict, replace

from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.results import TaskResult
from recipes.judging import (
    frozen_features,
    join_processes,
    load,
    markdown_table,
    notes_on,
    open_output,
    problem_with_data,
    problem_with_encoder,
    protocol_of,
    result_as_json,
    run_tasks,
    shown,
    write_json,
)
from vision_core.arguments import parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.images.splits import open_splits
from vision_core.printable import say as say_line
from vision_core.processes.distributed import is_main_process


def main() -> None:
    """Load, extract, judge, write."""
    args = parse_arguments(EvaluateArguments, description=__doc__)
    check_evaluation(args)
    device = join_processes()
    encoder = load(args.encoder, args, device)
    splits = open_splits(args.dataset, args.test_dataset, encoder.num_channels)
    for name in args.tasks:
        problem = problem_with_data(name, splits) or problem_with_encoder(name, encoder)
        if problem:
            raise UserError(f"{problem}; leave it out of --tasks, or name other data")
    frozen = frozen_features(encoder, splits, args)
    output = open_output(args, "evaluation")
    say = say_line if is_main_process() else lambda text: None
    say(f"{args.encoder}: {protocol_of(encoder)}{', untrained' if encoder.untrained else ''}")
    for note in notes_on(splits, encoder):
        say(note)
    results = run_tasks(frozen, args.tasks, args, args.dataset, output, say)
    if output.work is not None:
        output.work.publish(lambda folder: write_report(folder, args, frozen, results))
        say(f"table, JSON and pictures: {output.path}")


def write_report(
    folder: Path, args: EvaluateArguments, frozen: FrozenFeatures, results: dict[str, TaskResult]
) -> None:
    """results.json, README.md with the table, figures/."""
    encoder = frozen.encoder
    report = {
        "encoder": {
            "source": args.encoder,
            "protocol": protocol_of(encoder),
            "untrained": encoder.untrained,
            "config": encoder.config().to_dict(),
        },
        "images": {split: frozen.num_read(split) for split in frozen.indices},
        "unreadable": {split: len(bad) for split, bad in frozen.bad.items()},
        "test_images_in_training": frozen.in_both,
        "results": {name: result_as_json(result) for name, result in results.items()},
        "arguments": asdict(replace(args, resume_from_checkpoint=None)),
    }
    write_json(folder / "results.json", report)
    rows = [
        {
            "task": name,
            "figure": metric,
            "value": shown(value),
            "images": "" if number else result.images_in_words,
            "protocol": "" if number else result.protocol,
        }
        for name, result in results.items()
        for number, (metric, value) in enumerate(result.metrics.items())
    ]
    lines = [
        f"# {args.encoder} on {args.dataset}",
        protocol_of(encoder),
        markdown_table(rows),
        f"Read: {frozen.used_in_words}.",
    ]
    for name, result in results.items():
        if result.picture is not None:
            (folder / "figures").mkdir(exist_ok=True)
            result.picture.save(folder / "figures" / f"{name}.png")
            lines.append(f"![{name}](figures/{name}.png)")
    (folder / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
