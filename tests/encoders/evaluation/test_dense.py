import math

import torch

from encoders.evaluation.dense import head_outputs, one_cycle, shuffled_batches, train_head, training_targets
from encoders.evaluation.segmentation import linear_head, segmentation_loss


def test_the_trained_head_is_left_in_evaluation_mode():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 8, 5, 7, generator=generator)
    masks = torch.randint(4, (3, 10, 14), generator=generator)
    head = linear_head(8, 4)
    before = head[2].weight.clone()

    def loss(logits, targets, step):
        return segmentation_loss(logits, targets)

    train_head(
        head,
        loss,
        [maps],
        masks,
        iterations=2,
        batch_size=2,
        learning_rate=1e-3,
        weight_decay=0.0,
        warmup=0.1,
        seed=0,
        progress=False,
    )
    assert not head.training and not torch.equal(head[2].weight, before)
    singles, batch = (torch.cat(list(head_outputs(head, [maps], size))) for size in (1, 3))
    assert torch.allclose(singles, batch, atol=1e-6) and not batch.requires_grad


def test_batches_walk_through_epochs():
    batches = list(shuffled_batches(10, 4, 5, seed=3))
    flat = sum(batches, [])
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]
    assert list(shuffled_batches(10, 4, 5, seed=3)) == batches != list(shuffled_batches(10, 4, 5, seed=4))
    assert sorted(next(shuffled_batches(3, 16, 1, seed=0))) == [0, 1, 2]


def test_one_cycle():
    rates = [one_cycle(step, 1000, 0.1) for step in range(1000)]
    assert (
        math.isclose(rates[0], 0.01)
        and rates[:90] == sorted(rates[:90])
        and rates[100:] == sorted(rates[100:], reverse=True)
    )
    assert max(rates) < 1 and rates[-1] < 1e-5


def test_training_targets_take_the_nearest_pixel():
    mask = torch.arange(24).view(4, 6)
    not_more_than_the_mask_has = training_targets([mask], (2, 3), torch.uint8)[0]
    assert torch.equal(not_more_than_the_mask_has, mask.byte())
    centres = [0, 2, 3, 5]  # the pixels at 0.25, 1.75, 3.25, 4.75
    assert training_targets([mask], (1, 1), torch.uint8)[0, 0].tolist() == centres
    ignored = torch.full((8, 8), 255)
    second = training_targets([mask, ignored], (2, 3), torch.uint8)[1]
    assert torch.equal(second, torch.full((4, 6), 255).byte())
