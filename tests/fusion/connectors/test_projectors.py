"""Connectors of one encoder."""

import pytest
import torch

from fusion import build_connector
from vision_core.errors import UserError


def test_published_size():
    """Millions of parameters to a language model of 4096."""
    with torch.device("meta"):
        connector = build_connector("mlp", (1024,), (24,), 4096, 24, newline=False)
    assert sum(each.numel() for each in connector.parameters()) / 1e6 == pytest.approx(20.98, abs=0.05)


@pytest.mark.parametrize(
    ("name", "widths", "grids", "options", "message"),
    [
        ("mlp", (5, 6), (4, 4), {}, "MlpConnector needs one encoder"),
        ("mlp", (5,), (8,), {}, "MlpConnector needs encoder grids of 4, its own"),
    ],
)
def test_bad_input(name, widths, grids, options, message):
    with pytest.raises(UserError, match=message):
        build_connector(name, widths, grids, 12, 4, **options)
