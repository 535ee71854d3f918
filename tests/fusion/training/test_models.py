"""Which folders hold a fused model."""

import shutil

import pytest

from fusion.training.models import NEEDED_FILES, check_model_folder, load_model
from vision_core.errors import UserError


@pytest.mark.parametrize(("pattern", "what"), NEEDED_FILES)
def test_what_lacks_is_named(small_defaults, tmp_path, pattern, what):
    folder = tmp_path / "model"
    shutil.copytree(small_defaults[2], folder)
    check_model_folder(str(folder))
    for file in folder.glob(pattern):
        file.unlink()
    with pytest.raises(UserError, match=f"no {what}"):
        check_model_folder(str(folder))


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        load_model(str(tmp_path))
