"""Which encoder is good for what: one table over any encoders, data sets and tasks, as Markdown,
JSON, a plot and pictures side by side.

python recipes/compare_encoders.py --encoders outputs/dinov2-1 untrained:outputs/dinov2-1 raw_pixels
--datasets $DATA/cifar10 "$DATA/camvid?ignore=11"
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from recipes.judging_args import ONE_OF_EACH, CompareArguments, TaskName, check_comparison
from vision_core.start import look_first

if __name__ == "__main__":
    look_first(CompareArguments, __doc__, check_comparison)

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

import torch

from encoders.evaluation.results import TaskResult
from encoders.load import check_source
from encoders.pictures.curves import bar_picture
from encoders.pictures.encoder_pictures import side_by_side
from recipes.judging import (
    Output,
    frozen_features,
    join_processes,
    load,
    markdown_table,
    notes_on,
    open_output,
    paradigm,
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
from vision_core.images.source import ImageSource
from vision_core.images.splits import Splits, open_splits
from vision_core.printable import say as say_line
from vision_core.processes.distributed import is_main_process
from vision_core.unreadable import UnreadableImage

PICTURED = 4
CHANNELS = 3
KINDS = ("pca", "attention", "cosine")


@dataclass
class Compared:
    """One encoder's row: who it is, its results by (task, data set), and in words the images of
    each data set that were used."""

    source: str
    paradigm: str
    untrained: bool
    protocol: str
    results: dict[tuple[str, str], TaskResult] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)


def main() -> None:
    """Every encoder in turn through every task on every data set, then the tables."""
    args = parse_arguments(CompareArguments, description=__doc__)
    check_comparison(args)
    tasks = ONE_OF_EACH if args.tasks is None else args.tasks
    device = join_processes()
    data = {text: open_splits(text) for text in args.datasets}
    for source in args.encoders:
        check_source(source)
    check_encoders(args)
    if args.tasks is not None:
        check_data(tasks, data)
    output = open_output(args, "comparison")
    say = say_line if is_main_process() else lambda text: None
    noted: set[tuple[str, str]] = set()
    compared = [judge(source, data, tasks, args, device, output, say, noted) for source in args.encoders]
    if output.work is not None:
        output.work.publish(lambda folder: write_report(folder, args, compared, data, device))
        say(f"\n{(output.path / 'table.md').read_text()}\ntables, JSON and pictures: {output.path}")


def check_encoders(args: CompareArguments) -> None:
    """Load each once, so that what one refuses, such as `position_offset`, is said before hours are
    spent.

    Raises UserError for that, and where none looks at images of `CHANNELS` channels.
    """
    channels = {source: load(source, args, torch.device("cpu")).num_channels for source in args.encoders}
    if CHANNELS not in channels.values():
        found = ", ".join(f"{source} has {number}" for source, number in channels.items())
        raise UserError(
            f"encoders of {CHANNELS} channels are compared, and {found}; judge one by recipes/evaluate_encoder.py"
        )


def check_data(tasks: Sequence[TaskName], data: dict[str, Splits]) -> None:
    """Raise `UserError` for a task that no data set allows, before hours are spent; encoders are
    asked when their turn comes."""
    for name in tasks:
        problems = [problem_with_data(name, splits) for splits in data.values()]
        if all(problems):
            raise UserError(f"{problems[0]}; name data for it, or leave it out of --tasks")


def judge(
    source: str,
    data: dict[str, Splits],
    tasks: Sequence[TaskName],
    args: CompareArguments,
    device: torch.device,
    output: Output,
    say: Callable[[str], None],
    noted: set[tuple[str, str]],
) -> Compared:
    """One encoder's results; what it, or the data, cannot do is left out and named. noted: the
    notes on each data set that were said already."""
    encoder = load(source, args, device)
    row = Compared(source, paradigm(encoder), encoder.untrained, protocol_of(encoder))
    if encoder.num_channels != CHANNELS:
        row.not_run.append(
            f"{source} sees {encoder.num_channels}-channel images, and pictures have {CHANNELS}; recipes/evaluate_encoder.py judges it"
        )
        return row
    for text, splits in data.items():
        frozen = frozen_features(encoder, splits, args)
        problems = {
            name: problem_with_data(name, splits) or problem_with_encoder(name, encoder) for name in tasks
        }
        possible = [name for name, problem in problems.items() if problem is None]
        row.not_run += [problem for problem in problems.values() if problem]
        if possible:
            say(f"{source} on {text}")
            for note in notes_on(splits, encoder):
                if (text, note) not in noted:
                    say(note)
                    noted.add((text, note))
            results = run_tasks(frozen, possible, args, text, output, say)
            row.results |= {(name, text): result for name, result in results.items()}
            row.images[text] = frozen.used_in_words
    return row


def write_report(
    folder: Path,
    args: CompareArguments,
    compared: list[Compared],
    data: dict[str, Splits],
    device: torch.device,
) -> None:
    """table.md, results.json, figures/ and README.md, which shows them all."""
    table = markdown_table([table_row(row) for row in compared])
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    report = [
        {
            **asdict(row),
            "results": [
                {"task": task, "dataset": text, **result_as_json(result)}
                for (task, text), result in row.results.items()
            ],
        }
        for row in compared
    ]
    arguments = asdict(replace(args, tasks=args.tasks or ONE_OF_EACH, resume_from_checkpoint=None))
    write_json(folder / "results.json", {"encoders": report, "arguments": arguments})
    figures = folder / "figures"
    figures.mkdir()
    bar_picture(bars(compared), "higher is better", "%").save(figures / "comparison.png")
    loaded = {row.source: load(row.source, args, device) for row in compared}
    encoders = {name: encoder for name, encoder in loaded.items() if encoder.num_channels == CHANNELS}
    for kind in KINDS:
        side_by_side(encoders, first_images(data), kind).save(figures / f"{kind}.png")
    pictures = "\n\n".join(f"![{name}](figures/{name}.png)" for name in ("comparison", *KINDS))
    (folder / "README.md").write_text(
        f"# Encoders compared\n\n{table}\n\n{protocols(compared)}\n\n{pictures}\n", encoding="utf-8"
    )


def table_row(row: Compared) -> dict[str, str]:
    """The headline of every task; a column is a task on a data set."""
    cells = {
        "encoder": row.source,
        "paradigm": row.paradigm + (", untrained" if row.untrained else ""),
        "how it looks at images": row.protocol,
    }
    for (task, text), result in row.results.items():
        metric, value = next(iter(result.metrics.items()))
        cells[f"{task}, {short_name(text)}: {metric}"] = shown(value)
    return cells


def protocols(compared: list[Compared]) -> str:
    """How each column was measured, once, and what could not be."""
    lines = {
        f"* {task}, {short_name(text)}: {result.protocol}; {result.images_in_words}": None
        for row in compared
        for (task, text), result in row.results.items()
    }
    images = {
        f"* read of {short_name(text)}: {words}": None
        for row in compared
        for text, words in row.images.items()
    }
    not_run = {f"* not run: {problem}": None for row in compared for problem in row.not_run}
    return "\n".join([*lines, *images, *not_run])


def bars(compared: list[Compared]) -> dict[str, dict[str, float]]:
    """Percentages by task and data set; of a task in metres or fractions the first figure in
    percent."""
    groups: dict[str, dict[str, float]] = {}
    for row in compared:
        for (task, text), result in row.results.items():
            metric, value = next(
                (metric, value)
                for metric, value in result.metrics.items()
                if not metric.endswith((" (m)", " (fraction)"))
            )
            label = f"{task.replace('_', chr(10))}\n{metric}\n{short_name(text)}"
            groups.setdefault(label, {})[row.source] = value
    return groups


def short_name(text: str) -> str:
    """The last part of a data set's path that is no pattern, without options."""
    parts = text.partition("?")[0].rstrip("/").split("/")
    return next((part for part in reversed(parts) if not set("{*") & set(part)), text)


def first_images(data: dict[str, Splits]) -> list[torch.Tensor]:
    """The first readable test image of each data set, or several of a single one."""
    if len(data) == 1:
        return list(islice(readable_images(next(iter(data.values())).test), PICTURED))
    return [next(readable_images(splits.test)) for splits in list(data.values())[: 2 * PICTURED]]


def readable_images(source: ImageSource) -> Iterator[torch.Tensor]:
    """The images of a source that has some, one after another."""
    for index in range(len(source)):
        with suppress(UnreadableImage):  # they have been named by the tasks
            yield source[index].image


if __name__ == "__main__":
    run_script(main)
