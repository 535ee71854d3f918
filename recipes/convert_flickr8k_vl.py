"""Converts Flickr8k photographs with captions, matching sentences, entailment and questions to
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
    """The options of this program: from where to where."""

    source: str | None = option(None, "folder with train-*.parquet and test-*.parquet", "data")
    output_dir: str | None = option(None, "a new folder for images/, train.jsonl and test.jsonl", "data")
    resume_from_checkpoint: str | None = resume_option("data")


def check_arguments(args: ConvertArguments) -> None:
    """Raises UserError for options that are missing, and for a folder with anything in it."""
    if args.source is None or args.output_dir is None:
        raise UserError(
            "--source and --output_dir are needed: "
            "the folder with the parquet files, and a new one for the conversations"
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
SPLITS = ("train", "test")


def main() -> None:
    """Read the options, look at the files, write both splits."""
    args = parse_arguments(ConvertArguments, description=__doc__)
    check_arguments(args)
    files = {split: files_of_split(Path(args.source), split) for split in SPLITS}
    work = WorkFolder.open(args.output_dir, "", config_of(args), args.resume_from_checkpoint, PROGRAM)
    work.publish(lambda folder: convert_all(files, folder, work.path))


def files_of_split(source: Path, split: str) -> list[Path]:
    """The files of a split. Raises UserError where there is none, and for one of another layout."""
    files = sorted(source.glob(f"{split}-*.parquet"))
    if not files:
        raise UserError(f"--source {source} has no {split}-*.parquet; name the folder of flickr8k_vl")
    for file in files:
        check_columns(file)
    return files


def check_columns(file: Path) -> None:
    """Raises UserError for a file of another layout."""
    read_footer(str(file))
    try:
        missing = COLUMNS - set(pyarrow.parquet.read_schema(file).names)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} cannot be read as parquet ({first_line(error)}); copy it again") from None
    if missing:
        raise UserError(f"{file} has no column {', '.join(sorted(missing))}; is it of flickr8k_vl?")


def convert_all(files: Mapping[str, list[Path]], folder: Path, shown_as: Path) -> None:
    """Write all splits to `folder`, which users will know as `shown_as`."""
    (folder / "images").mkdir()
    for split, files_of_this_split in files.items():
        counts = convert(files_of_this_split, folder, split)
        listed = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        say(f"{shown_as / split}.jsonl: {listed}")


def convert(files: list[Path], folder: Path, split: str) -> dict[str, int]:
    """Write one split and its images; returns how many rows of each kind there are."""
    counts: dict[str, int] = {}
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as out:
        for file in files:
            for row in tqdm(read_rows(file), desc=split, unit="image", leave=False):
                name = Path(row["image_id"]).name
                (folder / "images" / name).write_bytes(row["image"]["bytes"])
                for kind, question, answer in questions(row):
                    out.write(json.dumps(conversation_row(name, kind, question, answer)) + "\n")
                    counts[kind] = counts.get(kind, 0) + 1
    return counts


def conversation_row(image: str, kind: str, question: str, answer: str) -> dict[str, Any]:
    """A row as `llava:` reads it."""
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"image": image, "kind": kind, "conversations": turns}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file. Raises UserError where its pages are damaged."""
    try:
        return pyarrow.parquet.read_table(file, columns=sorted(COLUMNS)).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} cannot be read as parquet ({first_line(error)}); copy it again") from None


def questions(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """All that is said about an image, as (kind, question, answer)."""
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
