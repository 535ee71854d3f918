"""The conversations of a stage: what is opened, what a checkpoint remembers of it, in which order it
is read."""

import json

import pytest
from torch.utils.data import SequentialSampler

from fusion.conversations.mixtures import ConversationDataset
from fusion.conversations.stream_data import StreamDataset
from fusion.training.data import build_training_data, facts_of_rows, open_alike
from fusion.training.options import DataOptions
from fusion.training.trainer import GroupedByLength
from vision_core.errors import UserError


@pytest.fixture
def rows(tmp_path):
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "that"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"conversations": turns}) + "\n" for _ in range(6)))
    return f"llava:{file}"


def options(rows, **others):
    return DataOptions(conversations=[rows], held_out=["scenes?count=2"], max_length=512, **others)


def test_facts_name_the_option_and_the_number_of_a_source(rows):
    sources, held_out = open_alike(options(rows))
    facts = facts_of_rows(sources, held_out)
    assert [each.name for each in facts] == ["conversations 1", "eval_conversations 1"]
    assert [each.count for each in facts] == [6, 2] and facts[0].unit == "rows"
    assert facts[0].content and facts[0].times


def test_a_source_that_is_not_there_is_refused(rows):
    with pytest.raises(UserError, match="nowhere.jsonl is not there"):
        open_alike(DataOptions(conversations=[rows], held_out=["llava:nowhere.jsonl"], max_length=512))


def build(data, processor, sources):
    return build_training_data(sources, data, processor, seed=0, samples_of_a_step=2, max_steps=5, cache=None)


def test_the_order_is_the_trainers_own_or_by_length(rows, small_defaults, load_small):
    _, processor = load_small(small_defaults[2])
    sources, _ = open_alike(options(rows))
    dataset, order = build(options(rows), processor, sources)
    assert isinstance(dataset, ConversationDataset) and len(dataset) == 6 and order is None
    _, order = build(options(rows, group_by_length=True), processor, sources)
    assert isinstance(order, GroupedByLength) and sorted(order) == list(range(6))


def test_a_stream_is_read_in_its_own_order_for_as_many_steps(tmp_path, small_defaults, load_small):
    import datasets

    turns = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}]
    datasets.Dataset.from_list([{"messages": turns}] * 4).to_parquet(tmp_path / "rows.parquet")
    data = DataOptions([f"parquet:{tmp_path}/rows.parquet?streaming=true"], held_out=[], max_length=512)
    _, processor = load_small(small_defaults[2])
    sources, held_out = open_alike(data)
    dataset, order = build(data, processor, sources)
    assert isinstance(dataset, StreamDataset) and len(dataset) == 10
    assert isinstance(order, SequentialSampler)
    (facts,) = facts_of_rows(sources, held_out)
    assert facts.count is None
