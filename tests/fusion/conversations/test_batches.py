"""Batches for training: packed and padded, with and without images, from pixels or from the cache
of frozen features."""

import pytest
import torch

from fusion.conversations.batches import BLANK, ConversationCollator
from fusion.conversations.mixtures import ConversationDataset
from fusion.map_cache import MapCache
from fusion.training.models import load_model
from vision_core.errors import UserError


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cached_features_are_the_encoders_own(small_model, model_and_processor, source, tmp_path, dtype):
    model, processor = model_and_processor
    vision_model = load_model(str(small_model))[0].vision_model.eval()
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


def test_another_encoder_finds_nothing_in_the_cache(small_model, model_and_processor, tmp_path):
    _, processor = model_and_processor
    vision_model = load_model(str(small_model))[0].vision_model.eval()
    cache = MapCache(tmp_path, vision_model, processor.image_processor, torch.float32)
    cache.fill([BLANK], vision_model, processor.image_processor)
    with torch.no_grad():
        next(vision_model.encoders[1].parameters()).add_(1.0)
    assert BLANK in cache and BLANK not in MapCache(
        tmp_path, vision_model, processor.image_processor, torch.float32
    )


def test_a_damaged_or_missing_file_of_the_cache_is_named(small_model, model_and_processor, tmp_path):
    _, processor = model_and_processor
    vision_model = load_model(str(small_model))[0].vision_model.eval()
    cache = MapCache(tmp_path, vision_model, processor.image_processor, torch.float32)
    with pytest.raises(UserError, match="start the run again"):
        cache.load(BLANK)
    cache.fill([BLANK], vision_model, processor.image_processor)
    cache.path(BLANK).write_bytes(b"\x10" * 40)
    with pytest.raises(UserError, match=cache.path(BLANK).name):
        cache.load(BLANK)
