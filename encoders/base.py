"""The contract of every vision encoder here: pixels in, maps of patch features and one vector
out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from encoders.preprocess import ImageTransform
from vision_core.errors import UserError
from vision_core.plain_values import check_types


@dataclass(frozen=True)
class LayerFeatures:
    """What one layer says about a batch.

    number: of the block (ViT) or stage (ConvNeXt), counted from 1. patch_map: `[B, C, h, w]`, row 0
    at the top. cls: `[B, C]`, or None where the model has no CLS token. normalised: whether the
    model's final norm has been applied.
    """

    number: int
    patch_map: Tensor
    cls: Tensor | None
    normalised: bool


@dataclass(frozen=True)
class Features:
    """What an encoder says about a batch: the layers that were asked for, in that order, and the
    published image vector `[B, D]` or None."""

    layers: tuple[LayerFeatures, ...]
    pooled: Tensor | None

    @property
    def patch_map(self) -> Tensor:
        """Of the last of the layers, `[B, C, h, w]`."""
        return self.layers[-1].patch_map

    @property
    def cls(self) -> Tensor | None:
        """Of the last of the layers, `[B, C]` or None."""
        return self.layers[-1].cls

    @property
    def normalised(self) -> bool:
        """Whether `patch_map` is behind the model's final norm."""
        return self.layers[-1].normalised


@dataclass(frozen=True)
class EncoderConfig:
    """Everything about an encoder but its weights; `asdict` of it is plain JSON.

    library: transformers, timm, open_clip or raw_pixels. architecture: what that library builds the
    model from. transform: an `ImageTransform` as a dict. layers, norm: see `Encoder`. source: the
    text that it was first loaded from, for people. untrained: no training has seen these weights.
    position_antialias, position_offset: see `TransformersEncoder`.
    """

    library: str
    architecture: dict[str, Any]
    transform: dict[str, Any]
    layers: tuple[int, ...] = (-1,)
    norm: bool = True
    source: str = ""
    untrained: bool = False
    position_antialias: bool | None = None
    position_offset: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """The inverse of `to_dict`. Raises UserError for keys that are missing or not known."""
        known = set(cls.__dataclass_fields__)
        if set(values) - known or not {"library", "architecture", "transform"} <= set(values):
            raise UserError(
                f"an encoder's config has the keys {', '.join(sorted(known))}, not {', '.join(sorted(values))}"
            )
        check_types(cls, values, "an encoder's config")
        return cls(**{**values, "layers": tuple(values.get("layers", (-1,)))})


class Encoder(nn.Module):
    """`pixel_values [B, C, H, W] -> Features`.

    Args:
        layers: blocks or stages whose features are returned, counted from 1, or from -1 backwards.
        norm: put the model's final norm behind every returned layer that has its width.
        source: what it was loaded from, for people.

    Attributes:
        transform: the preprocessing; see `ImageTransform`.
        layer_widths: channels of every layer's map.
        num_channels, stride: channels of an image, pixels from one patch to the next in the last
            layer.
        pooled_width: of `pooled`, or None where there is none.
        has_cls: whether a CLS token stands in front of the patches.
        untrained: whether the weights are random.
    """

    has_cls = False
    layer_widths: tuple[int, ...]
    num_channels: int
    stride: int
    pooled_width: int | None

    def __init__(
        self,
        transform: ImageTransform,
        *,
        layers: Sequence[int] = (-1,),
        norm: bool = True,
        source: str = "",
        untrained: bool = False,
    ) -> None:
        super().__init__()
        self.transform, self.layers, self.norm, self.source, self.untrained = (
            transform,
            tuple(layers),
            norm,
            source,
            untrained,
        )
        self.frozen = False

    # -- what an adapter gives
    # -------------------------------------------------------------------------------------------------

    def features(self, pixel_values: Tensor, layers: tuple[int, ...]) -> Features:
        """The features of `layers`, numbers from 1 upwards, which have been checked."""
        raise NotImplementedError

    def architecture(self) -> dict[str, Any]:
        """What the library builds the model from, as JSON."""
        raise NotImplementedError

    def size_problem(self, height: int, width: int) -> str | None:
        """Why the model cannot take images of this size, with the cure, or None."""
        for name, side in (("height", height), ("width", width)):
            if side < self.stride or side % self.stride:
                near = max(round(side / self.stride), 1) * self.stride
                return f"a {name} of {side} is no multiple of the stride {self.stride}; use {near}"
        return None

    # -- what a caller uses
    # ----------------------------------------------------------------------------------------------------

    def forward(self, pixel_values: Tensor, layers: Sequence[int] | None = None) -> Features:
        """Features of `pixel_values` `[B, C, H, W]`, preprocessed as `transform` says; `layers` in
        place of the encoder's own choice.

        A frozen encoder keeps no graph. Raises UserError for a layer, a size or a number of
        channels that the model does not have.
        """
        chosen = self.layer_numbers(self.layers if layers is None else layers)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise UserError(
                f"{self.name}: pixel_values must be [batch, {self.num_channels}, height, width], not {list(pixel_values.shape)}"
            )
        self.grid(*pixel_values.shape[-2:])
        with torch.no_grad() if self.frozen else nullcontext():
            return self.features(pixel_values.to(self.dtype), chosen)

    def layer_numbers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """`layers` counted from 1. Raises UserError for none, or one that the model does not
        have."""
        numbers = tuple(layer if layer > 0 else self.num_layers + 1 + layer for layer in layers)
        if not numbers or not all(1 <= number <= self.num_layers for number in numbers):
            shown = " ".join(str(layer) for layer in layers) or "none"
            raise UserError(
                f"{self.name}: layers {shown} do not exist; it has 1 to {self.num_layers}, or -1 to -{self.num_layers}"
            )
        return numbers

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last layer's map for images of `height x width`. Raises UserError
        for a size that the model cannot take."""
        problem = self.size_problem(height, width)
        if problem:
            raise UserError(f"{self.name}: {problem}")
        return height // self.stride, width // self.stride

    def freeze(self, frozen: bool = True) -> Encoder:
        """No gradients, evaluation mode for good, no graph kept; with False all that is given back.
        Returns itself."""
        self.frozen = frozen
        self.requires_grad_(not frozen)
        return self.eval()

    def train(self, mode: bool = True) -> Encoder:
        """As in torch; a frozen encoder stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def config(self) -> EncoderConfig:
        """Everything but the weights: `encoders.load.build_encoder` makes the same model with
        random ones from it."""
        return EncoderConfig(
            self.library,
            self.architecture(),
            self.transform.to_dict(),
            self.layers,
            self.norm,
            self.source,
            self.untrained,
            getattr(self, "position_antialias", None),
            getattr(self, "position_offset", None),
        )

    @property
    def transform(self) -> ImageTransform:
        """The preprocessing, of images with the model's number of channels."""
        return replace(self._transform, num_channels=self.num_channels)

    @transform.setter
    def transform(self, transform: ImageTransform) -> None:
        self._transform = transform

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return len(self.layer_widths)

    @property
    def width(self) -> int:
        """Channels of the last layer's map."""
        return self.layer_widths[-1]

    @property
    def library(self) -> str:
        """`EncoderConfig.library` of this adapter."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """For messages and tables: where it came from, or the class."""
        return self.source or type(self).__name__

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, float32 where there are none."""
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Of the weights, the CPU where there are none."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens `[B, h * w, C]`, row by row, as `[B, C, h, w]`."""
    return tokens.transpose(1, 2).unflatten(-1, grid)
