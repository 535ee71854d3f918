"""Every row of a data set, read as training will read it: what is wrong with which, before hours are spent.

python recipes/check_conversations.py --conversations "llava:mine.jsonl?images=images" --model vlm --max_length 2048
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoProcessor

from recipes.chat_tokens import IGNORED, tokenise
from recipes.conversation_sources import ConversationSource, open_conversations
from recipes.conversations import BadRow
from recipes.judging import markdown_table
from vision_core.arguments import arguments_to_yaml, option, parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.run_folder import RunFolder, check_folder

SHOWN = 3  # examples of each reason


@dataclass
class CheckArguments:
    """What is checked, and for which model."""

    conversations: list[str] = option(["scenes?count=200"], "what would be trained on; docs/fine_tuning.md", "data")
    model: str | None = option(None, "folder of the fused model: lengths and its chat template are checked too", "model")
    max_length: int = option(2048, "tokens of a conversation, image tokens counted", "model")
    num_workers: int = option(2, "processes that read", "run")
    output_dir: str | None = option(None, "new folder for bad_rows.jsonl; default: the next free one in outputs/", "run")


@dataclass(frozen=True)
class Checked:
    """What is known of a row: why it is bad, or how many images, tokens and learnt tokens it has (no tokens without a model)."""

    row: int
    reason: str | None = None
    images: int = 0
    tokens: int = 0
    learnt: int = 0


class Rows(Dataset):
    """Rows of a source, each checked."""

    def __init__(self, source: ConversationSource, processor: object | None, max_length: int) -> None:
        self.source, self.processor, self.max_length = source, processor, max_length

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Checked:
        try:
            conversation = self.source[row]
            if self.processor is None:
                return Checked(row, images=len(conversation.images))
            tokens = tokenise(conversation, self.processor, self.max_length)
        except BadRow as error:
            return Checked(row, str(error))
        return Checked(row, None, len(conversation.images), len(tokens.input_ids), sum(label != IGNORED for label in tokens.labels))


def main() -> None:
    """Read all, report, and end with status 1 where a row is bad."""
    args = parse_arguments(CheckArguments, description=__doc__)
    check_folder(args.output_dir, "check")
    sources = [(text, open_conversations(text)) for text in args.conversations]
    processor = load_processor(args.model) if args.model else None
    run = RunFolder.open(args.output_dir, "check", arguments_to_yaml(args))
    bad = 0
    with (run.path / "bad_rows.jsonl").open("w", encoding="utf-8") as file:
        for text, source in sources:
            checked = list(check(source, processor, args.max_length, args.num_workers, text))
            wrong = [each for each in checked if each.reason]
            bad += len(wrong)
            for each in wrong:
                file.write(json.dumps({"source": text, "row": each.row + 1, "reason": each.reason}) + "\n")
            print(f"\n{text}: {len(checked):,} rows, {len(wrong):,} bad\n")
            print("\n".join(reasons(wrong)) if wrong else described([each for each in checked if not each.reason]))
    if bad:
        print(f"\nall bad rows: {run.path / 'bad_rows.jsonl'}")
        raise SystemExit(1)


def load_processor(folder: str) -> object:
    """The processor of a fused model's folder."""
    try:
        return AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--model {folder} has no processor ({str(error).splitlines()[0]}); name a folder that fusion.fuse wrote") from None


def check(source: ConversationSource, processor: object | None, max_length: int, num_workers: int, name: str) -> Iterator[Checked]:
    """All rows in order."""
    loader = DataLoader(Rows(source, processor, max_length), batch_size=64, num_workers=num_workers, collate_fn=list)
    with tqdm(total=len(source), desc=name, unit="row", leave=False) as bar:
        for batch in loader:
            bar.update(len(batch))
            yield from batch


def reasons(wrong: list[Checked]) -> list[str]:
    """Kinds of faults, the most frequent first, with examples. A reason's kind is its text without names and numbers."""
    kinds = [re.sub(r"\d+|/\S+|\S+\.\w{2,5}\b", "…", each.reason.partition(": ")[2]) for each in wrong]
    lines = []
    for kind, count in Counter(kinds).most_common():
        lines.append(f"{count:,} x {kind}")
        lines += [f"    {each.reason}" for each, its in zip(wrong, kinds, strict=True) if its == kind][:SHOWN]
    return lines


def described(good: list[Checked]) -> str:
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
    return markdown_table(rows)


if __name__ == "__main__":
    run_script(main)
