r"""Shows which encoder is good for what: one table over any encoders, data sets and tasks, as
Markdown, JSON, a plot and pictures side by side.

    python recipes/compare_encoders.py --encoders outputs/dinov2-1 untrained:outputs/dinov2-1 raw_pixels \
        --datasets $DATA/cifar10 "$DATA/camvid?ignore=11"
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from recipes.judging_args import (
    CompareArguments,
    check_comparison,
    compared_tasks,
    folder_options,
    suite_options,
)
from vision_core.start import look_first

if __name__ == "__main__":
    look_first(CompareArguments, __doc__, check_comparison)

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import torch

from encoders.base import Encoder
from encoders.evaluation.encoder_facts import training_paradigm, viewing_protocol
from encoders.evaluation.results import TaskResult, figure_in_words
from encoders.evaluation.suite import EvaluationSuite, range_notes_for
from encoders.evaluation.tasks import data_problem, encoder_problem
from encoders.load import check_source
from encoders.pictures.curves import bar_picture
from encoders.pictures.encoder_pictures import side_by_side
from vision_core.arguments import parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.files.json_reports import write_json
from vision_core.images.source import ImageSource
from vision_core.images.splits import Splits, open_splits
from vision_core.markdown import table_of_records
from vision_core.printable import say
from vision_core.processes.distributed import is_main_process, print_once
from vision_core.processes.joining import join_processes
from vision_core.runs.shared_work_folder import SharedWorkFolder
from vision_core.unreadable import UnreadableImage

NUM_PICTURED = 4
NUM_CHANNELS = 3
PICTURE_KINDS = ("pca", "attention", "cosine")
NOT_IN_PERCENT = (" (m)", " (fraction)")  # how the names of such figures end


@dataclass
class ComparedEncoder:
    """The row of an encoder.

    Attributes:
        source: the text that names it.
        paradigm, protocol: how it was trained, and how it looks at images.
        results: by (task, data set).
        images: by data set, which images were used, in words.
        not_run: why tasks were left out.
    """

    source: str
    paradigm: str
    untrained: bool
    protocol: str
    results: dict[tuple[str, str], TaskResult] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)


def main() -> None:
    """Run every encoder in turn through every task on every data set, then write the tables."""
    args = parse_arguments(CompareArguments, description=__doc__)
    check_comparison(args)
    tasks = compared_tasks(args)
    suite = EvaluationSuite(device=join_processes(), **suite_options(args))
    data = {text: open_splits(text) for text in args.datasets}
    check_encoders(args.encoders, suite)
    if args.tasks is not None:
        check_tasks(tasks, data)
    output = SharedWorkFolder(**folder_options(args, "comparison"))
    noted: set[tuple[str, str]] = set()
    compared = [judge(source, suite, data, tasks, output.path, noted) for source in args.encoders]
    output.publish(lambda folder: write_report(folder, args, suite, compared, data))
    if is_main_process():
        table = (output.path / "table.md").read_text()
        say(f"\n{table}\ntables, JSON and pictures: {output.path}")


def check_encoders(sources: Sequence[str], suite: EvaluationSuite) -> None:
    """Check all names and load each encoder once, so that what one refuses, such as
    `position_offset`, is said before hours are spent.

    Raises UserError for that, and where no encoder looks at images of `NUM_CHANNELS` channels.
    """
    for source in sources:
        check_source(source)
    channels = {source: suite.load_on_cpu(source).num_channels for source in sources}
    if NUM_CHANNELS not in channels.values():
        found = ", ".join(f"{source} has {number}" for source, number in channels.items())
        raise UserError(
            f"encoders of {NUM_CHANNELS} channels are compared, and {found}; "
            "judge one by recipes/evaluate_encoder.py"
        )


def check_tasks(tasks: Sequence[str], data: dict[str, Splits]) -> None:
    """Raise `UserError` for a task that no data set allows, before hours are spent; encoders are
    asked when their turn comes."""
    for name in tasks:
        problems = [data_problem(name, splits) for splits in data.values()]
        if all(problems):
            raise UserError(f"{problems[0]}; name data for it, or leave it out of --tasks")


def judge(
    source: str,
    suite: EvaluationSuite,
    data: dict[str, Splits],
    tasks: Sequence[str],
    folder: Path,
    noted: set[tuple[str, str]],
) -> ComparedEncoder:
    """One encoder's results; what it or the data cannot do is left out and named.

    folder: of the comparison. noted: the notes on each data set that were said already, to which
    new ones are added.
    """
    encoder = suite.load(source)
    row = ComparedEncoder(source, training_paradigm(encoder), encoder.untrained, viewing_protocol(encoder))
    if encoder.num_channels != NUM_CHANNELS:
        row.not_run.append(
            f"{source} sees {encoder.num_channels}-channel images, and pictures have {NUM_CHANNELS}; "
            "recipes/evaluate_encoder.py judges it"
        )
        return row
    for text, splits in data.items():
        frozen = suite.frozen_features(encoder, splits)
        possible = possible_tasks(tasks, splits, encoder, row.not_run)
        if possible:
            print_once([f"{source} on {text}"])
            say_new_notes(text, range_notes_for(encoder, splits), noted)
            for name, result in suite.run(frozen, possible, text, folder).items():
                row.results[name, text] = result
            row.images[text] = frozen.used_in_words
    return row


def possible_tasks(tasks: Sequence[str], splits: Splits, encoder: Encoder, not_run: list[str]) -> list[str]:
    """The tasks that the data and the encoder allow. Why the others are left out is added to
    `not_run`."""
    possible = []
    for name in tasks:
        problem = data_problem(name, splits) or encoder_problem(name, encoder)
        if problem:
            not_run.append(problem)
        else:
            possible.append(name)
    return possible


def say_new_notes(text: str, notes: Sequence[str], noted: set[tuple[str, str]]) -> None:
    """Print the notes on the data set `text` that are not among `noted`, and add them there."""
    for note in notes:
        if (text, note) not in noted:
            print_once([note])
            noted.add((text, note))


def write_report(
    folder: Path,
    args: CompareArguments,
    suite: EvaluationSuite,
    compared: list[ComparedEncoder],
    data: dict[str, Splits],
) -> None:
    """Write table.md, results.json, figures/ and README.md, which shows them all."""
    table = table_of_records([table_row(row) for row in compared])
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    arguments = asdict(replace(args, tasks=compared_tasks(args), resume_from_checkpoint=None))
    encoders = [row_as_json(row) for row in compared]
    write_json(folder / "results.json", {"encoders": encoders, "arguments": arguments})
    write_pictures(folder / "figures", suite, compared, data)
    pictures = "\n\n".join(f"![{name}](figures/{name}.png)" for name in ("comparison", *PICTURE_KINDS))
    (folder / "README.md").write_text(
        f"# Encoders compared\n\n{table}\n\n{protocols(compared)}\n\n{pictures}\n", encoding="utf-8"
    )


def write_pictures(
    folder: Path, suite: EvaluationSuite, compared: list[ComparedEncoder], data: dict[str, Splits]
) -> None:
    """Write the plot of all figures, and what the encoders see in the same images."""
    folder.mkdir()
    bar_picture(bars(compared), "higher is better", "%").save(folder / "comparison.png")
    shown = encoders_of_pictures(compared, suite)
    for kind in PICTURE_KINDS:
        side_by_side(shown, first_images(data), kind).save(folder / f"{kind}.png")


def encoders_of_pictures(compared: Sequence[ComparedEncoder], suite: EvaluationSuite) -> dict[str, Encoder]:
    """The encoders that look at pictures, by their names."""
    encoders = {}
    for row in compared:
        encoder = suite.load(row.source)
        if encoder.num_channels == NUM_CHANNELS:
            encoders[row.source] = encoder
    return encoders


def row_as_json(row: ComparedEncoder) -> dict[str, Any]:
    """A row of results.json."""
    report = dict(vars(row))
    report["results"] = []
    for (task, text), result in row.results.items():
        report["results"].append({"task": task, "dataset": text, **result.without_picture()})
    return report


def table_row(row: ComparedEncoder) -> dict[str, str]:
    """The headline of every task; a column is a task on a data set."""
    cells = {
        "encoder": row.source,
        "paradigm": row.paradigm + (", untrained" if row.untrained else ""),
        "how it looks at images": row.protocol,
    }
    for (task, text), result in row.results.items():
        metric, value = result.headline
        cells[f"{task}, {short_name(text)}: {metric}"] = figure_in_words(value)
    return cells


def protocols(compared: list[ComparedEncoder]) -> str:
    """A list of how each column was measured, each way once, and of what could not be measured."""
    measured: dict[str, None] = {}
    images: dict[str, None] = {}
    not_run: dict[str, None] = {}
    for row in compared:
        for (task, text), result in row.results.items():
            line = f"* {task}, {short_name(text)}: {result.protocol}; {result.images_in_words}"
            measured[line] = None
        for text, words in row.images.items():
            images[f"* read of {short_name(text)}: {words}"] = None
        for problem in row.not_run:
            not_run[f"* not run: {problem}"] = None
    return "\n".join([*measured, *images, *not_run])


def bars(compared: list[ComparedEncoder]) -> dict[str, dict[str, float]]:
    """The first figure in percent of each task and data set: label -> encoder -> figure."""
    groups: dict[str, dict[str, float]] = {}
    for row in compared:
        for (task, text), result in row.results.items():
            metric = next(name for name in result.metrics if not name.endswith(NOT_IN_PERCENT))
            words = "\n".join(task.split("_"))
            label = f"{words}\n{metric}\n{short_name(text)}"
            groups.setdefault(label, {})[row.source] = result.metrics[metric]
    return groups


def short_name(text: str) -> str:
    """The last part of a data set's path that is not a pattern, without options."""
    parts = text.partition("?")[0].rstrip("/").split("/")
    return next((part for part in reversed(parts) if not set("{*") & set(part)), text)


def first_images(data: dict[str, Splits]) -> list[torch.Tensor]:
    """The first readable test image of each data set, or several of a single one."""
    all_splits = list(data.values())
    if len(all_splits) == 1:
        return list(islice(readable_images(all_splits[0].test), NUM_PICTURED))
    return [next(readable_images(splits.test)) for splits in all_splits[: 2 * NUM_PICTURED]]


def readable_images(source: ImageSource) -> Iterator[torch.Tensor]:
    """The images of a source that can be read, one after another."""
    for index in range(len(source)):
        with suppress(UnreadableImage):  # the tasks have named them
            yield source[index].image


if __name__ == "__main__":
    run_script(main)
