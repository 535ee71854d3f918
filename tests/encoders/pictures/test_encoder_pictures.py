import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from encoders import load_encoder
from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.pictures.encoder_pictures import (
    attention_picture,
    cosine_maps,
    cosine_picture,
    patch_pca,
    pca_picture,
    principal_scores,
    side_by_side,
)
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError


def test_principal_scores_are_those_of_scikit_learn():
    rows = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
    expected = PCA(3).fit(rows.double().numpy())
    scores, reference = principal_scores(rows, 3).numpy(), expected.transform(rows.double().numpy())
    for ours, theirs, direction in zip(scores.T, reference.T, expected.components_, strict=True):
        sign = np.sign(direction[np.abs(direction).argmax()])  # ours has its largest entry positive
        assert np.allclose(ours, sign * theirs, atol=1e-3)


def test_few_rows_leave_components_empty():
    scores = principal_scores(torch.randn(2, 5), 3)
    assert (
        scores.shape == (2, 3) and torch.isfinite(scores).all() and torch.equal(scores[:, 2], torch.zeros(2))
    )


def test_patch_pca_is_joint_and_in_place():
    maps = (
        torch.randn(5, 24, 2, 4, generator=torch.Generator().manual_seed(0))
        * torch.arange(1, 25)[None, :, None, None]
    )
    shown = patch_pca(maps)
    assert shown.shape == (5, 3, 2, 4) and shown.min() == 0 and shown.max() == 1
    scores = (
        PCA(3)
        .fit_transform(maps.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy())
        .reshape(5, 2, 4, 3)
    )
    for component in range(3):
        inside = (shown[:, component] > 0) & (
            shown[:, component] < 1
        )  # beyond the 1st and 99th percentile it is clipped
        ours, theirs = shown[:, component][inside].numpy(), scores[..., component][inside]
        assert abs(np.corrcoef(ours, theirs)[0, 1]) > 0.9999
    assert torch.equal(patch_pca(maps), shown)


def test_the_chosen_patch_is_most_like_itself():
    maps = torch.randn(3, 16, 4, 6)
    likeness = cosine_maps(maps, (2, 5))
    assert likeness.shape == (3, 4, 6) and (likeness[:, 2, 5] > 0.9999).all() and likeness.max() <= 1.0001
    expected = torch.nn.functional.cosine_similarity(maps[1, :, 2, 5], maps[1, :, 0, 3], dim=0)
    torch.testing.assert_close(likeness[1, 0, 3], expected)
    with pytest.raises(UserError, match="patch 4 0 is outside the grid; rows are 0 to 3, columns 0 to 5"):
        cosine_maps(maps, (4, 0))


def test_pictures_are_readable_and_aligned(tiny_model):
    encoder, images = (TransformersEncoder(tiny_model(2), ImageTransform((32, 64))), torch.rand(4, 3, 32, 64))
    attention = attention_picture(encoder, images, images)
    assert (
        attention.width == 6 * 320 + 5 * 4 and attention.height >= 4 * 160
    )  # the image, three heads, their mean, what is kept of it
    pca = pca_picture(encoder, images, images)
    assert pca.width == 4 * 320 + 3 * 4 and pca.height == 2 * 160 + 4
    cosine = np.asarray(cosine_picture(encoder, images, images, (1, 2))).astype(int)
    assert cosine.shape == (324, pca.width, 3)
    assert (np.abs(cosine[40:80, 80:120] - [255, 0, 0]).sum(-1) == 0).any() and not (
        np.abs(cosine[:38, :78] - [255, 0, 0]).sum(-1) == 0
    ).any()


@pytest.mark.parametrize("kind", ["pca", "attention", "cosine"])
def test_encoders_side_by_side(kind):
    images = [torch.randint(0, 256, (3, 80, 80), dtype=torch.uint8) for _ in range(2)] + [
        torch.randint(0, 256, (3, 60, 60), dtype=torch.uint8)
    ]
    encoders = {name: load_encoder(f"tiny:{name}") for name in ("dinov2", "siglip", "convnext")}
    picture = side_by_side(encoders, images, kind)
    assert picture.size == (4 * 160 + 3 * 4, 20 + 3 * 160 + 2 * 4)
    last = np.asarray(picture)[30:, -150:]
    assert (last == 255).all() == (kind == "attention")  # ConvNeXt has no attention


def test_two_halves_have_two_colours():
    encoder = load_encoder("raw_pixels")
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[0, :, 32:] = 255
    picture = np.asarray(side_by_side({"pixels": encoder}, [image])).astype(int)
    left, right = picture[100, 164 + 30], picture[100, 164 + 130]
    assert np.abs(left - right).sum() > 200
