import pytest
from PIL import Image

from encoders.evaluation.results import TaskResult, figure_in_words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.123456, "0.123"), (9.876, "9.88"), (10.04, "10.0"), (99.96, "100.0"), (-12.34, "-12.3")],
)
def test_figures_have_three_digits_or_one_decimal(value, words):
    assert figure_in_words(value) == words


def test_a_result_in_words_and_for_json():
    images = {"train": 1059, "test": 21}
    result = TaskResult({"mAP": 5.0, "queries": 3}, "by hand", Image.new("L", (1, 1)), images=images)
    assert result.images_in_words == "1,059 training and 21 test images" and result.headline == ("mAP", 5.0)
    assert result.without_picture() == {
        "metrics": {"mAP": 5.0, "queries": 3},
        "protocol": "by hand",
        "details": {},
        "images": images,
    }
    assert TaskResult({}, "", images={"test": 21}).images_in_words == "21 test images"
