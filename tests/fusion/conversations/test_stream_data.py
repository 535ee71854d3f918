"""Mixtures of streams: their order, who sees which row, and training on them as users start it."""

from collections import Counter
from fractions import Fraction
from itertools import islice

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, SequentialSampler

from fusion.conversations.sources import open_conversations
from fusion.conversations.stream import ConversationStream, open_stream
from fusion.conversations.stream_data import StreamDataset, draw_mixture, turn_order
from fusion.training.models import load_model
from fusion.training.small_default import write_small_default
from tests.fusion.conversations.stream_helpers import FILES, ROWS, answer, spoil, write_stream

SFT = "recipes/sva_sft.py"


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


def drawn(sources, count, seed=0):
    return [answer(draw()) for draw in islice(draw_mixture(sources, seed), count)]


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
    other = open_stream(f"{write_stream(tmp_path / 'y', 'y', files=1, rows=10)}&weight=0.5")
    indexed = open_conversations(
        f"{write_stream(tmp_path / 'z', 'z', files=1, rows=8).partition('?')[0]}?weight=0.5"
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


def options(conversations, folder, **others):
    chosen = {
        "eval_conversations": "[]",
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 1000,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "output_dir": folder,
        **others,
    }
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
    text = f"{write_stream(tmp_path / 'x', change=spoil)}&shuffle_buffer=0"
    bad = options([text], tmp_path / "bad", max_steps=20, dataloader_num_workers=1, init_from=model_folder)
    assert runs.error("recipes/sva_align.py", *bad).startswith(f"error: {text}, row 32: turns are user")
    assert "--max_steps" in runs.error(SFT, *options([stream], tmp_path / "none", max_steps=-1))
    assert not (tmp_path / "none").exists()
    assert "leave out streaming=true" in runs.error(
        "recipes/check_conversations.py", "--conversations", stream
    )
