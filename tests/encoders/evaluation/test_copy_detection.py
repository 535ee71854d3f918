import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from encoders.evaluation.copy_detection import (
    copy_descriptors,
    copy_detection,
    copy_scores,
    gem,
    learn_whitening,
)
from vision_core.errors import UserError


def random_rows(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_gem_is_the_formula():
    patch_map = random_rows(2 * 3 * 20, 1).view(2, 3, 4, 5)
    for image in range(2):
        for channel in range(3):
            values = [max(float(value), 1e-6) for value in patch_map[image, channel].flatten()]
            expected = (sum(value**4 for value in values) / 20) ** 0.25
            assert gem(patch_map)[image, channel].item() == pytest.approx(expected)


def test_gem_between_mean_and_maximum():
    patch_map = torch.rand(2, 3, 4, 5)
    assert torch.allclose(gem(patch_map, power=1), patch_map.mean((2, 3)))
    assert torch.allclose(gem(patch_map, power=60), patch_map.amax((2, 3)), rtol=0.06)


def test_gem_of_negative_and_half_precision_maps():
    assert torch.allclose(gem(torch.full((1, 2, 3, 3), -5.0)), torch.full((1, 2), 1e-6))
    assert torch.isfinite(gem(torch.randn(1, 4, 3, 3).half() * 1e3)).all()


def test_descriptors_stand_side_by_side():
    cls, patch_gem = random_rows(4, 3), random_rows(4, 5)
    assert torch.equal(
        copy_descriptors(cls.half(), patch_gem), torch.cat([cls.half().float(), patch_gem], dim=1)
    )


def test_whitening_is_that_of_scikit_learn():
    rows, others = random_rows(300, 6) @ random_rows(6, 6, seed=1) + 3, random_rows(20, 6, seed=2)
    ours = learn_whitening(rows)(others).double()
    reference = torch.from_numpy(
        PCA(whiten=True).fit(rows.double().numpy()).transform(others.double().numpy())
    )
    # directions come in another order and sign, and scikit-learn divides by n - 1: cosines are the
    # same
    unit_ours, unit_reference = (torch.nn.functional.normalize(each, dim=1) for each in (ours, reference))
    torch.testing.assert_close(unit_ours @ unit_ours.T, unit_reference @ unit_reference.T, rtol=0, atol=1e-5)


def test_whitened_rows_have_variance_one_and_no_correlation():
    rows = random_rows(500, 6) @ random_rows(6, 6, seed=1) + 7
    white = learn_whitening(rows)(rows)
    torch.testing.assert_close(white.T @ white / 500, torch.eye(6), rtol=0, atol=1e-4)
    turned = learn_whitening(rows, exponent=0)(rows)
    assert torch.allclose(torch.pdist(turned), torch.pdist(rows), rtol=1e-4)


def test_directions_without_variance_are_left_out():
    rows = torch.cat([random_rows(50, 3), torch.ones(50, 2)], dim=1)
    whitening = learn_whitening(rows)
    assert whitening.projection.shape == (5, 3)
    far = rows.clone()
    far[:, 3] += 100
    assert torch.allclose(whitening(far), whitening(rows), atol=1e-3)


def test_whitening_refuses_bad_input():
    with pytest.raises(UserError, match="1 images say nothing"):
        learn_whitening(random_rows(1, 4))
    with pytest.raises(UserError, match="the encoder has collapsed"):
        learn_whitening(torch.full((30, 4), 0.1))
    broken = random_rows(9, 4)
    broken[5, 0] = math.nan
    with pytest.raises(UserError, match="row 5 are not finite"):
        learn_whitening(broken)


def test_scores_are_those_of_scikit_learn():
    similarity = random_rows(12, 40)
    positives = torch.rand(12, 40, generator=torch.Generator().manual_seed(3)) < 0.1
    positives[4] = False
    rows = [row for row in range(12) if positives[row].any()]
    scores = copy_scores(similarity, positives)
    expected = np.mean([average_precision_score(positives[row], similarity[row]) for row in rows])
    first = np.mean([bool(positives[row, similarity[row].argmax()]) for row in rows])
    assert scores["mAP"] == pytest.approx(100 * expected)
    assert scores["recall@1"] == pytest.approx(100 * first)
    assert scores["micro_AP"] == pytest.approx(
        100 * average_precision_score(positives.flatten(), similarity.flatten())
    )
    assert scores["queries"] == len(rows)


def test_micro_ap_wants_one_threshold_for_all():
    """Both queries rank their original first, but the second one's false pair is nearer than the
    first one's true pair."""
    similarity = torch.tensor([[0.5, 0.1], [0.7, 0.9]])
    scores = copy_scores(similarity, torch.eye(2, dtype=torch.bool))
    assert (scores["mAP"], scores["recall@1"]) == (100, 100)
    assert scores["micro_AP"] == pytest.approx(100 * (1 + 2 / 3) / 2)


def album(noise, count=30, width=16):
    """Originals and distractors, then a copy of every original by two transforms."""
    originals, distractors = random_rows(count, width), random_rows(count, width, seed=1)
    made = [
        originals + noise[name] * random_rows(count, width, seed=2 + row) for row, name in enumerate(noise)
    ]
    ids = (
        [f"original {n}" for n in range(count)]
        + [f"other {n}" for n in range(count)]
        + [f"{name} {n}" for name in noise for n in range(count)]
    )
    copy_of = [None] * count + [""] * count + [f"original {n}" for _ in noise for n in range(count)]
    transforms = [""] * 2 * count + [name for name in noise for _ in range(count)]
    return torch.cat([originals, distractors, *made]), ids, copy_of, transforms


def test_copies_search_the_database_alone():
    features, ids, copy_of, transforms = album({"crop": 0.5, "blur": 1.5})
    results = copy_detection(features, ids, copy_of, transforms)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    ranks = []
    for query in range(60, 120):
        nearness = unit[:60] @ unit[query]
        ranks.append(int((nearness >= nearness[ids.index(copy_of[query])]).sum()))
    assert results["all"]["mAP"] == pytest.approx(100 * np.mean([1 / rank for rank in ranks]))
    assert results["all"]["recall@1"] == pytest.approx(100 * np.mean([rank == 1 for rank in ranks]))
    assert list(results) == ["all", "crop", "blur"]
    assert results["crop"]["mAP"] == pytest.approx(100 * np.mean([1 / rank for rank in ranks[:30]]))
    assert results["crop"]["mAP"] > results["blur"]["mAP"] and results["blur"]["queries"] == 30


def test_the_order_of_the_images_does_not_matter():
    features, ids, copy_of, _ = album({"crop": 1.0})
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(9)).tolist()
    mixed = copy_detection(features[order], [ids[row] for row in order], [copy_of[row] for row in order])
    assert mixed["all"] == pytest.approx(copy_detection(features, ids, copy_of)["all"])


def test_an_image_is_no_copy_of_itself():
    features, ids, copy_of, _ = album({"crop": 1.0})
    own = [original if original else name for name, original in zip(ids, copy_of, strict=True)]
    assert copy_detection(features, ids, own) == copy_detection(features, ids, copy_of)


def test_a_collapsed_encoder_finds_nothing():
    features, ids, copy_of, _ = album({"crop": 1.0})
    scores = copy_detection(torch.ones_like(features), ids, copy_of)["all"]
    assert scores["recall@1"] == 0 and scores["mAP"] == pytest.approx(100 / 60)


def test_whitening_undoes_a_loud_direction():
    """One direction that says nothing of the image drowns all others, until the whitening makes it
    one among many."""
    features, ids, copy_of, _ = album({"crop": 0.5})
    loud = features + torch.cat([100 * random_rows(len(ids), 1, seed=8), torch.zeros(len(ids), 15)], dim=1)
    plain, whitened = loud, learn_whitening(loud[:60])(loud)
    assert (
        copy_detection(whitened, ids, copy_of)["all"]["mAP"]
        > 2 * copy_detection(plain, ids, copy_of)["all"]["mAP"]
    )


def test_bad_input():
    features, ids, copy_of, transforms = album({"crop": 0.5})
    with pytest.raises(UserError, match="90 features, 90 image_ids and 89 copy_of"):
        copy_detection(features, ids, copy_of[1:])
    with pytest.raises(UserError, match="90 images and 1 transforms"):
        copy_detection(features, ids, copy_of, transforms[:1])
    with pytest.raises(UserError, match="has original 1 twice"):
        copy_detection(features, ["original 1", *ids[1:]], copy_of)
    with pytest.raises(UserError, match="crop 29 is a copy of nobody, which is not in the database"):
        copy_detection(features, ids, [*copy_of[:-1], "nobody"])
    with pytest.raises(UserError, match="crop 29 is a copy of crop 3, which is a copy itself"):
        copy_detection(features, ids, [*copy_of[:-1], "crop 3"])
    with pytest.raises(UserError, match="no image is a copy"):
        copy_detection(features, ids, [None] * 90)
    features[2, 2] = math.nan
    with pytest.raises(UserError, match="copy detection: the features of row 2 are not finite"):
        copy_detection(features, ids, copy_of)
