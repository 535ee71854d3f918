import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from sklearn.metrics import confusion_matrix as sklearn_confusion
from torch.nn import functional as F

from encoders.evaluation.segmentation import (
    confusion_matrix,
    label_picture,
    linear_segmentation,
    segmentation_loss,
    segmentation_scores,
)
from vision_core.errors import UserError

GRID = (5, 7)


def problem(count=12, classes=4, width=8, seed=0, factor=6):
    """Maps whose features say the class of their patch, and masks of `factor` pixels a patch with
    an ignored margin."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(classes, (count, *GRID), generator=generator)
    maps = torch.eye(width)[patches].permute(0, 3, 1, 2) + 0.1 * torch.randn(
        count, width, *GRID, generator=generator
    )
    masks = F.interpolate(patches[:, None].float(), scale_factor=factor, mode="nearest-exact")[:, 0].long()
    # a label changes over a pixel or two when logits are interpolated
    borders = (
        F.max_pool2d(masks[:, None].float(), 3, 1, 1)[:, 0]
        != -F.max_pool2d(-masks[:, None].float(), 3, 1, 1)[:, 0]
    )
    masks[borders] = 255
    return maps.half(), list(masks)


def test_what_the_maps_determine_is_learnt():
    train, test = problem(), problem(count=10, seed=1)
    result = linear_segmentation(*train, *test, num_classes=4, iterations=600)
    assert result.miou > 95 and result.pixel_accuracy > 95
    assert len(result.predictions) == 8 and result.predictions[0].shape == test[1][0].shape
    assert all(iou > 90 for iou in result.class_ious)


def test_masks_have_sizes_of_their_own():
    maps, masks = problem()
    stretched = [
        F.interpolate(mask[None, None].float(), (31 + number, 60), mode="nearest-exact")[0, 0].long()
        for number, mask in enumerate(masks)
    ]
    result = linear_segmentation(maps, stretched, maps, stretched, num_classes=4, iterations=600)
    assert result.miou > 90 and result.predictions[3].shape == (34, 60)


def test_rows_from_disk_and_seeds():
    train, test = problem(), problem(count=2, seed=1)

    class Rows(list):
        def __getitem__(self, index):
            assert isinstance(index, int)
            return super().__getitem__(index)

    def run(maps, seed):
        result = linear_segmentation(
            maps, train[1], *test, num_classes=4, iterations=4, batch_size=5, seed=seed
        )
        return torch.stack(result.predictions)

    before = torch.random.get_rng_state()
    first = run(train[0], 0)
    torch.randn(3)
    assert torch.equal(run(Rows(train[0]), 0), first) and not torch.equal(run(train[0], 1), first)
    torch.random.set_rng_state(before)
    run(train[0], 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_scores_are_those_of_scikit_learn_and_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    truths = [torch.randint(5, (9 + number, 11), generator=generator) for number in range(6)]
    guesses = [
        torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, torch.randint(5, truth.shape))
        for truth in truths
    ]
    for truth in truths:
        truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    confusion = sum(confusion_matrix(guess, truth, 7) for guess, truth in zip(guesses, truths, strict=True))
    miou, ious, accuracy = segmentation_scores(confusion)
    truth, guess = (torch.cat([each.flatten() for each in all_]).numpy() for all_ in (truths, guesses))
    guess, truth = guess[truth != 255], truth[truth != 255]
    assert np.array_equal(confusion[:5, :5].numpy(), sklearn_confusion(truth, guess))
    assert np.allclose(ious[:5], 100 * jaccard_score(truth, guess, average=None))
    assert ious[5:] == (None, None) and math.isclose(miou, 100 * jaccard_score(truth, guess, average="macro"))
    assert math.isclose(accuracy, 100 * accuracy_score(truth, guess))
    classification = pytest.importorskip("torchmetrics.classification")
    metric = classification.MulticlassJaccardIndex(7, average="macro", ignore_index=255)
    for guess, truth in zip(guesses, truths, strict=True):
        metric.update(guess, truth)
    assert math.isclose(miou, 100 * metric.compute().item(), rel_tol=1e-5)


def test_a_class_that_is_only_predicted_counts():
    confusion = confusion_matrix(torch.tensor([0, 0, 2, 1]), torch.tensor([0, 0, 0, 1]), 4)
    miou, ious, accuracy = segmentation_scores(confusion)
    assert (
        ious[2] == 0 and ious[3] is None and math.isclose(miou, 100 * (2 / 3 + 1 + 0) / 3) and accuracy == 75
    )


def test_miou_is_of_the_set_not_of_the_images():
    truths = [torch.zeros(10, dtype=torch.long), torch.tensor([0, 1])]
    guesses = [torch.zeros(10, dtype=torch.long), torch.tensor([1, 1])]
    each = [confusion_matrix(guess, truth, 2) for guess, truth in zip(guesses, truths, strict=True)]
    per_image = sum(segmentation_scores(confusion)[0] for confusion in each) / 2
    whole = segmentation_scores(each[0] + each[1])[0]
    assert math.isclose(per_image, 100 * (1 + 0.25) / 2) and math.isclose(whole, 100 * (10 / 11 + 1 / 2) / 2)


def test_loss_is_that_of_a_loop_and_ignored_pixels_change_nothing():
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    masks = torch.randint(3, (2, 8, 10), dtype=torch.uint8)
    masks[0, :4], masks[1, :, 7:] = 255, 255
    upsampled = F.interpolate(logits, (8, 10), mode="bilinear", align_corners=False).detach().numpy()
    terms = [
        math.log(sum(math.exp(value) for value in upsampled[image, :, row, column]))
        - upsampled[image, masks[image, row, column], row, column]
        for image, row, column in np.argwhere(masks.numpy() != 255)
    ]
    loss = segmentation_loss(logits, masks)
    assert math.isclose(loss.item(), sum(terms) / len(terms), rel_tol=1e-12)
    loss.backward()
    assert logits.grad[0, :, 0].abs().max() == 0 and logits.grad[0, :, 3].abs().min() > 0
    assert segmentation_loss(logits, torch.full_like(masks, 255)).item() == 0


def test_label_picture():
    pixels = np.asarray(label_picture(torch.arange(256).view(16, 16), 255)).reshape(-1, 3)
    assert (
        len(np.unique(pixels, axis=0)) == 256
        and pixels[255].tolist() == [0, 0, 0]
        and pixels[:255].max(1).min() > 60
    )
    assert np.array_equal(np.asarray(label_picture(torch.arange(3)[None], 3))[0], pixels[:3])


def test_bad_input():
    maps, masks = problem(count=4)

    def run(*data, classes=4):
        linear_segmentation(*data, num_classes=classes, iterations=2)

    with pytest.raises(UserError, match="4 training maps and 3 annotations"):
        run(maps, masks[:3], maps, masks)
    with pytest.raises(UserError, match="3 test maps and 4 annotations"):
        run(maps, masks, maps[:3], masks)
    with pytest.raises(UserError, match="no test images"):
        run(maps, masks, maps[:0], [])
    for value, classes in ((3, 3), (254, 4), (-1, 4)):
        wrong = [mask.clone() for mask in masks]
        wrong[2][wrong[2] == 3] = 0
        wrong[2][5, 5] = value
        others = [mask.clamp_max(2) if classes == 3 else mask for mask in masks]
        with pytest.raises(
            UserError,
            match=f"mask of training image 2 holds the value {value}, but the classes are 0 to {classes - 1}.*ignore=",
        ):
            run(maps, [*others[:2], wrong[2], others[3]], maps, others, classes=classes)
        with pytest.raises(UserError, match=f"mask of test image 2 holds the value {value}"):
            run(maps, others, maps, [*others[:2], wrong[2], others[3]], classes=classes)
    with pytest.raises(UserError, match="show a single class"):
        run(maps, [torch.full_like(mask, 1) for mask in masks], maps, masks)
    with pytest.raises(UserError, match="no pixel of the test masks counts"):
        run(maps, masks, maps, [torch.full_like(mask, 255) for mask in masks])
    with pytest.raises(UserError, match="256 classes"):
        run(maps, masks, maps, masks, classes=256)
    for bad in (math.nan, math.inf):
        broken = maps.clone()
        broken[3, 2, 1, 1] = bad
        for data in ((broken, masks, maps, masks), (maps, masks, broken, masks)):
            with pytest.raises(UserError, match="features of image 3 are not finite"):
                run(*data)
