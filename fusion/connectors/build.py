"""Connectors by name: the table that a new connector is added to."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from fusion.connectors.base import Connector
from fusion.connectors.channel_concat import ChannelConcat, PixelShuffle
from fusion.connectors.feature_mixtures import AdditiveFeatures, InterleavedFeatures
from fusion.connectors.projectors import LinearConnector, MlpConnector
from fusion.connectors.resampler import Resampler
from fusion.connectors.spatial_vision_aggregator import SpatialVisionAggregator
from vision_core.errors import UserError

CONNECTORS: dict[str, type[Connector]] = {
    "sva": SpatialVisionAggregator,
    "mlp": MlpConnector,
    "linear": LinearConnector,
    "channel_concat": ChannelConcat,
    "interleaved": InterleavedFeatures,
    "additive": AdditiveFeatures,
    "resampler": Resampler,
    "pixel_shuffle": PixelShuffle,
}


def connector_options(name: str) -> list[str]:
    """The names of the options that `build_connector(name, ...)` takes.

    Raises UserError for an unknown name.
    """
    if name not in CONNECTORS:
        near = get_close_matches(name, CONNECTORS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise UserError(f"there is no connector {name!r}{hint} known: {', '.join(CONNECTORS)}")
    parameters = inspect.signature(CONNECTORS[name].__init__).parameters.values()
    return [each.name for each in parameters if each.kind == each.KEYWORD_ONLY]


def build_connector(
    name: str,
    encoder_widths: Sequence[int],
    encoder_grids: Sequence[int],
    hidden_size: int,
    grid: int,
    **options: Any,
) -> Connector:
    """Make the connector `name`, one of `CONNECTORS`, with the arguments and options of its class.

    Raises UserError for an unknown name or option.
    """
    known = connector_options(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"the connector {name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return CONNECTORS[name](encoder_widths, encoder_grids, hidden_size, grid, **options)
