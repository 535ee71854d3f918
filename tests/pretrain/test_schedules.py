"""Schedules against loops and the spec's part 6."""

import math

import numpy as np
import pytest

from pretrain.schedules import cosine_schedule, frozen, linear_warmup, scaled_learning_rate
from vision_core.errors import UserError


def cosine_loop(base, final, total, warmup, start):
    values = (
        [start + (base - start) * i / (warmup - 1) for i in range(warmup)] if warmup > 1 else [start] * warmup
    )
    n = total - warmup
    return values + [final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / n)) for i in range(n)]


@pytest.mark.parametrize(("total", "warmup"), [(50, 0), (50, 10), (50, 50), (7, 2)])
def test_cosine_is_its_loop(total, warmup):
    ours = cosine_schedule(4e-3, 1e-6, total, warmup, 0.0)
    np.testing.assert_allclose(ours, cosine_loop(4e-3, 1e-6, total, warmup, 0.0), rtol=1e-12)


def test_published_short_recipe():
    peak = scaled_learning_rate(4e-3, 2048, "sqrt")
    rate = cosine_schedule(peak, 1e-6, 125_000, 12_500)
    assert rate[0] == 0
    assert rate[12_499] == rate[12_500] == pytest.approx(5.657e-3, rel=1e-3)
    assert rate[-1] > 1e-6
    assert cosine_schedule(0.04, 0.4, 125_000)[0] == pytest.approx(0.04, rel=1e-12)
    assert cosine_schedule(0.992, 1, 125_000)[0] == pytest.approx(0.992, rel=1e-12)
    temperature = linear_warmup(0.04, 0.07, 37_500, 125_000)
    assert (
        len(temperature) == 125_000
        and temperature[0] == 0.04
        and temperature[37_499] == temperature[-1] == 0.07
    )


def test_scaling_rules_and_freezing():
    assert scaled_learning_rate(5e-4, 512, "linear") == 1e-3
    assert scaled_learning_rate(5e-4, 512, "none") == 5e-4
    assert frozen(np.ones(5), 2).tolist() == [0, 0, 1, 1, 1]


def test_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="warm-up of 20 steps is longer than the run of 10"):
        cosine_schedule(1, 0, 10, 20)
