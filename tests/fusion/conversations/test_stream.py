"""Streams of conversations: their order and mixtures, who sees which row, what ends a run, and
training on them as users start it."""

import io
from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from PIL import Image
from torch.utils.data import DataLoader, SequentialSampler

from fusion.conversations.conversation import BadRow
from fusion.conversations.sources import open_conversations
from fusion.conversations.stream import ConversationStream, first_conversations, open_stream
from fusion.conversations.stream_data import StreamDataset, draw_mixture, turn_order
from fusion.evaluation.benchmarks import open_task
from fusion.training.models import load_model
from fusion.training.small_default import corpus, write_small_default
from recipes.vlm_args import SftArguments
from vision_core.arguments import parse_arguments
from vision_core.conversation_kinds import is_stream
from vision_core.errors import UserError

SFT = "recipes/sva_sft.py"
FILES, ROWS = 3, 20  # of each file


def png(number):
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (16 + 8 * (number % 3), 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def row(name, number):
    turns = [
        {"role": "user", "content": f"which row is {name}?"},
        {"role": "assistant", "content": f"row {number}"},
    ]
    return {"messages": turns, "images": [png(number)] * [1, 0, 2][number % 3]}


def written(folder, name="x", files=FILES, rows=ROWS, change=None):
    """Parquet files of numbered rows in row groups of 7; `change(number, row)` may spoil them.
    Their stream, in order."""
    folder.mkdir(exist_ok=True)
    for file in range(files):
        numbers = range(file * rows, (file + 1) * rows)
        content = [
            row(name, number) if change is None else change(number, row(name, number)) for number in numbers
        ]
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(content), folder / f"train-{file}.parquet", row_group_size=7
        )
    return f"parquet:{folder}/*.parquet?streaming=true"


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return written(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_small_default(
        folder, [f"which row is {name}? row" for name in "xyz"] + [" ".join(map(str, range(99)))], seed=0
    )
    return folder


@pytest.fixture(scope="module")
def processor(model_folder):
    return load_model(str(model_folder))[1]


def answer(conversation):
    """(whose row, its number)"""
    return conversation.messages[0].text.split()[-1].rstrip("?"), int(
        conversation.messages[1].text.split()[-1]
    )


def drawn(sources, count, seed=0):
    return [answer(draw()) for draw in islice(draw_mixture(sources, seed), count)]


def test_rows_come_in_the_order_of_the_files_as_with_an_index(stream):
    indexed = open_conversations(stream.partition("?")[0])
    streamed = list(open_stream(stream))
    assert len(streamed) == len(indexed) == FILES * ROWS
    for number, conversation in enumerate(streamed):
        assert (
            conversation.messages == indexed[number].messages
            and conversation.where == f"{stream}, row {number + 1}"
        )
        assert all(map(torch.equal, conversation.images, indexed[number].images))
    assert [len(conversation.images) for conversation in streamed[:3]] == [1, 0, 2]


def test_a_folder_as_the_hub_has_it(stream):
    folder = Path(stream.removeprefix("parquet:").partition("?")[0]).parent
    assert [answer(each)[1] for each in open_stream(f"hf:{folder}?split=train&streaming=true")] == list(
        range(FILES * ROWS)
    )


@pytest.mark.parametrize("buffer", [0, 1, 7, 1000])
def test_a_pass_has_each_row_once_and_the_next_another_order(stream, buffer):
    count = FILES * ROWS
    numbers = [number for _, number in drawn([open_stream(f"{stream}&shuffle_buffer={buffer}")], 2 * count)]
    assert sorted(numbers[:count]) == sorted(numbers[count:]) == list(range(count))
    in_order = numbers[:count] == list(range(count))
    assert in_order == (buffer in (0, 1)) and (numbers[:count] == numbers[count:]) == in_order
    assert all(
        number <= place + buffer for place, number in enumerate(numbers[:count])
    )  # nobody waits for rows that lie far behind


def test_order_is_a_function_of_the_seed(stream):
    first, again, other = (
        [number for _, number in drawn([open_stream(stream)], 60, seed)] for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    "weights", [[1.0], [1, 1], [2, 1], [0.1, 0.7, 3], [1e-3, 1, 1, 1], [0.3, 0.3, 0.3, 5, 0.01]]
)
def test_every_source_has_its_share_at_any_time(weights):
    total, had = sum(map(Fraction, weights)), Counter()
    for turn, number in enumerate(islice(turn_order(weights), 3000), 1):
        had[number] += 1
        assert all(abs(had[i] - turn * Fraction(weight) / total) < 1 for i, weight in enumerate(weights))


def test_a_mixture_of_streams_and_of_what_has_an_index(stream, tmp_path):
    """Shares are of the samples, whatever the sources' lengths; each begins again on its own."""
    other = open_stream(f"{written(tmp_path / 'y', 'y', files=1, rows=10)}&weight=0.5")
    indexed = open_conversations(
        f"{written(tmp_path / 'z', 'z', files=1, rows=8).partition('?')[0]}?weight=0.5"
    )
    seen = drawn([open_stream(stream), other, indexed], 80)
    of = {name: [number for whose, number in seen if whose == name] for name in "xyz"}
    assert {name: len(numbers) for name, numbers in of.items()} == {"x": 40, "y": 20, "z": 20}
    assert len(set(of["x"])) == 40
    assert sorted(of["y"][:10]) == sorted(of["y"][10:]) == list(range(10)) and of["y"][:10] != of["y"][10:]
    assert sorted(of["z"][:8]) == sorted(of["z"][8:16]) == list(range(8)) and of["z"][:8] != of["z"][8:16]


def batches(data, processes=1, process=0, workers=0, skip=0):
    """What a process of a trainer gets, as accelerate deals it: the learnt tokens of each batch of
    4 samples."""
    loader = DataLoader(
        data, batch_size=4, sampler=SequentialSampler(data), num_workers=workers, collate_fn=list
    )
    loader = prepare_data_loader(loader, num_processes=processes, process_index=process)
    loader = skip_first_batches(loader, skip) if skip else loader
    return [[tuple(item["input_ids"]) for item in batch] for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_data_workers_share_the_rows_of_one(stream, processor, workers):
    def data():
        return StreamDataset([open_stream(stream)], processor, 256, seed=0, samples=72)  # more than a pass

    whole = batches(data())
    assert len(whole) == 18 and len({item for batch in whole[:15] for item in batch}) == FILES * ROWS
    halves = [batches(data(), 2, process, workers) for process in range(2)]
    assert [len(half) for half in halves] == [9, 9]
    assert [batch for pair in zip(*halves, strict=True) for batch in pair] == whole
    assert batches(data(), 1, 0, workers, skip=7) == whole[7:]


def test_what_is_read_past_is_not_looked_at_and_going_back_begins_again(stream, processor, monkeypatch):
    looked = []
    conversation = ConversationStream.conversation
    monkeypatch.setattr(
        ConversationStream,
        "conversation",
        lambda self, number, row: looked.append(number) or conversation(self, number, row),
    )
    data = StreamDataset([open_stream(f"{stream}&shuffle_buffer=0")], processor, 256, seed=0, samples=200)
    items = [data[number]["input_ids"] for number in (5, 9, 65, 5)]
    assert looked == [5, 9, 5, 5] and items[0] == items[2] == items[3] != items[1]


def spoilt(number, row):
    if number == 31:
        row["messages"] = row["messages"][:1]
    if number == 42:
        row["images"] = [{"bytes": b"no image", "path": None}]
    return row


def test_bad_rows_are_named_and_end_the_reading(tmp_path):
    text = written(tmp_path / "x", change=spoilt)
    source = open_stream(f"{text}&shuffle_buffer=0")
    draws = list(islice(draw_mixture([source], 0), 50))
    for number, said in ((31, "the assistant has the last"), (42, "cannot be decoded")):
        with pytest.raises(BadRow) as caught:
            draws[number]()
        assert f"{text}&shuffle_buffer=0, row {number + 1}:" in str(caught.value) and said in str(
            caught.value
        )
    with pytest.raises(BadRow, match="row 32"):
        list(source)


def test_a_stream_that_breaks_off_says_where(tmp_path):
    text = written(tmp_path / "x")
    file = tmp_path / "x" / "train-1.parquet"
    source = open_stream(text)
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(
        BadRow, match=r"row 21: the stream breaks off \(.*Parquet.*\); mend it and resume the run"
    ):
        list(source)


class Nothing:
    """A table without rows, as `datasets` streams one."""

    def with_format(self, kind):
        return self

    def iter(self, batch_size):
        return iter(())


def test_a_stream_without_rows():
    with pytest.raises(UserError, match="x has no rows"):
        next(draw_mixture([ConversationStream("x", Nothing())], 0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("streaming=perhaps", "neither true nor false"),
        ("shuffle_buffer=9", "add streaming=true"),
        ("streaming=true&shuffle_buffer=many", "no whole number"),
        ("streaming=true&weight=0", "above 0"),
        ("streaming=true&seed=1", "unknown option 'seed'"),
    ],
)
def test_options_of_streams(options, said):
    with pytest.raises(UserError, match=said):
        text = f"parquet:absent.parquet?{options}"
        open_stream(text) if is_stream(text) else open_conversations(text)


def test_streams_that_cannot_be_opened():
    with pytest.raises(UserError, match="cannot be opened"):
        open_stream("parquet:absent/*.parquet?streaming=true")
    with pytest.raises(UserError, match="unknown option 'streaming'"):
        is_stream("llava:rows.jsonl?streaming=true")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "whose length nobody knows; say by --max_steps"),
        (["--num_train_epochs", "2"], "say by --max_steps"),
        (
            ["--max_steps", "9", "--group_by_length", "true"],
            "--group_by_length needs the length of every row",
        ),
        (
            ["--max_steps", "9", "--feature_cache", "cache"],
            "--feature_cache needs every image before the first step",
        ),
    ],
)
def test_what_a_stream_cannot_give_is_refused(stream, arguments, said):
    with pytest.raises(UserError, match=said) as caught:
        parse_arguments(SftArguments, ["--conversations", "scenes", stream, *arguments])
    assert stream in str(caught.value) and "\n" not in str(caught.value)


def test_streams_are_not_measured_on_nor_asked_for_a_row(stream):
    with pytest.raises(UserError, match="--eval_conversations .* is a stream, which is not measured on"):
        parse_arguments(SftArguments, ["--eval_conversations", stream])
    for opened in (open_conversations, open_task):
        with pytest.raises(
            UserError,
            match="is a stream, of which nobody can ask for a row by its number .*; leave out streaming=true",
        ):
            opened(stream)


def test_the_tokenizer_reads_the_first_rows(stream, monkeypatch):
    monkeypatch.setattr("fusion.training.small_default.CORPUS_ROWS", 2)
    assert (
        list(corpus([stream, "scenes?count=1"]))[:5]
        == ["<image>\nwhich row is x?", "row 0", "which row is x?", "row 1", *corpus(["scenes?count=1"])][:5]
    )
    assert [answer(each)[1] for each in first_conversations(stream, 3)] == [0, 1, 2]


def options(conversations, folder, **others):
    chosen = {
        "eval_conversations": "[]", "max_steps": 6, "logging_steps": 1, "save_steps": 1000, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant", "output_dir": folder, **others,
    }  # fmt: skip
    return [
        "--conversations",
        *conversations,
        *(text for name, value in chosen.items() for text in (f"--{name}", str(value))),
    ]


@pytest.fixture(scope="module")
def whole(runs, stream, model_folder, tmp_path_factory):
    """A run over a mixture of a stream, of which it sees more than a pass, and of scenes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    sources = [f"{stream}&weight=5", "scenes?count=3"]
    runs.finish(
        runs.start(SFT, *options(sources, folder, max_steps=20, save_steps=8, init_from=model_folder))
    )
    return folder


@pytest.mark.timeout(200)
def test_killed_and_resumed_is_uninterrupted(runs, logged, weights, stream, model_folder, whole, tmp_path):
    """The resumed run has data workers, the other has none."""
    killed = tmp_path / "run"
    arguments = options(
        [f"{stream}&weight=5", "scenes?count=3"], killed, max_steps=20, save_steps=8, init_from=model_folder
    )
    run = runs.start(SFT, *arguments)
    run.wait_until((killed / "checkpoint-8" / "MANIFEST.json").exists)
    run.kill()
    runs.finish(
        runs.start(SFT, *arguments, "--resume_from_checkpoint", "true", "--dataloader_num_workers", 2)
    )
    assert torch.equal(logged(killed), logged(whole)) and len(logged(whole)) == 20
    expected, got = weights(whole), weights(killed)
    assert expected.keys() == got.keys() and all(
        torch.equal(got[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.timeout(200)
def test_two_processes_are_one(runs, logged, stream, model_folder, whole, tmp_path):
    arguments = options(
        [f"{stream}&weight=5", "scenes?count=3"],
        tmp_path / "run",
        max_steps=8,
        per_device_train_batch_size=2,
        init_from=model_folder,
    )
    runs.finish(*runs.start_two(SFT, *arguments))
    torch.testing.assert_close(logged(tmp_path / "run"), logged(whole)[:8], rtol=1e-4, atol=0)


@pytest.mark.timeout(200)
def test_mistakes_through_the_command_line(runs, stream, model_folder, tmp_path):
    """In one line: a bad row in a data worker of the first stage, and what is refused before any
    model is loaded."""
    text = f"{written(tmp_path / 'x', change=spoilt)}&shuffle_buffer=0"
    bad = options([text], tmp_path / "bad", max_steps=20, dataloader_num_workers=1, init_from=model_folder)
    assert runs.error("recipes/sva_align.py", *bad).startswith(f"error: {text}, row 32: turns are user")
    assert "--max_steps" in runs.error(SFT, *options([stream], tmp_path / "none", max_steps=-1))
    assert not (tmp_path / "none").exists()
    assert "leave out streaming=true" in runs.error(
        "recipes/check_conversations.py", "--conversations", stream
    )


def test_held_out_scenes_are_measured_where_scenes_are_learnt_from():
    """The loss on drawn scenes would say nothing of a model of somebody's own rows."""
    own = parse_arguments(SftArguments, ["--conversations", "llava:mine.jsonl"])
    both = parse_arguments(SftArguments, ["--conversations", "llava:mine.jsonl", "scenes?count=5"])
    named = parse_arguments(
        SftArguments, ["--conversations", "llava:mine.jsonl", "--eval_conversations", "llava:other.jsonl"]
    )
    assert (
        not own.eval_conversations
        and both.eval_conversations
        and named.eval_conversations == ["llava:other.jsonl"]
    )
