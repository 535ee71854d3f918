"""Connectors by name."""

import inspect

import pytest

from fusion import CONNECTORS, build_connector
from vision_core.errors import UserError


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("svaa", {}, r"no connector 'svaa'; did you mean sva\?"),
        ("nothing", {}, "no connector 'nothing'; known: sva"),
        ("mlp", {"depth": 2}, "mlp has no option depth; it has newline"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with pytest.raises(UserError, match=message):
        build_connector(name, (5,), (4,), 12, 4, **options)


def test_constructors_are_alike():
    for connector in CONNECTORS.values():
        positional = [
            each.name
            for each in inspect.signature(connector).parameters.values()
            if each.kind == each.POSITIONAL_OR_KEYWORD
        ]
        assert positional == ["encoder_widths", "encoder_grids", "hidden_size", "grid"]
