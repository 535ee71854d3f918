"""The contract of every vision encoder: it takes pixels, and returns maps of patch features and one
vector for each image."""

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
    """The features of a batch from one layer.

    Attributes:
        number: of the block (ViT) or stage (ConvNeXt), counted from 1.
        patch_map: `[B, C, h, w]`, row 0 at the top.
        cls: `[B, C]`, or None where the model has no CLS token.
        normalised: whether the model's final norm has been applied.
    """

    number: int
    patch_map: Tensor
    cls: Tensor | None
    normalised: bool


@dataclass(frozen=True)
class Features:
    """The features of a batch: the layers that were asked for, in that order, and the published
    image vector `[B, D]` or None."""

    layers: tuple[LayerFeatures, ...]
    pooled: Tensor | None

    @property
    def patch_map(self) -> Tensor:
        """The map of the last of the layers, `[B, C, h, w]`."""
        return self.layers[-1].patch_map

    @property
    def cls(self) -> Tensor | None:
        """The CLS token of the last of the layers, `[B, C]` or None."""
        return self.layers[-1].cls

    @property
    def normalised(self) -> bool:
        """Whether `patch_map` is behind the model's final norm."""
        return self.layers[-1].normalised


@dataclass(frozen=True)
class EncoderConfig:
    """Everything about an encoder but its weights; `to_dict` gives plain JSON.

    Attributes:
        library: transformers, timm, open_clip or raw_pixels.
        architecture: what that library builds the model from.
        transform: an `ImageTransform` as a dict.
        layers, norm: see `Encoder`.
        source: the text that the encoder was first loaded from, for people.
        untrained: whether the weights are random.
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
        """The config as JSON has it."""
        return asdict(self) | {"layers": list(self.layers)}

    def image_transform(self) -> ImageTransform:
        """The preprocessing as an object."""
        return ImageTransform.from_dict(self.transform)

    def encoder_options(self) -> dict[str, Any]:
        """The keyword arguments that every `Encoder` takes."""
        return {
            "layers": self.layers,
            "norm": self.norm,
            "source": self.source,
            "untrained": self.untrained,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """The inverse of `to_dict`. Raises UserError for keys that are missing or not known."""
        known = set(cls.__dataclass_fields__)
        needed = {"library", "architecture", "transform"}
        if set(values) - known or not needed <= set(values):
            listed = ", ".join(sorted(known))
            raise UserError(f"an encoder's config has the keys {listed}, not {', '.join(sorted(values))}")
        check_types(cls, values, "an encoder's config")
        return cls(**{**values, "layers": tuple(values.get("layers", (-1,)))})


class Encoder(nn.Module):
    """A vision encoder, called with `pixel_values` `[B, C, H, W]`, which returns `Features`.

    Args:
        transform: the preprocessing of images.
        layers: blocks or stages whose features are returned, counted from 1, or from -1 backwards.
        norm: put the model's final norm behind every returned layer that has its width.
        source: the text that the encoder was loaded from, for people.
        untrained: whether the weights are random.

    Attributes:
        transform: the preprocessing; see `ImageTransform`.
        layer_widths: channels of every layer's map.
        num_channels: channels of an image.
        stride: pixels from one patch to the next in the last layer.
        pooled_width: width of `pooled`, or None where there is none.
        has_cls: whether the tokens begin with a CLS token.
        fusion_grid: side of the grid to which `fuse_encoders` resizes the map, or None for the one
            nearest to the encoder's own. Evaluation does not look at it, and it is not saved.
    """

    has_cls = False
    fusion_grid: int | None = None
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
        self.transform = transform
        self.layers = tuple(layers)
        self.norm = norm
        self.source = source
        self.untrained = untrained
        self.frozen = False

    # -- what an adapter gives

    def features(self, pixel_values: Tensor, layers: tuple[int, ...]) -> Features:
        """The features of `layers`, which are numbers from 1 upwards and have been checked."""
        raise NotImplementedError

    def architecture(self) -> dict[str, Any]:
        """What the library builds the model from, as JSON."""
        raise NotImplementedError

    def family_options(self) -> dict[str, Any]:
        """The fields of `EncoderConfig` that only this family of models has."""
        return {}

    def size_problem(self, height: int, width: int) -> str | None:
        """Why the model cannot take images of this size, with the cure, or None."""
        for name, side in (("height", height), ("width", width)):
            if side < self.stride or side % self.stride:
                near = max(round(side / self.stride), 1) * self.stride
                return f"a {name} of {side} is no multiple of the stride {self.stride}; use {near}"
        return None

    # -- what a caller uses

    def forward(self, pixel_values: Tensor, layers: Sequence[int] | None = None) -> Features:
        """Features of `pixel_values` `[B, C, H, W]`, preprocessed as `transform` says; `layers` in
        place of the encoder's own choice.

        A frozen encoder keeps no graph. Raises UserError for a layer, a size or a number of
        channels that the model does not have.
        """
        chosen = self.layer_numbers(self.layers if layers is None else layers)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise UserError(
                f"{self.name}: pixel_values must be [batch, {self.num_channels}, height, width], "
                f"not {list(pixel_values.shape)}"
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
                f"{self.name}: layers {shown} do not exist; "
                f"it has 1 to {self.num_layers}, or -1 to -{self.num_layers}"
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
        """Turn gradients off and evaluation mode on for good, or give both back with False. Returns
        itself."""
        self.frozen = frozen
        self.requires_grad_(not frozen)
        return self.eval()

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode as torch does; a frozen encoder stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def config(self) -> EncoderConfig:
        """Everything but the weights, from which `encoders.saved.build_encoder` makes the same model
        with random ones."""
        return EncoderConfig(
            library=self.library,
            architecture=self.architecture(),
            transform=self.transform.to_dict(),
            layers=self.layers,
            norm=self.norm,
            source=self.source,
            untrained=self.untrained,
            **self.family_options(),
        )

    @property
    def transform(self) -> ImageTransform:
        """The preprocessing, for images with the model's number of channels."""
        return replace(self._transform, num_channels=self.num_channels)

    @transform.setter
    def transform(self, transform: ImageTransform) -> None:
        self._transform = transform

    @property
    def num_layers(self) -> int:
        """How many blocks or stages the model has."""
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
        """The type of the weights; float32 where there are none."""
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU where there are none."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens `[B, h * w, C]`, which come row by row, as a map `[B, C, h, w]`."""
    return tokens.transpose(1, 2).unflatten(-1, grid)
