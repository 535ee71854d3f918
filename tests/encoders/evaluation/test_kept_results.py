import pytest
from PIL import Image

from encoders import load_encoder
from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.kept_results import KeptResults
from vision_core.images.open_source import open_source
from vision_core.images.splits import Splits

RESULT = {"metrics": {"top-1": 50.0}, "protocol": "by hand", "details": {}, "images": {"test": 8}}


@pytest.fixture
def frozen(tmp_path):
    source = open_source("scenes?count=8")
    return FrozenFeatures(load_encoder("tiny:dinov2"), Splits(source, source), tmp_path / "cache")


def test_a_result_comes_back_with_its_picture_and_what_was_unreadable(frozen, tmp_path):
    kept = KeptResults(tmp_path / "partial", frozen, {"seed": 0})
    frozen.bad["test"]["3"] = "truncated"
    picture = Image.new("RGB", (4, 3), "red")
    kept.keep("knn", {"k": 5}, RESULT, picture)
    frozen.bad["test"].clear()
    result = kept.take("knn", {"k": 5})
    assert result.without_picture() == RESULT and result.picture.tobytes() == picture.tobytes()
    assert frozen.bad["test"] == {"3": "truncated"}


def test_another_setting_or_a_changed_picture_is_not_taken(frozen, tmp_path):
    kept = KeptResults(tmp_path / "partial", frozen, {"seed": 0})
    kept.keep("knn", {"k": 5}, RESULT, Image.new("RGB", (4, 3), "red"))
    assert kept.take("knn", {"k": 6}) is None and kept.take("linear", {"k": 5}) is None
    assert KeptResults(tmp_path / "partial", frozen, {"seed": 1}).take("knn", {"k": 5}) is None
    (path,) = (tmp_path / "partial").glob("*.png")
    path.write_bytes(path.read_bytes()[:-1])
    assert kept.take("knn", {"k": 5}) is None
