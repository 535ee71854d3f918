"""Every row of a data set, read as training will read it: what is wrong with which, before hours
are spent.

python recipes/check_conversations.py --conversations "llava:mine.jsonl?images=images" --model vlm
--max_length 2048

With `--write_clean FILE` the rows that are good are written to a new file, and the others are
named. Keys that nothing reads are listed with the number of rows that have them.
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
from fusion.conversations.conversation import BadRow, shortened
from fusion.conversations.sources import ConversationSource, open_conversations
from fusion.conversations.tokens import tokenise
from fusion.labels import LABEL_IGNORED
from fusion.training.models import check_model_folder
from vision_core.errors import UserError, run_script
from vision_core.markdown import table_of_records
from vision_core.printable import printable, say
from vision_core.processes.data_workers import leave_signals_to_parent
from vision_core.runs.checkpoints import write_text_atomically

BAD_ROWS = "bad_rows.jsonl"
SHOWN = 3  # examples of each reason
KEYS_SHOWN = 50
UNCHECKED = "lengths, the chat template and the tokenizer's own tokens were not looked at: name the fused model by --model"
RANGES_SHOWN = 100  # of rows that were left out; all of them stand in bad_rows.jsonl


@dataclass(frozen=True)
class Checked:
    """What is known of a row: why it is bad, or how many images, tokens and learnt tokens it has.

    Tokens are counted where there is a model. unread: the row's keys that nothing reads.
    """

    row: int
    reason: str | None = None
    unread: frozenset[str] = frozenset()
    images: int = 0
    tokens: int = 0
    learnt: int = 0


class Rows(Dataset):
    """Rows of a source, each checked."""

    def __init__(
        self, source: ConversationSource, processor: FusionProcessor | None, max_length: int
    ) -> None:
        self.source, self.processor, self.max_length = source, processor, max_length

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Checked:
        unread: frozenset[str] = frozenset()
        try:
            unread = frozenset(self.source.unread_keys(row))
            conversation = self.source[row]
            if self.processor is None:
                return Checked(row, None, unread, images=len(conversation.images))
            tokens = tokenise(conversation, self.processor, self.max_length)
        except BadRow as error:
            return Checked(row, str(error), unread)
        learnt = sum(label != LABEL_IGNORED for label in tokens.labels)
        return Checked(row, None, unread, len(conversation.images), len(tokens.input_ids), learnt)


def main() -> None:
    """Read all, report, and end with status 1 where a row is bad and no clean file was asked
    for."""
    args = parse_arguments(CheckArguments, description=__doc__)
    check_arguments(args)
    sources = [(text, open_conversations(text)) for text in args.conversations]
    processor = load_processor(args.model) if args.model else None
    work = WorkFolder.open(args.output_dir, NAME, config_of(args), args.resume_from_checkpoint, PROGRAM)
    written = work.partial / "write_clean.txt"  # there as soon as this work may have made that file
    clean = clean_target(args.write_clean, sources, written.exists())
    bad = []
    for text, source in sources:
        checked = list(check(source, processor, args.max_length, args.dataloader_num_workers, text))
        wrong = [each for each in checked if each.reason]
        bad += [
            json.dumps({"source": text, "row": each.row + 1, "reason": each.reason}) + "\n" for each in wrong
        ]
        report(text, checked, wrong)
        say(f"\n{UNCHECKED if processor is None else proved(processor)}")
        if clean is not None:
            work.partial.mkdir(exist_ok=True)
            write_text_atomically(written, f"{clean}\n")
            say(written_clean(clean, source, checked))
    status = int(bool(bad) and clean is None)
    work.publish(lambda folder: (folder / BAD_ROWS).write_text("".join(bad), encoding="utf-8"), status)
    if bad:
        say(f"\nall bad rows: {work.path / BAD_ROWS}")
    if status:
        raise SystemExit(status)


def clean_target(
    file: str | None, sources: Sequence[tuple[str, ConversationSource]], may_be_there: bool = False
) -> Path | None:
    """Where the good rows go. Raises UserError before anything is read.

    may_be_there: whether an earlier start of the same command, which was killed, may have written
    it; it is then written again.
    """
    if file is None:
        return None
    if len(sources) != 1:
        cure = "clean one after the other"
        raise UserError(
            f"--write_clean {file} holds the rows of one source, and {len(sources)} are given; {cure}"
        )
    if may_be_there:
        Path(file).unlink(missing_ok=True)
    check_target(Path(file), sources[0][1])
    return Path(file)


def report(text: str, checked: Sequence[Checked], wrong: Sequence[Checked]) -> None:
    """Print what a source has, what is wrong with it, and which of its keys nothing reads."""
    say(f"\n{printable(text)}: {len(checked):,} rows, {len(wrong):,} bad\n")
    say("\n".join(reasons(wrong)))
    good = [each for each in checked if not each.reason]
    say(described(good) if good else "no row is good")
    counts = Counter(key for each in checked for key in each.unread)
    if counts:
        listed = ", ".join(
            f"{shortened(key)} (rows: {count:,})" for key, count in counts.most_common(KEYS_SHOWN)
        )
        more = f", and {len(counts) - KEYS_SHOWN:,} others" if len(counts) > KEYS_SHOWN else ""
        say(f"\nkeys that nothing reads: {listed}{more}")


def proved(processor: FusionProcessor) -> str:
    """What holds for the good rows under the model's chat template, in words."""
    try:
        stops = processor.tokenizer.convert_ids_to_tokens(stop_token_ids(processor))
    except ChatTemplateError as error:
        return f"even a plain question and answer cannot be learnt: {error}"
    return f"each learnt answer of a good row ends in {' or '.join(stops)}, which is learnt, and at which generation stops"


def written_clean(file: Path, source: ConversationSource, checked: Sequence[Checked]) -> str:
    """Write the good rows, and say which are left out. Raises UserError where none is good."""
    good = [each.row for each in checked if not each.reason]
    left_out = [each.row + 1 for each in checked if each.reason]
    if not good:
        raise UserError(f"--write_clean {file}: no row is good, and nothing was written; mend the rows")
    write_rows(file, source, good)
    named = (
        f"left out: {len(left_out):,} rows: {number_ranges(left_out)}" if left_out else "no row was left out"
    )
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
    more = f" and {len(ranges) - RANGES_SHOWN:,} more places" if len(ranges) > RANGES_SHOWN else ""
    return ", ".join(words) + more


def load_processor(folder: str) -> FusionProcessor:
    """The processor of a fused model's folder. Raises UserError for a folder of something else."""
    check_model_folder(folder)
    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--model {folder} has no processor ({reason}); name a folder that fusion.fuse wrote"
        ) from None


def check(
    source: ConversationSource,
    processor: FusionProcessor | None,
    max_length: int,
    num_workers: int,
    name: str,
) -> Iterator[Checked]:
    """All rows in order."""
    rows = Rows(source, processor, max_length)
    loader = DataLoader(
        rows, batch_size=64, num_workers=num_workers, collate_fn=list, worker_init_fn=leave_signals_to_parent
    )
    with tqdm(total=len(source), desc=printable(name), unit="row", leave=False) as bar:
        for batch in loader:
            bar.update(len(batch))
            yield from batch


def reasons(wrong: Sequence[Checked]) -> list[str]:
    """Kinds of faults, the most frequent first, with examples. A kind is a reason without names and
    numbers."""
    kinds = [re.sub(r"\d+|/\S+|\S+\.\w{2,5}\b", "…", each.reason.partition(": ")[2]) for each in wrong]
    lines = []
    for kind, count in Counter(kinds).most_common():
        lines.append(f"{count:,} x {kind}")
        lines += [f"    {each.reason}" for each, its in zip(wrong, kinds, strict=True) if its == kind][:SHOWN]
    return lines


def described(good: Sequence[Checked]) -> str:
    """What a row has, as a table."""
    figures = {"images": [each.images for each in good]}
    if good and good[0].tokens:
        figures |= {"tokens": [each.tokens for each in good], "learnt tokens": [each.learnt for each in good]}
    rows = []
    for name, values in figures.items():
        low, middle, high, most = np.percentile(values, [0, 50, 95, 100], method="nearest")
        rows.append(
            {
                "of a row": name,
                "least": f"{low:,}",
                "median": f"{middle:,}",
                "95 %": f"{high:,}",
                "most": f"{most:,}",
                "sum": f"{sum(values):,}",
            }
        )
    return table_of_records(rows)


if __name__ == "__main__":
    run_script(main)
