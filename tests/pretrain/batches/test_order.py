"""The order of images over steps, processes and micro-batches."""

import pytest

from pretrain.batches.order import BatchLayout, StepSampler
from vision_core.errors import UserError


def test_an_epoch_is_a_permutation_and_the_next_one_another():
    sampler = StepSampler(10, BatchLayout(3, 1, 1, 0), seed=0, first_step=0, last_step=6)
    drawn = [[draw.index for draw in batch] for batch in sampler]
    first, second = sum(drawn[:3], []), sum(drawn[3:], [])
    assert len(set(first)) == len(set(second)) == 9 and first != second


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_what_one_process_sees(processes):
    one = [draw for batch in StepSampler(30, BatchLayout(6, 1, 1, 0), 0, 2, 7) for draw in batch]
    per_process = [
        list(StepSampler(30, BatchLayout(6 // processes, 1, processes, rank), 0, 2, 7))
        for rank in range(processes)
    ]
    many = [draw for step in zip(*per_process, strict=True) for part in step for draw in part]
    assert many == one


def test_micro_batches_are_the_same_images_in_parts():
    whole = [draw for batch in StepSampler(30, BatchLayout(6, 1, 1, 0), 0, 0, 4) for draw in batch]
    parts = [draw for batch in StepSampler(30, BatchLayout(2, 3, 1, 0), 0, 0, 4) for draw in batch]
    assert parts == whole


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(UserError, match="has 3 images, fewer than the global batch of 8"):
        StepSampler(3, BatchLayout(4, 1, 2, 0), 0, 0, 1)


def test_a_batch_larger_than_the_data_is_refused_with_the_largest_that_fits():
    with pytest.raises(UserError, match="lower --per_device_train_batch_size to 5 at most"):
        BatchLayout(64, 2, 2, 0).check(23)
    BatchLayout(5, 2, 2, 0).check(23)
    with pytest.raises(UserError, match="give more images, or start fewer processes"):
        BatchLayout(64, 2, 2, 0).check(3)
