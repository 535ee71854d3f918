"""The table of benchmarks, and `open_task`, which opens one of them or a source of conversations.

A benchmark is read from the files in which it is published and is named by a text:

    cv_bench:GLOB                  parquet files of nyu-visionx/CV-Bench
    mmvp:FOLDER                    folder with Questions.csv and "MMVP Images"
    pope:FILE?images=FOLDER        JSONL of yes-or-no questions
    gqa:FILE?images=FOLDER         JSON of questions by their ids
    mmbench:FILE                   TSV with base64 images
    captions:FILE?images=FOLDER    JSON of COCO captions
    vqa:FILE?annotations=FILE&images=FOLDER    the two JSON files of VQAv2
    vqa:FILE?images=FOLDER                     a JSON list of question, image and answers
    textvqa:FILE?images=FOLDER     TextVQA_0.5.1_val.json

The reader of each kind (fusion/evaluation/benchmark_readers.py) says what its file holds.

To add a benchmark:

1. Write a reader in benchmark_readers.py that makes a `BenchmarkTask` (tasks.py) of its file.
   benchmark_files.py has what readers share; a fault of the file is a BadRow with file and row.
2. Choose a grader from grading.py, or add one there with the official code's grades of some answers
   in tests/fusion/evaluation/official_grades.json.
3. Add one line to `BENCHMARKS` and one to the list above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fusion.evaluation.benchmark_readers import (
    read_captions,
    read_cv_bench,
    read_gqa,
    read_mmbench,
    read_mmvp,
    read_pope,
    read_textvqa,
    read_vqa,
)
from fusion.evaluation.tasks import BenchmarkTask, task_of_conversations
from vision_core.conversation_kinds import CONVERSATION_KINDS, parse_conversations
from vision_core.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark.

    read: makes a task of its name, the path in it and its options.
    options: the names of the options that it knows.
    """

    read: Callable[..., BenchmarkTask]
    options: tuple[str, ...] = ()


BENCHMARKS = {
    "cv_bench": Benchmark(read_cv_bench),
    "mmvp": Benchmark(read_mmvp),
    "pope": Benchmark(read_pope, ("images",)),
    "gqa": Benchmark(read_gqa, ("images",)),
    "mmbench": Benchmark(read_mmbench),
    "captions": Benchmark(read_captions, ("images",)),
    "vqa": Benchmark(read_vqa, ("images", "annotations")),
    "textvqa": Benchmark(read_textvqa, ("images",)),
}


def open_task(text: str, limit: int | None = None) -> BenchmarkTask:
    """The task that `text` names, or its first `limit` questions.

    Raises UserError for what cannot be opened, BadRow for a row that is not a question.
    """
    options_of_kinds: dict[str, tuple[str, ...]] = {}
    for kind, benchmark in BENCHMARKS.items():
        options_of_kinds[kind] = benchmark.options
    options_of_kinds |= CONVERSATION_KINDS
    kind, where, options = parse_conversations(text, options_of_kinds, "task")
    if kind in BENCHMARKS:
        task = BENCHMARKS[kind].read(text, Path(where), **options)
    else:
        task = task_of_conversations(text, limit)
    if not task.questions:
        raise UserError(f"{text} has no questions")
    return replace(task, questions=task.questions[:limit])
