"""Waiting for data has an end."""

import time

import pytest

from pretrain.run.data_workers import time_limit


def test_a_wait_for_data_has_an_end():
    with pytest.raises(RuntimeError, match="DataLoader timed out after 0.1 seconds"), time_limit(0.1):
        time.sleep(5)
    with time_limit(0):  # none
        time.sleep(0.01)
