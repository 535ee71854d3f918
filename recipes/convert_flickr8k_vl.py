"""Flickr8k photographs with captions, matching sentences, entailment and questions, as
conversations: one row for each sentence or question.

python recipes/convert_flickr8k_vl.py --source $DATA/flickr8k_vl --output_dir flickr8k
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

from vision_core.arguments import option, parse_arguments
from vision_core.errors import UserError, first_line, run_script
from vision_core.runs.work_folder import WorkFolder, check_work, config_of, resume_option
from vision_core.start import look_first

PROGRAM = "recipes/convert_flickr8k_vl.py"


@dataclass
class ConvertArguments:
    """From where to where."""

    source: str | None = option(None, "folder with train-*.parquet and test-*.parquet", "data")
    output_dir: str | None = option(None, "a new folder for images/, train.jsonl and test.jsonl", "data")
    resume_from_checkpoint: str | None = resume_option("data")


def check_arguments(args: ConvertArguments) -> None:
    """Raises UserError for options that are missing, and for a folder with anything in it."""
    if args.source is None or args.output_dir is None:
        raise UserError(
            "--source and --output_dir are needed: the folder with the parquet files, and a new one for the conversations"
        )
    check_work(args.output_dir, "", config_of(args), args.resume_from_checkpoint, PROGRAM)


if __name__ == "__main__":
    look_first(ConvertArguments, __doc__, check_arguments, loading="pyarrow")

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.parquet
from tqdm import tqdm

from vision_core.images.sources.parquet_footer import read_footer
from vision_core.printable import say

CAPTION = "Describe the picture in one sentence."
MATCH = 'Does this sentence describe the picture: "{text}" Answer with yes or no.'
ENTAILMENT = 'Given the picture, is this statement true, false or uncertain: "{text}"'
VERDICTS = ("true", "uncertain", "false")  # of the labels entailment, neutral, contradiction
COLUMNS = {"image", "image_id", "captions", "itm", "entailment", "vqa"}


def main() -> None:
    """Write both splits."""
    args = parse_arguments(ConvertArguments, description=__doc__)
    check_arguments(args)
    files = {split: sorted(Path(args.source).glob(f"{split}-*.parquet")) for split in ("train", "test")}
    for split, found in files.items():
        if not found:
            raise UserError(
                f"--source {args.source} has no {split}-*.parquet; name the folder of flickr8k_vl"
            )
        check_columns(found)
    work = WorkFolder.open(args.output_dir, "", config_of(args), args.resume_from_checkpoint, PROGRAM)
    work.publish(lambda folder: convert_all(files, folder, work.path))


def convert_all(files: Mapping[str, list[Path]], folder: Path, shown_as: Path) -> None:
    """All splits into `folder`, which users will know as `shown_as`."""
    (folder / "images").mkdir()
    for split, found in files.items():
        counts = convert(found, folder, split)
        say(f"{shown_as / split}.jsonl: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()))


def check_columns(files: list[Path]) -> None:
    """Raises UserError for files of another layout, before anything is written."""
    for file in files:
        read_footer(str(file))
        try:
            missing = COLUMNS - set(pyarrow.parquet.read_schema(file).names)
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{file} cannot be read as parquet ({first_line(error)}); copy it again"
            ) from None
        if missing:
            raise UserError(f"{file} has no column {', '.join(sorted(missing))}; is it of flickr8k_vl?")


def convert(files: list[Path], folder: Path, split: str) -> dict[str, int]:
    """One split; how many rows of each kind."""
    counts: dict[str, int] = {}
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as out:
        for file in files:
            for row in tqdm(read_rows(file), desc=split, unit="image", leave=False):
                name = Path(row["image_id"]).name
                (folder / "images" / name).write_bytes(row["image"]["bytes"])
                for kind, question, answer in questions(row):
                    turns = [
                        {"from": "human", "value": f"<image>\n{question}"},
                        {"from": "gpt", "value": answer},
                    ]
                    out.write(json.dumps({"image": name, "kind": kind, "conversations": turns}) + "\n")
                    counts[kind] = counts.get(kind, 0) + 1
    return counts


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Raises UserError for a file whose pages are damaged."""
    try:
        return pyarrow.parquet.read_table(file, columns=sorted(COLUMNS)).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} cannot be read as parquet ({first_line(error)}); copy it again") from None


def questions(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(kind, question, answer) of everything that is said about an image."""
    for caption in row["captions"]:
        yield "caption", CAPTION, caption
    for each in row["itm"]:
        yield "match", MATCH.format(text=each["text"]), "yes" if each["match"] else "no"
    for each in row["entailment"]:
        yield "entailment", ENTAILMENT.format(text=each["hypothesis"]), VERDICTS[each["label"]]
    for each in row["vqa"]:
        yield "vqa", each["question"], each["answer"]


if __name__ == "__main__":
    run_script(main)
