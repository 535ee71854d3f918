"""The resampler; `test_base.py` has what all connectors share."""

import pytest

from fusion import build_connector
from vision_core.errors import UserError


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="not a multiple of its 4 heads"):
        build_connector("resampler", (5,), (4,), 12, 4, width=10, num_heads=4)
