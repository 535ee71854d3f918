"""Checks every row of a data set as training will read it, and says what is wrong with which, before
hours are spent.

    python recipes/check_conversations.py --conversations "llava:mine.jsonl?images=images" --model vlm

With `--write_clean FILE` the good rows are written to a new file, and the others are named. Keys
that nothing reads are listed with the number of rows that have them.
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

from vision_core.arguments import option, parse_arguments
from vision_core.runs.work_folder import WorkFolder, check_work, config_of, resume_option
from vision_core.start import look_first

PROGRAM = "recipes/check_conversations.py"
NAME = "check"  # of the default folder


@dataclass
class CheckArguments:
    """What is checked, and for which model."""

    conversations: list[str] = option(
        ["scenes?count=200"], "what would be trained on; docs/fine_tuning.md", "data"
    )
    model: str | None = option(
        None, "folder of the fused model: lengths and its chat template are checked", "model"
    )
    max_length: int = option(2048, "tokens of a conversation, image tokens counted", "model")
    write_clean: str | None = option(
        None, "new file for the good rows: .jsonl, or .parquet for tables", "data"
    )
    dataloader_num_workers: int = option(2, "processes that read", "run")
    output_dir: str | None = option(
        None, "new folder for bad_rows.jsonl; default: the next one in outputs/", "run"
    )
    resume_from_checkpoint: str | None = resume_option()


def check_arguments(args: CheckArguments) -> None:
    """Raises UserError for an output folder that cannot be used."""
    check_work(args.output_dir, NAME, config_of(args), args.resume_from_checkpoint, PROGRAM)


if __name__ == "__main__":
    look_first(CheckArguments, __doc__, check_arguments)

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoProcessor

from fusion import FusionProcessor
from fusion.chat_turns import ChatTemplateError, stop_token_ids
from fusion.conversations.clean_rows import check_target, write_rows
from fusion.conversations.conversation import BadRow, one_line
from fusion.conversations.sources import ConversationSource, open_conversations
from fusion.conversations.tokens import tokenise
from fusion.labels import LABEL_IGNORED
from fusion.training.models import check_model_folder
from vision_core.errors import UserError, first_line, run_script
from vision_core.markdown import table
from vision_core.printable import printable, say
from vision_core.processes.data_workers import leave_signals_to_parent
from vision_core.runs.checkpoints import write_text_atomically

BAD_ROWS = "bad_rows.jsonl"
# In the unfinished work folder, as soon as this work may have made the file of --write_clean.
CLEAN_FILE_BEGUN = "write_clean.txt"
EXAMPLES_OF_A_FAULT = 3
KEYS_SHOWN = 50
RANGES_SHOWN = 100  # of rows that were left out; bad_rows.jsonl has all of them
# What makes two faults of one kind look different: numbers, paths and names of files.
PARTICULARS = re.compile(r"\d+|/\S+|\S+\.\w{2,5}\b")
UNCHECKED = (
    "lengths, the chat template and the tokenizer's own tokens were not looked at: "
    "name the fused model by --model"
)


@dataclass(frozen=True)
class CheckedRow:
    """What is known of a row. Tokens are counted where there is a model.

    Attributes:
        row: its number, from 0.
        reason: why it is bad, or None.
        unread: its keys that nothing reads.
        images, tokens, learnt: how many images, tokens and learnt tokens it has.
    """

    row: int
    reason: str | None = None
    unread: frozenset[str] = frozenset()
    images: int = 0
    tokens: int = 0
    learnt: int = 0


class RowChecks(Dataset):
    """An item is what is known of a row of `source`."""

    def __init__(
        self, source: ConversationSource, processor: FusionProcessor | None, max_length: int
    ) -> None:
        self.source = source
        self.processor = processor
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> CheckedRow:
        unread: frozenset[str] = frozenset()
        try:
            unread = frozenset(self.source.unread_keys(row))
            conversation = self.source[row]
            images = len(conversation.images)
            if self.processor is None:
                return CheckedRow(row, unread=unread, images=images)
            tokens = tokenise(conversation, self.processor, self.max_length)
        except BadRow as error:
            return CheckedRow(row, str(error), unread)
        learnt = sum(label != LABEL_IGNORED for label in tokens.labels)
        return CheckedRow(row, unread=unread, images=images, tokens=len(tokens.input_ids), learnt=learnt)


def main() -> None:
    """Read all rows and report; end with status 1 where a row is bad and no clean file was asked
    for."""
    args = parse_arguments(CheckArguments, description=__doc__)
    check_arguments(args)
    sources = [(text, open_conversations(text)) for text in args.conversations]
    processor = processor_of_model(args.model) if args.model else None
    work = WorkFolder.open(args.output_dir, NAME, config_of(args), args.resume_from_checkpoint, PROGRAM)
    begun = work.partial / CLEAN_FILE_BEGUN
    clean = clean_target(args.write_clean, sources, may_be_there=begun.exists())
    bad = []
    for text, source in sources:
        rows = list(check_rows(source, processor, args.max_length, args.dataloader_num_workers, text))
        bad += bad_row_lines(text, rows)
        report(text, rows, processor)
        if clean is not None:
            work.partial.mkdir(exist_ok=True)
            write_text_atomically(begun, f"{clean}\n")
            say(write_clean_file(clean, source, rows))
    status = int(bool(bad) and clean is None)
    work.publish(lambda folder: (folder / BAD_ROWS).write_text("".join(bad), encoding="utf-8"), status)
    if bad:
        say(f"\nall bad rows: {work.path / BAD_ROWS}")
    if status:
        raise SystemExit(status)


def clean_target(
    file: str | None, sources: Sequence[tuple[str, ConversationSource]], may_be_there: bool = False
) -> Path | None:
    """The file for the good rows, or None. Raises UserError before anything is read.

    may_be_there: whether an earlier start of the same command, which was killed, may have written
    it; it is then written again.
    """
    if file is None:
        return None
    if len(sources) != 1:
        raise UserError(
            f"--write_clean {file} holds the rows of one source, and {len(sources)} are given; "
            "clean one after the other"
        )
    if may_be_there:
        Path(file).unlink(missing_ok=True)
    check_target(Path(file), sources[0][1])
    return Path(file)


def processor_of_model(folder: str) -> FusionProcessor:
    """The processor in a fused model's folder. Raises UserError for a folder of something else."""
    check_model_folder(folder)
    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model {folder} has no processor ({first_line(error)}); name a folder that fusion.fuse wrote"
        ) from None


def check_rows(
    source: ConversationSource,
    processor: FusionProcessor | None,
    max_length: int,
    num_workers: int,
    name: str,
) -> Iterator[CheckedRow]:
    """All rows of a source in order. name: of the progress bar."""
    loader = DataLoader(
        RowChecks(source, processor, max_length),
        batch_size=64,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=leave_signals_to_parent,
    )
    with tqdm(total=len(source), desc=printable(name), unit="row", leave=False) as bar:
        for batch in loader:
            bar.update(len(batch))
            yield from batch


def bad_row_lines(text: str, rows: Sequence[CheckedRow]) -> list[str]:
    """A line of bad_rows.jsonl for each bad row of the source that `text` names."""
    lines = []
    for each in rows:
        if each.reason:
            record = {"source": text, "row": each.row + 1, "reason": each.reason}
            lines.append(json.dumps(record) + "\n")
    return lines


def report(text: str, rows: Sequence[CheckedRow], processor: FusionProcessor | None) -> None:
    """Print what a source has, what is wrong with it, which keys nothing reads, and what holds for
    its good rows."""
    wrong = [each for each in rows if each.reason]
    good = [each for each in rows if not each.reason]
    say(f"\n{printable(text)}: {len(rows):,} rows, {len(wrong):,} bad\n")
    say("\n".join(fault_lines(wrong)))
    say(table_of_sizes(good) if good else "no row is good")
    unread = unread_keys_line(rows)
    if unread:
        say(f"\n{unread}")
    say(f"\n{UNCHECKED if processor is None else how_answers_end(processor)}")


def fault_lines(wrong: Sequence[CheckedRow]) -> list[str]:
    """The kinds of faults, the most frequent first, with examples."""
    reasons_of_kind: dict[str, list[str]] = {}
    for each in wrong:
        reasons_of_kind.setdefault(kind_of_fault(each.reason), []).append(each.reason)
    lines = []
    for kind, reasons in sorted(reasons_of_kind.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(reasons):,} x {kind}")
        lines += [f"    {reason}" for reason in reasons[:EXAMPLES_OF_A_FAULT]]
    return lines


def kind_of_fault(reason: str) -> str:
    """A reason without the row that it begins with, and without names and numbers."""
    _, _, fault = reason.partition(": ")
    return PARTICULARS.sub("…", fault)


def table_of_sizes(good: Sequence[CheckedRow]) -> str:
    """How many images and tokens the good rows have, as a table."""
    figures = {"images": [each.images for each in good]}
    if good[0].tokens:
        figures["tokens"] = [each.tokens for each in good]
        figures["learnt tokens"] = [each.learnt for each in good]
    lines = []
    for name, values in figures.items():
        quantiles = np.percentile(values, [0, 50, 95, 100], method="nearest")
        numbers = [*quantiles, sum(values)]
        lines.append([name, *(f"{number:,}" for number in numbers)])
    return table(["of a row", "least", "median", "95 %", "most", "sum"], lines)


def unread_keys_line(rows: Sequence[CheckedRow]) -> str:
    """A line of the keys that nothing reads, the most frequent first, or ""."""
    counts: Counter[str] = Counter()
    for each in rows:
        counts.update(each.unread)
    if not counts:
        return ""
    listed = [f"{one_line(key)} (rows: {count:,})" for key, count in counts.most_common(KEYS_SHOWN)]
    if len(counts) > KEYS_SHOWN:
        listed.append(f"and {len(counts) - KEYS_SHOWN:,} others")
    return f"keys that nothing reads: {', '.join(listed)}"


def how_answers_end(processor: FusionProcessor) -> str:
    """What holds for the good rows under the model's chat template, in words."""
    try:
        stops = processor.tokenizer.convert_ids_to_tokens(stop_token_ids(processor))
    except ChatTemplateError as error:
        return f"even a plain question and answer cannot be learnt: {error}"
    return (
        f"each learnt answer of a good row ends in {' or '.join(stops)}, which is learnt, "
        "and at which generation stops"
    )


def write_clean_file(file: Path, source: ConversationSource, rows: Sequence[CheckedRow]) -> str:
    """Write the good rows, and say which are left out. Raises UserError where none is good."""
    good = [each.row for each in rows if not each.reason]
    left_out = [each.row + 1 for each in rows if each.reason]
    if not good:
        raise UserError(f"--write_clean {file}: no row is good, and nothing was written; mend the rows")
    write_rows(file, source, good)
    named = "no row was left out"
    if left_out:
        named = f"left out: {len(left_out):,} rows: {number_ranges(left_out)}"
    return f"\nwrote {len(good):,} rows to {file}; {named}"


def number_ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers in words: 3, 5-7; the first of them where they are many."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:RANGES_SHOWN]]
    more = len(ranges) - RANGES_SHOWN
    return ", ".join(words) + (f" and {more:,} more places" if more > 0 else "")


if __name__ == "__main__":
    run_script(main)
