"""Connectors by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from fusion.connectors.base import (
    AdditiveFeatures,
    ChannelConcat,
    Connector,
    InterleavedFeatures,
    LinearConnector,
    MlpConnector,
    PixelShuffle,
)
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
    """What `build_connector(name, ...)` takes by name. Raises UserError for an unknown name."""
    if name not in CONNECTORS:
        near = get_close_matches(name, CONNECTORS, n=1)
        raise UserError(
            f"there is no connector {name!r}{f'; did you mean {near[0]}?' if near else ';'} known: {', '.join(CONNECTORS)}"
        )
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
    """The connector `name`, one of `CONNECTORS`; arguments and options as its class has them.
    Raises UserError for a name or option that is not known."""
    known = connector_options(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"the connector {name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return CONNECTORS[name](encoder_widths, encoder_grids, hidden_size, grid, **options)
