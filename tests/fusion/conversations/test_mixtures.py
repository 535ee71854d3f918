"""Batches for training: packed and padded, with and without images, from pixels or from the cache
of frozen features."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.conversations.batches import BLANK, ConversationCollator
from fusion.conversations.mixtures import ConversationDataset
from fusion.conversations.packing import pack_rows
from fusion.conversations.sources import open_conversations
from fusion.map_cache import MapCache
from fusion.training.models import load_model
from fusion.training.small_default import write_small_default
from fusion.training.trainer import GroupedByLength
from vision_core.errors import UserError
from vision_core.randomness import numpy_generator

TEXTS = ["what colour is the largest object?", "tell me yes or no"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_small_default(path, TEXTS, seed=0)
    return path


@pytest.fixture(scope="module")
def model_and_processor(folder):
    model, processor = load_model(str(folder))
    return model.eval(), processor


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Rows with 1, 0, 3, 0, 1, 0 images, and answers of several lengths."""
    path, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = []
    for number, count in enumerate([1, 0, 3, 0, 1, 0]):
        names = [f"{number}{each}.png" for each in range(count)]
        for name in names:
            Image.fromarray(generator.integers(0, 255, (30 + 9 * number, 64, 3), dtype=np.uint8)).save(
                path / name
            )
        turns = [
            {"from": "human", "value": "tell me " * (number + 1)},
            {"from": "gpt", "value": "yes " * (7 - number)},
        ]
        rows.append({"conversations": turns, "image": names} if names else {"conversations": turns})
    (path / "rows.json").write_text(json.dumps(rows))
    return open_conversations(f"llava:{path / 'rows.json'}")


def loss_of(model, batch):
    with torch.no_grad():
        return model(**batch, supervised_only=True).loss


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [1, 3, 5], [2], [0, 4]])
def test_packed_is_padded(model_and_processor, source, rows):
    """The loss of a batch, and of each sample alone weighted by what it learns, in one row or in
    several."""
    model, processor = model_and_processor
    items = [ConversationDataset([source], processor, 2048)[row] for row in rows]
    padded, packed = (
        ConversationCollator(processor)(items),
        ConversationCollator(processor, packed=True)(items),
    )
    assert "attention_mask" not in packed and packed["input_ids"].numel() <= padded["input_ids"].numel()
    alone = [ConversationCollator(processor)([item]) for item in items]
    learnt = torch.tensor([int((each["labels"][:, 1:] != -100).sum()) for each in alone])
    expected = (
        sum(loss_of(model, each).double() * count for each, count in zip(alone, learnt, strict=True))
        / learnt.sum()
    )
    for batch in (padded, packed):
        torch.testing.assert_close(loss_of(model, batch).double(), expected, rtol=1e-5, atol=0)


def test_samples_of_a_row_see_themselves_alone(model_and_processor, source):
    """Another first sample changes nothing for the second one in the row."""
    model, processor = model_and_processor
    data, collator = (
        ConversationDataset([source], processor, 2048),
        ConversationCollator(processor, packed=True),
    )
    batch = collator([data[row] for row in range(6)])
    assert len(batch["input_ids"]) < 6
    row = int((batch["position_ids"] == 0).sum(1).argmax())
    second = int((batch["position_ids"][row] == 0).nonzero()[1])
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    text = other["input_ids"][row, :second] != processor.image_token_id
    other["input_ids"][row, :second][text] = 5
    with torch.no_grad():
        one, changed = (
            model(**each, use_cache=False).logits[row] for each in (batch, other)
        )  # with a cache, models take a row for one sample
    assert not torch.allclose(one[:second], changed[:second])
    torch.testing.assert_close(one[second:], changed[second:], rtol=0, atol=1e-6)


def test_a_batch_without_images_trains_what_it_would(model_and_processor, source):
    """The blank image in the padding changes no loss, and gives every trained parameter a gradient,
    of zero where it has no part."""
    model, processor = model_and_processor
    data = ConversationDataset([source], processor, 2048)
    for packed in (False, True):
        batch = ConversationCollator(processor, packed)([data[1], data[3]])
        assert batch["image_sizes"].tolist() == [list(BLANK.shape[-2:])]
        without = {
            name: value for name, value in batch.items() if name not in ("pixel_values", "image_sizes")
        }
        without["input_ids"] = batch["input_ids"].masked_fill(
            batch["input_ids"] == processor.image_token_id, 0
        )
        torch.testing.assert_close(loss_of(model, batch), loss_of(model, without), rtol=1e-6, atol=0)
        model.zero_grad()
        model(**batch, supervised_only=True).loss.backward()
        unreached = [
            name for name, each in model.named_parameters() if ".encoders." not in name and each.grad is None
        ]
        assert not unreached
        assert not any(each.grad.any() for each in model.vision_model.connector.parameters())


def test_pack_rows():
    assert pack_rows([3, 9, 4, 2, 6], 10) == [[1], [4, 2], [0, 3]]
    generator = np.random.default_rng(0)
    for _ in range(50):
        lengths = generator.integers(1, 40, generator.integers(1, 30)).tolist()
        rows = pack_rows(lengths, max(lengths))
        assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
        assert all(sum(lengths[sample] for sample in row) <= max(lengths) for row in rows)
        fewest = -(-sum(lengths) // max(lengths))
        assert len(rows) <= 11 / 9 * fewest + len(lengths) ** 0.5 + 1
    with pytest.raises(ValueError, match="does not fit"):
        pack_rows([5, 11], 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_features_are_the_encoders_own(folder, model_and_processor, source, tmp_path, dtype):
    model, processor = model_and_processor
    vision_model = load_model(str(folder))[0].vision_model.eval()
    cache = MapCache(tmp_path, vision_model, processor.image_processor, dtype)
    images = [image for row in range(len(source)) for image in source[row].images]
    assert cache.fill([*images, BLANK], vision_model, processor.image_processor, batch_size=2) == 6
    assert cache.fill(images, vision_model, processor.image_processor) == 0
    plain, cached = (ConversationDataset([source], processor, 2048, cache=each) for each in (None, cache))
    collators = [ConversationCollator(processor, cache=each) for each in (None, cache)]
    for rows in ([0, 1, 2, 3], [1, 3]):
        batches = [
            collator([data[row] for row in rows])
            for data, collator in zip((plain, cached), collators, strict=True)
        ]
        assert "pixel_values" not in batches[1]
        bound = 1e-5 if dtype == torch.float32 else 2e-3
        torch.testing.assert_close(loss_of(model, batches[1]), loss_of(model, batches[0]), rtol=bound, atol=0)


def test_another_encoder_finds_nothing_in_the_cache(folder, model_and_processor, tmp_path):
    _, processor = model_and_processor
    vision_model = load_model(str(folder))[0].vision_model.eval()
    cache = MapCache(tmp_path, vision_model, processor.image_processor, torch.float32)
    cache.fill([BLANK], vision_model, processor.image_processor)
    with torch.no_grad():
        next(vision_model.encoders[1].parameters()).add_(1.0)
    assert BLANK in cache and BLANK not in MapCache(
        tmp_path, vision_model, processor.image_processor, torch.float32
    )


def test_a_damaged_or_missing_file_of_the_cache_is_named(folder, model_and_processor, tmp_path):
    _, processor = model_and_processor
    vision_model = load_model(str(folder))[0].vision_model.eval()
    cache = MapCache(tmp_path, vision_model, processor.image_processor, torch.float32)
    with pytest.raises(UserError, match="start the run again"):
        cache.load(BLANK)
    cache.fill([BLANK], vision_model, processor.image_processor)
    cache.path(BLANK).write_bytes(b"\x10" * 40)
    with pytest.raises(UserError, match=cache.path(BLANK).name):
        cache.load(BLANK)


def test_order_by_length():
    lengths = np.random.default_rng(0).integers(1, 500, 1003).tolist()
    sampler = GroupedByLength(lengths, 8, lambda epoch: numpy_generator("test", epoch))
    first = list(sampler)
    assert sorted(first) == list(range(1003)) and list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    batches = [[lengths[sample] for sample in first[start : start + 8]] for start in range(0, 1000, 8)]
    padding = 1 - sum(map(sum, batches)) / sum(8 * max(batch) for batch in batches)
    order = np.random.default_rng(1).permutation(1003)[:1000].reshape(-1, 8)
    shuffled = 1 - np.array(lengths)[order].sum() / (8 * np.array(lengths)[order].max(1)).sum()
    assert padding < 0.05 < 0.3 < shuffled


def test_rough_lengths_put_images_and_long_texts_last(model_and_processor, source):
    _, processor = model_and_processor
    lengths = ConversationDataset([source], processor, 2048).rough_lengths()
    assert np.argmax(lengths) == 2 and lengths[0] > lengths[1]


def test_weights_of_a_mixture(model_and_processor, source):
    _, processor = model_and_processor
    source.weight = 2.5
    try:
        data = ConversationDataset([source, source], processor, 2048, seed=3)
    finally:
        source.weight = 1.0
    counts = np.unique(data.places, axis=0, return_counts=True)[1]
    assert len(data) == 30 and set(counts) == {2, 3}
