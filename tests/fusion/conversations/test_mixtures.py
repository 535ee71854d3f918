"""A mixture of sources: how often each row is in it, and the order by length."""

import numpy as np

from fusion.conversations.mixtures import ConversationDataset
from fusion.training.trainer import GroupedByLength
from vision_core.randomness import numpy_generator


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
