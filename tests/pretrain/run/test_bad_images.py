"""Unreadable images are counted and end the run above a share."""

import pytest

from pretrain.run.bad_images import BadImageWatch
from vision_core.errors import UserError


def test_too_many_bad_images_stop_the_run():
    watch = BadImageWatch(0.01, None)
    watch.look_at({"ids": ["a"] * 100, "bad": [("x.png", "truncated")] * 10})
    watch.report()
    assert watch.state_dict() == {"drawn": 110, "bad": 10}
    watch.look_at({"ids": [], "bad": [("x.png", "truncated")] * 2})
    with pytest.raises(UserError, match=r"12 of 112 images drawn are unreadable.*x.png \(truncated\)"):
        watch.report()
