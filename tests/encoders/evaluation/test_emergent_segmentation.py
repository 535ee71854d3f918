import math

import pytest
import torch
from sklearn.metrics import jaccard_score

from encoders.attention import keep_mass
from encoders.evaluation.emergent_segmentation import emergent_jaccard, jaccard
from vision_core.errors import UserError


def softmax_maps(*shape, seed=0, scale=2.0):
    logits = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return logits.flatten(-2).softmax(-1).view(shape)


def keep_by_loop(attention, share):
    """Drop the weakest patches one by one while what is dropped stays within 1 - share."""
    values = (attention.double() / attention.double().sum()).flatten().tolist()
    dropped, kept = 0.0, [True] * len(values)
    for index in sorted(range(len(values)), key=values.__getitem__):
        dropped += values[index]
        if dropped > 1 - share:
            break
        kept[index] = False
    return torch.tensor(kept).view(attention.shape)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_kept_patches_are_those_of_a_plain_loop(share):
    attention = softmax_maps(3, 4, 5, 7)
    kept = keep_mass(attention, share)
    for image in range(3):
        for head in range(4):
            assert torch.equal(kept[image, head], keep_by_loop(attention[image, head], share))
    assert ((attention * kept).sum((-2, -1)) >= share - 1e-6).all()


def test_scale_does_not_matter_and_rounding_keeps_no_patch_more():
    attention = softmax_maps(2, 6, 6)
    assert torch.equal(keep_mass(attention * 37), keep_mass(attention))
    for side in (5, 10, 20):
        assert keep_mass(torch.full((side, side), 1 / side**2)).sum() == 0.6 * side**2


def test_jaccard_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    predicted, masks = (torch.rand(5, 9, 11, generator=generator) < 0.4 for _ in range(2))
    expected = [
        jaccard_score(truth.flatten(), said.flatten()) for truth, said in zip(masks, predicted, strict=True)
    ]
    assert jaccard(predicted, masks).tolist() == pytest.approx(expected)
    assert math.isnan(jaccard(torch.zeros(2, 2).bool(), torch.zeros(2, 2).bool()))


def squares(count, size):
    """A square object somewhere in each image."""
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for index in range(count):
        masks[index, index : index + size // 2, 1 : 1 + size // 3] = True
    return list(masks)


def test_the_result_is_that_of_a_plain_loop():
    attention, masks = softmax_maps(4, 3, 6, 6), squares(4, 24)
    best, means, heads = [], [], [[], [], []]
    for maps, mask in zip(attention, masks, strict=True):
        upsampled = [
            each.repeat_interleave(4, 0).repeat_interleave(4, 1)
            for each in (*keep_mass(maps), keep_mass(maps.mean(0)))
        ]
        scores = [100 * jaccard_score(mask.flatten(), each.flatten()) for each in upsampled]
        for head, score in enumerate(scores[:-1]):
            heads[head].append(score)
        best.append(max(scores[:-1]))
        means.append(scores[-1])
    result = emergent_jaccard(attention, masks)
    assert result.best_head == pytest.approx(sum(best) / 4)
    assert result.mean_attention == pytest.approx(sum(means) / 4)
    assert result.heads == pytest.approx([sum(each) / 4 for each in heads])
    assert result.best_head >= max(result.heads) and (result.images, result.left_out) == (4, 0)
    assert result.whole_image == pytest.approx(100 * sum(mask.double().mean().item() for mask in masks) / 4)


def test_attention_on_the_object_alone_is_perfect_and_the_oracle_finds_its_head():
    mask = torch.zeros(12, 18, dtype=torch.bool)
    mask[3:9, 6:15] = True
    on_object = mask[1::3, 1::3].float()
    attention = torch.stack([1 - on_object, on_object / on_object.sum()])[None]
    result = emergent_jaccard(attention, [mask], share=1.0)
    assert result.best_head == 100 and result.heads == (0, 100)


def test_masks_of_any_size_take_the_nearest_patch():
    attention = torch.zeros(1, 1, 2, 2)
    attention[0, 0, 0, 0] = 1
    for height, width in ((2, 2), (7, 5), (100, 31), (1, 1)):
        rows, columns = ((torch.arange(side) + 0.5) * 2 / side < 1 for side in (height, width))
        mask = rows[:, None] & columns
        mask[0, 0] = True
        expected = rows[:, None] & columns
        assert emergent_jaccard(attention, [mask]).best_head == pytest.approx(
            100 * jaccard(expected, mask).item()
        )


def test_chance_is_what_random_attention_reaches():
    """Uniform attention with an unpredictable order of patches: a random choice of 60 %."""
    masks = squares(1, 40) * 300
    ramp = torch.ones(1600) + 1e-4 * torch.rand(300, 1600, generator=torch.Generator().manual_seed(0))
    result = emergent_jaccard(ramp.view(300, 1, 40, 40), masks)
    assert result.best_head == pytest.approx(result.chance, rel=0.02)


def test_pixels_that_count_nowhere_do_not_count():
    attention = softmax_maps(1, 8, 4, 4, scale=0.3)
    mask = torch.zeros(4, 4, dtype=torch.int64)
    mask[1:3, 1:3], mask[1, 1] = 7, 3
    assert emergent_jaccard(attention, [mask]) == emergent_jaccard(attention, [mask != 0])
    mask[0], predicted = 255, keep_mass(attention[0])
    assert predicted[:, 0].any(1).sum() > 4
    result = emergent_jaccard(attention, [mask])
    assert result.heads == pytest.approx(
        [100 * jaccard(each[1:], mask[1:] != 0).item() for each in predicted]
    )
    assert result.whole_image == pytest.approx(100 * 4 / 12)


def test_images_without_an_object_are_left_out():
    attention, masks = softmax_maps(3, 2, 4, 4), squares(3, 8)
    masks[1] = torch.zeros(8, 8, dtype=torch.bool)
    result = emergent_jaccard(attention, masks)
    kept = emergent_jaccard(attention[[0, 2]], [masks[0], masks[2]])
    assert (result.images, result.left_out) == (2, 1) and result.best_head == kept.best_head


def test_bad_input():
    attention, masks = softmax_maps(2, 2, 4, 4), squares(2, 8)
    with pytest.raises(UserError, match="2 attention maps and 1 masks"):
        emergent_jaccard(attention, masks[:1])
    with pytest.raises(UserError, match="no mask shows an object"):
        emergent_jaccard(attention, [torch.zeros(8, 8, dtype=torch.bool)] * 2)
    for value in (math.nan, -0.1, math.inf):
        broken = attention.clone()
        broken[1, 1, 2, 2] = value
        with pytest.raises(UserError, match="attention must be finite"):
            emergent_jaccard(broken, masks)
    with pytest.raises(UserError, match="not all zero"):
        keep_mass(torch.zeros(4, 4))
