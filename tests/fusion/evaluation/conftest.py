"""A small untrained model that answers questions."""

import pytest

from fusion.training.small_default import write_small_default

TEXTS = ["what colour is the largest object?", "tell me yes or no", "is there a dog, yes or no?"]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_small_default(path, TEXTS, seed=0)
    return path
