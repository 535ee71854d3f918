"""A small model, conversations in a file, and a stream of numbered rows, for all tests of this folder."""

import json

import numpy as np
import pytest
from PIL import Image

from fusion.conversations.sources import open_conversations
from fusion.training.models import load_model
from fusion.training.small_default import write_small_default
from tests.fusion.conversations.stream_helpers import write_stream

TEXTS = ["what colour is the largest object?", "tell me yes or no"]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_small_default(path, TEXTS, seed=0)
    return path


@pytest.fixture(scope="session")
def model_and_processor(small_model):
    model, processor = load_model(str(small_model))
    return model.eval(), processor


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Rows with 1, 0, 3, 0, 1, 0 images, and answers of several lengths."""
    path, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = []
    for number, count in enumerate([1, 0, 3, 0, 1, 0]):
        names = [f"{number}{each}.png" for each in range(count)]
        for name in names:
            Image.fromarray(generator.integers(0, 255, (30 + 9 * number, 64, 3), dtype=np.uint8)).save(
                path / name
            )
        turns = [
            {"from": "human", "value": "tell me " * (number + 1)},
            {"from": "gpt", "value": "yes " * (7 - number)},
        ]
        rows.append({"conversations": turns, "image": names} if names else {"conversations": turns})
    (path / "rows.json").write_text(json.dumps(rows))
    return open_conversations(f"llava:{path / 'rows.json'}")


@pytest.fixture(scope="session")
def stream(tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("stream"))
