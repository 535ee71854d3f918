import pytest
import torch

from encoders.evaluation.few_shot import draw_shots, few_shot
from vision_core.errors import UserError


def blobs(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return torch.nn.functional.one_hot(labels, 3).float() + 0.5 * torch.randn(
        count, 3, generator=generator
    ), labels


def test_more_shots_are_better_and_the_spread_is_told():
    results = few_shot(*blobs(90, 0), *blobs(300, 1))
    for table in results.values():
        assert (
            list(table) == [1, 2, 5, 10]
            and table[10][0] > table[1][0] > 34
            and all(spread >= 0 for _, spread in table.values())
        )
    assert results == few_shot(*blobs(90, 0), *blobs(300, 1))


def test_draws_are_of_each_class():
    labels = blobs(60, 0)[1]
    rows = draw_shots(labels, 4, 0, 0)
    assert len(set(rows.tolist())) == 12 and labels[rows].bincount().tolist() == [4, 4, 4]
    assert not torch.equal(rows, draw_shots(labels, 4, 0, 1))


def test_classes_with_few_images():
    features, labels = blobs(30, 0)
    assert list(few_shot(features[:12], labels[:12], features, labels)["knn"]) == [1, 2]
    with pytest.raises(UserError, match="class 0 has 10 training images, fewer than 20"):
        few_shot(features, labels, features, labels, shots=[20])
