"""Several vision encoders and a connector as one vision model, which `transformers.AutoModel`
loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from encoders.base import Encoder, Features
from encoders.saved import build_encoder
from fusion.checkpoints import load_strictly
from fusion.configuration_fusion import FusedVisionConfig
from fusion.connectors.base import Connector
from fusion.connectors.build import CONNECTORS, build_connector
from fusion.connectors.geometry import ImageLayout
from fusion.connectors.windows import EncodedImage
from fusion.offloading import COMPUTING_WITH_INNER_WEIGHTS, bring_whole_layers
from fusion.pixel_layout import split_views
from fusion.stub import ClassesOfAPackage
from vision_core.errors import UserError

Pixels = Tensor | Sequence[Tensor]


@dataclass
class FusedVisionOutput(ModelOutput):
    """last_hidden_state: tokens `[B, n, H]`, images with fewer filled up with zeros at the end.
    attention_mask: `[B, n]`, 1 for tokens."""

    last_hidden_state: Tensor | None = None
    attention_mask: Tensor | None = None


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on the `device` of a module's weights.

    Offloaded weights have no device (meta). Then accelerate moves the module's inputs when it is
    called.
    """
    return tensor if device.type == "meta" else tensor.to(device)


def resized_map(features: Features, grid: int) -> Tensor:
    """All returned layers side by side in the channels, each resized to `grid x grid` (bilinear, in
    float32), `[B, sum of widths, grid, grid]`."""
    maps = []
    for layer in features.layers:
        patch_map = layer.patch_map
        if patch_map.shape[-2:] != (grid, grid):
            resized = F.interpolate(
                patch_map.float(), size=(grid, grid), mode="bilinear", align_corners=False
            )
            patch_map = resized.to(patch_map.dtype)
        maps.append(patch_map)
    return torch.cat(maps, dim=1)


class FusedPreTrainedModel(ClassesOfAPackage, PreTrainedModel):
    """What both fused models share: they are loaded strictly, and initialise only what is
    theirs."""

    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # accelerate compares the names of the very classes; a model of transformers says itself what of
    # it stays together
    _no_split_modules = [kind.__name__ for kind in (*COMPUTING_WITH_INNER_WEIGHTS, *CONNECTORS.values())]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Raises UserError where tensors are missing, left over or of another
        shape: nothing is initialised in silence."""
        loaded = load_strictly(super().from_pretrained, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # names that the parts' own checkpoints have, or had, are none of ours: what is saved has
        # the names that are trained, and resumed
        model._weight_conversions = []
        for module in model.modules():
            if isinstance(module, Encoder):
                restore_tables(module)
                module.freeze(
                    module.frozen
                )  # the parameters that loading puts in are new, and new parameters train
        bring_whole_layers(model)
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: weights are drawn where modules are made, and a checkpoint has all of them."""


def restore_tables(encoder: Encoder) -> None:
    """Give the buffers that no checkpoint holds (positions of timm's rotary models, say) the values
    of a fresh encoder.

    A model that was built on the meta device to be loaded has none. Models of transformers do it
    themselves.
    """
    if encoder.library == "transformers":
        return
    saved = set(encoder.state_dict())
    tables = [name for name, _ in encoder.named_buffers() if name not in saved]
    if tables:
        with torch.device("cpu"):
            fresh = dict(build_encoder(encoder.config()).named_buffers())
        for name in tables:
            encoder.get_buffer(name).copy_(fresh[name])


class FusedVisionModel(FusedPreTrainedModel):
    """`pixel_values` of images to their tokens. encoders: to take as they are; by default new ones
    are made by the config."""

    config: FusedVisionConfig
    config_class = FusedVisionConfig
    main_input_name = "pixel_values"
    base_model_prefix = "vision_model"

    def __init__(self, config: FusedVisionConfig, encoders: Sequence[Encoder] | None = None) -> None:
        super().__init__(config)
        if not config.encoders:
            raise UserError(
                "a fused vision model needs encoders; fusion.fuse_encoders makes one from their names or folders"
            )
        if encoders is None:
            dtype, attention = torch.get_default_dtype(), config._attn_implementation
            encoders = [
                build_encoder(each, dtype=dtype, attn_implementation=attention)
                for each in config.encoder_configs
            ]
        self.encoders = nn.ModuleList(encoder.freeze(not config.train_encoders) for encoder in encoders)
        self.connector: Connector = build_connector(
            config.connector,
            [output_width(encoder) for encoder in self.encoders],
            config.encoder_grids,
            config.hidden_size,
            config.grid,
            newline=config.newline,
            **config.connector_options,
        )
        self.post_init()
        for encoder in self.encoders:
            if encoder.library == "transformers":
                self._no_split_modules.update(encoder.model._no_split_modules or ())

    def views(self, pixel_values: Pixels) -> list[Tensor]:
        """What each encoder sees, `[B, C, side, side]`: `pixel_values` `[B, P]` taken apart, or a
        list that is apart already."""
        if isinstance(pixel_values, Tensor):
            return split_views(pixel_values, [encoder.transform.size for encoder in self.encoders])
        return list(pixel_values)

    def maps(self, pixel_values: Pixels) -> list[Tensor]:
        """What the connector reads: of each encoder `[B, width, grid, grid]`; pixel_values: see
        `encode`.

        Frozen encoders give the same each time.
        """
        maps = []
        for encoder, pixels, grid in zip(
            self.encoders, self.views(pixel_values), self.config.encoder_grids, strict=True
        ):
            features = encoder(moved(pixels, encoder.device))
            maps.append(self._for_connector(resized_map(features, grid)))
        return maps

    def encode(
        self, pixel_values: Pixels | None, image_sizes: Tensor, maps: Sequence[Tensor] | None = None
    ) -> list[EncodedImage]:
        """The tokens of every image.

        pixel_values: `[B, P]`, see `fusion.pixel_layout`, or a list of one tensor `[B, C, side,
        side]` for each encoder; in their place `maps` of them. image_sizes: `[B, 2]`, (height,
        width) before any resizing. Raises UserError where they do not fit.
        """
        if maps is None:
            views = self.views(pixel_values)
            self._check(views, image_sizes)
            maps = self.maps(views)
        layout = ImageLayout.of(image_sizes, self.config.fit, self.config.mask_rule)
        return self.connector.encode([self._for_connector(each) for each in maps], layout)

    def _for_connector(self, patch_map: Tensor) -> Tensor:
        weights = next(self.connector.parameters())
        return moved(patch_map, weights.device).to(weights.dtype)

    def forward(self, pixel_values: Pixels, image_sizes: Tensor, **kwargs: Any) -> FusedVisionOutput:
        """See `encode` and `FusedVisionOutput`."""
        images = [image.tokens for image in self.encode(pixel_values, image_sizes)]
        mask = nn.utils.rnn.pad_sequence(
            [torch.ones(len(tokens), dtype=torch.long, device=tokens.device) for tokens in images],
            batch_first=True,
        )
        return FusedVisionOutput(nn.utils.rnn.pad_sequence(images, batch_first=True), mask)

    def _check(self, views: Sequence[Tensor], image_sizes: Tensor) -> None:
        names = ", ".join(encoder.name for encoder in self.encoders)
        if len(views) != len(self.encoders):
            raise UserError(
                f"pixel_values is a list of {len(views)} tensors; as a list it must have one for each encoder ({names}); "
                "make pixel_values with this model's image processor"
            )
        counts = {len(pixels) for pixels in views} | {len(image_sizes)}
        if counts == {0}:
            raise UserError(
                "pixel_values holds no images; leave pixel_values and image_sizes out for text alone"
            )
        if len(counts) > 1:
            raise UserError(
                f"pixel_values has {', '.join(str(len(pixels)) for pixels in views)} images for {names}, and image_sizes {len(image_sizes)}; "
                "they must be the same images"
            )


def output_width(encoder: Encoder) -> int:
    """Channels of all the layers that the encoder returns."""
    return sum(encoder.layer_widths[number - 1] for number in encoder.layer_numbers(encoder.layers))
