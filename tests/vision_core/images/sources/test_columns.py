import pyarrow
import pytest

from vision_core.errors import UserError
from vision_core.images.sources.columns import Columns

TYPES = {
    "left": pyarrow.binary(),
    "right": pyarrow.binary(),
    "caption": pyarrow.string(),
    "share": pyarrow.float32(),
}
COLUMNS = Columns("table", TYPES, ["left", "right"])


def test_the_images_are_in_the_wanted_the_usual_or_the_only_column():
    assert COLUMNS.main_image("right") == "right"
    assert (
        Columns("table", {**TYPES, "image": pyarrow.binary()}, ["left", "image"]).main_image(None) == "image"
    )
    assert Columns("table", TYPES, ["left"]).main_image(None) == "left"
    with pytest.raises(UserError, match="table: columns left, right all hold images; name one by"):
        COLUMNS.main_image(None)
    with pytest.raises(UserError, match="table: no images in columns left, right, caption, share"):
        Columns("table", TYPES, []).main_image(None)
    with pytest.raises(UserError, match=r"no column 'middle'; name one of left, .* by \?image=COLUMN"):
        COLUMNS.main_image("middle")


def test_masks_are_in_the_wanted_or_the_usual_column_of_images():
    assert COLUMNS.image_beside("left", "right", "mask") == "right"
    assert COLUMNS.image_beside("left", None, "right") == "right"
    assert COLUMNS.image_beside("right", None, "right") is None
    assert COLUMNS.image_beside("left", None, "mask") is None
    with pytest.raises(UserError, match=r"column 'caption' holds no images; name another by \?mask=COLUMN"):
        COLUMNS.image_beside("left", "caption", "mask")


def test_texts_are_in_the_wanted_or_a_usual_column_of_texts():
    assert COLUMNS.texts("caption", "captions") == "caption"
    assert COLUMNS.texts(None, "captions", "share", "captions", "caption") == "caption"
    assert COLUMNS.texts(None, "captions", "captions") is None
    with pytest.raises(UserError, match="column 'share' holds neither texts nor lists of texts"):
        COLUMNS.texts("share", "captions")
