import sys

import numpy as np
import pytest

from encoders.pictures.curves import bar_picture, curve_picture
from vision_core.errors import UserError


def test_a_curve_shows_its_lines_and_references():
    curves = {"cls": ([0, 10, 20], [1.0, 5.0, 9.0])}
    bare, whole = (
        np.asarray(curve_picture(curves, "k-NN", "%", references))
        for references in (None, {"raw pixels": 20.0})
    )
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


def test_bars_keep_the_colour_of_a_name():
    picture = np.asarray(
        bar_picture({"a": {"one": 10.0, "two": 20.0}, "b": {"two": 5.0}}, "title", "%")
    ).astype(int)
    blue, orange = (
        (np.abs(picture - colour) < 30).all(-1).sum() for colour in ([31, 119, 180], [255, 127, 14])
    )
    assert orange > 1.5 * blue > 100
