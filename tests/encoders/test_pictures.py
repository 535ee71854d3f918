import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from encoders.evaluation.features import num_prefix_tokens
from encoders.pictures import (
    attention_maps,
    attention_picture,
    contact_sheet,
    curve_picture,
    display,
    heat,
    patch_pca,
    pca_picture,
    principal_scores,
)
from vision_core.errors import UserError


@pytest.mark.parametrize("registers", [None, 0, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_maps_are_the_models_own(tiny_model, registers, attention):
    """Against the weights that transformers' eager attention returns; 2 x 4 patches, so that rows and columns cannot be swapped."""
    model, pixels = tiny_model(registers, attention).train(), torch.randn(2, 3, 16, 32)
    maps = attention_maps(model, pixels)
    assert model.training and model.config._attn_implementation == attention
    assert not model.encoder.layer[-1].attention._forward_pre_hooks
    eager = tiny_model(registers, "eager").eval()
    with torch.no_grad():
        weights = eager(pixels, output_attentions=True).attentions[-1]
    for row in range(2):
        for column in range(4):
            expected = weights[:, :, 0, num_prefix_tokens(model) + 4 * row + column]
            torch.testing.assert_close(maps[:, :, row, column], expected, rtol=1e-5, atol=1e-6)
    assert maps.shape == (2, 3, 2, 4) and (maps.sum((2, 3)) < 1).all()


def test_principal_scores_are_those_of_scikit_learn():
    rows = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
    expected = PCA(3).fit(rows.double().numpy())
    scores, reference = principal_scores(rows, 3).numpy(), expected.transform(rows.double().numpy())
    for ours, theirs, direction in zip(scores.T, reference.T, expected.components_, strict=True):
        sign = np.sign(direction[np.abs(direction).argmax()])  # ours has its largest entry positive
        assert np.allclose(ours, sign * theirs, atol=1e-3)


def test_few_rows_leave_components_empty():
    scores = principal_scores(torch.randn(2, 5), 3)
    assert scores.shape == (2, 3) and torch.isfinite(scores).all() and torch.equal(scores[:, 2], torch.zeros(2))


@pytest.mark.parametrize("registers", [None, 3])
def test_patch_pca_is_joint_and_in_place(tiny_model, registers):
    model, pixels = tiny_model(registers), torch.randn(5, 3, 16, 32)
    colours = patch_pca(model, pixels)
    assert colours.shape == (5, 3, 2, 4) and colours.min() == 0 and colours.max() == 1
    with torch.no_grad():
        tokens = model.eval()(pixels).last_hidden_state[:, num_prefix_tokens(model) :]
    scores = PCA(3).fit_transform(tokens.flatten(0, 1).double().numpy()).reshape(5, 2, 4, 3)
    for component in range(3):
        inside = (colours[:, component] > 0) & (colours[:, component] < 1)  # beyond the 1st and 99th percentile it is clipped
        ours, theirs = colours[:, component][inside].numpy(), scores[..., component][inside]
        assert abs(np.corrcoef(ours, theirs)[0, 1]) > 0.9999
    assert torch.equal(patch_pca(model, pixels), colours)


def test_pictures_are_readable_and_aligned(tiny_model):
    model, images = tiny_model(2), torch.rand(4, 3, 32, 64)
    attention = attention_picture(model, images, images)
    assert attention.width >= 5 * 256 and attention.height >= 4 * 128  # the image, three heads and their mean
    pca = pca_picture(model, images, images)
    assert pca.width >= 4 * 256 and pca.height >= 2 * 128
    # sides that are no multiple of the patch: maps cover the image's tile all the same
    odd = torch.rand(2, 3, 37, 45)
    assert attention_picture(model, odd, odd).width - 5 * round(45 * 160 / 37) == 4 * 4


def test_a_contact_sheet_gives_every_picture_its_place():
    red, blue = Image.new("RGB", (50, 20), "red"), Image.new("RGB", (30, 40), "blue")
    sheet = contact_sheet([[red, blue], [blue]])
    assert sheet.size == (50 + 4 + 30, 40 + 4 + 40)
    assert sheet.getpixel((49, 19)) == (255, 0, 0) and sheet.getpixel((54, 39)) == (0, 0, 255) and sheet.getpixel((0, 44)) == (0, 0, 255)
    assert sheet.getpixel((51, 10)) == (255, 255, 255) and sheet.getpixel((54, 44)) == (255, 255, 255)
    captioned = np.asarray(contact_sheet([[red, blue]], ["one", "two"]))
    assert captioned.shape == (60, 84, 3) and (captioned[:20, :40] == 0).any() and (captioned[:20, 54:] == 0).any()


def test_heat_runs_from_dark_to_light():
    picture = np.asarray(heat(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))).astype(int)
    assert (np.diff(picture.sum(-1)) > 0).all()
    assert np.asarray(heat(torch.full((2, 2), 5.0))).std() < 60  # a constant map is no error


def test_display_makes_three_channels_of_any():
    rgb = torch.rand(2, 3, 4, 4)
    assert torch.equal(display(rgb), rgb) and torch.equal(display(torch.cat([rgb, rgb], 1)), rgb)
    grey = display(rgb[:, :1])
    assert grey.shape == (2, 3, 4, 4) and torch.equal(grey[:, 2], rgb[:, 0])
    bands = display(rgb * 3000 - 50)
    assert bands.min() == 0 and bands.max() == 1


def test_a_curve_shows_its_lines_and_references():
    curves = {"cls": ([0, 10, 20], [1.0, 5.0, 9.0])}
    bare, whole = (np.asarray(curve_picture(curves, "k-NN", "%", references)) for references in (None, {"raw pixels": 20.0}))
    assert bare.shape == whole.shape and min(bare.shape[:2]) >= 400 and (bare != whole).any()
    blue = (np.abs(bare.astype(int) - [31, 119, 180]) < 30).all(-1)  # matplotlib's first colour
    assert blue.sum() > 100
    assert curve_picture({}, "nothing yet", "%").width == bare.shape[1]


def test_curves_touch_no_global_state():
    import matplotlib

    before = matplotlib.get_backend()
    curve_picture({"loss": ([1], [1.0])}, "loss", "loss")
    assert matplotlib.get_backend() == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_missing_matplotlib_is_said_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'vision-encoder-fusion\[pretrain\]'"):
        curve_picture({}, "", "")
