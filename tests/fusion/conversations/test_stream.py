"""Streams of conversations: the order of their rows, what ends the reading, and their options."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from fusion.conversations.conversation import BadRow
from fusion.conversations.sources import open_conversations
from fusion.conversations.stream import ConversationStream, first_conversations, open_stream
from fusion.conversations.stream_data import draw_mixture
from fusion.evaluation.benchmarks import open_task
from fusion.training.small_default import corpus
from recipes.vlm_args import SftArguments
from tests.fusion.conversations.stream_helpers import FILES, ROWS, answer, spoil, write_stream
from vision_core.arguments import parse_arguments
from vision_core.conversation_kinds import is_stream
from vision_core.errors import UserError


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


def test_bad_rows_are_named_and_end_the_reading(tmp_path):
    text = write_stream(tmp_path / "x", change=spoil)
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
    text = write_stream(tmp_path / "x")
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
