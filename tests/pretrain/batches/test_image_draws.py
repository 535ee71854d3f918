"""The order of images over epochs, and what is random in a draw."""

import pytest
import torch

from pretrain.batches.image_draws import EpochOrder, ImageDraws
from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.open_source import open_source


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide():
    order = EpochOrder(6, seed=0)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == [*range(6)] and sorted(second) == [*range(6, 12)]
    assert [draw - 6 for draw in second] != first
    again = EpochOrder(6, seed=0)
    again.set_epoch(1)
    assert list(again) == second and len(again) == 6


def test_a_draw_knows_its_epoch_and_image():
    source = open_source("scenes?size=32&count=5")
    draws = ImageDraws(source, lambda image, epoch, index: {"at": (epoch, index), "image": image})
    drawn = draws[13]
    assert drawn["at"] == (2, 3) and torch.equal(drawn["image"], source[3].image)


def test_an_image_that_cannot_be_read_is_named(monkeypatch):
    source = open_source("scenes?size=32&count=5")

    def unreadable(index):
        raise UnreadableImage("truncated")

    monkeypatch.setattr(type(source), "__getitem__", lambda self, index: unreadable(index))
    with pytest.raises(UserError, match=f"{source.id_of(3)} cannot be read .truncated"):
        ImageDraws(source, lambda *_: {})[8]
