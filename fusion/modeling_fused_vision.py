"""One vision model of several vision encoders and a connector, which `transformers.AutoModel`
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
    """What a fused vision model returns.

    last_hidden_state: tokens `[B, n, D_h]`; images with fewer tokens are filled up with zeros at
    the end. attention_mask: `[B, n]`, 1 for tokens.
    """

    last_hidden_state: Tensor | None = None
    attention_mask: Tensor | None = None


def to_weights(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to the `device` of a module's weights.

    Offloaded weights are on no device (meta); for them accelerate moves the module's inputs when
    the module is called.
    """
    return tensor if device.type == "meta" else tensor.to(device)


def resized_map(features: Features, grid: int) -> Tensor:
    """Put all returned layers side by side in the channels, each resized to `grid x grid`
    (bilinear, in float32): `[B, sum of widths, grid, grid]`."""
    maps = []
    size = (grid, grid)
    for layer in features.layers:
        patch_map = layer.patch_map
        if patch_map.shape[-2:] != size:
            resized = F.interpolate(patch_map.float(), size=size, mode="bilinear", align_corners=False)
            patch_map = resized.to(patch_map.dtype)
        maps.append(patch_map)
    return torch.cat(maps, dim=1)


class FusedPreTrainedModel(ClassesOfAPackage, PreTrainedModel):
    """What both fused models share: all tensors of a checkpoint must fit, and loading initialises
    nothing."""

    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # accelerate compares the names of classes, not their bases. A model of transformers names the
    # parts of it that stay together itself.
    _no_split_modules = [kind.__name__ for kind in (*COMPUTING_WITH_INNER_WEIGHTS, *CONNECTORS.values())]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model as in transformers.

        Raises UserError where tensors are missing, left over or of another shape: nothing is
        initialised in silence.
        """
        loaded = load_strictly(super().from_pretrained, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # The names in the parts' own checkpoints do not count here: a fused model is saved under
        # the names that it is trained and resumed with.
        model._weight_conversions = []
        for module in model.modules():
            if isinstance(module, Encoder):
                restore_tables(module)
                module.freeze(module.frozen)  # the parameters that loading puts in are new, and would train
        bring_whole_layers(model)
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: weights are drawn where modules are made, and a checkpoint has all of them."""


def restore_tables(encoder: Encoder) -> None:
    """Fill the buffers that no checkpoint holds, such as the positions of timm's rotary models, from
    a fresh encoder.

    They have no values after loading, which builds a model on the meta device. Models of
    transformers restore theirs themselves.
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
    """Turns the `pixel_values` of images into their tokens.

    encoders: encoders to take as they are; by default new ones are made from the config.
    """

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
            encoders = _build_encoders(config)
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
        """What each encoder sees, `[B, C, side, side]`.

        pixel_values: `[B, P]`, which is taken apart, or a list of views, which is returned.
        """
        if isinstance(pixel_values, Tensor):
            return split_views(pixel_values, [encoder.transform.size for encoder in self.encoders])
        return list(pixel_values)

    def maps(self, pixel_values: Pixels) -> list[Tensor]:
        """Run the encoders: for each one the map `[B, width, grid, grid]` that the connector reads.

        pixel_values: see `encode`. Frozen encoders give the same maps each time.
        """
        views = self.views(pixel_values)
        maps = []
        for encoder, pixels, grid in zip(self.encoders, views, self.config.encoder_grids, strict=True):
            features = encoder(to_weights(pixels, encoder.device))
            maps.append(self._for_connector(resized_map(features, grid)))
        return maps

    def encode(
        self, pixel_values: Pixels | None, image_sizes: Tensor, maps: Sequence[Tensor] | None = None
    ) -> list[EncodedImage]:
        """Compute the tokens of every image.

        pixel_values: `[B, P]`, see `fusion.pixel_layout`, or a list of one tensor
        `[B, C, side, side]` for each encoder. maps: the result of `maps`, in place of pixel_values.
        image_sizes: `[B, 2]`, (height, width) before any resizing.

        Raises UserError where they do not fit together.
        """
        if maps is None:
            views = self.views(pixel_values)
            self._check_counts(views, image_sizes)
            maps = self.maps(views)
        layout = ImageLayout.of(image_sizes, self.config.fit, self.config.mask_rule)
        return self.connector.encode([self._for_connector(each) for each in maps], layout)

    def _for_connector(self, patch_map: Tensor) -> Tensor:
        weights = next(self.connector.parameters())
        return to_weights(patch_map, weights.device).to(weights.dtype)

    def forward(self, pixel_values: Pixels, image_sizes: Tensor, **kwargs: Any) -> FusedVisionOutput:
        """Compute the tokens of all images in one tensor; the arguments are those of `encode`."""
        tokens = []
        masks = []
        for image in self.encode(pixel_values, image_sizes):
            tokens.append(image.tokens)
            masks.append(torch.ones(len(image), dtype=torch.long, device=image.tokens.device))
        return FusedVisionOutput(
            last_hidden_state=nn.utils.rnn.pad_sequence(tokens, batch_first=True),
            attention_mask=nn.utils.rnn.pad_sequence(masks, batch_first=True),
        )

    def _check_counts(self, views: Sequence[Tensor], image_sizes: Tensor) -> None:
        names = ", ".join(encoder.name for encoder in self.encoders)
        if len(views) != len(self.encoders):
            raise UserError(
                f"pixel_values is a list of {len(views)} tensors; as a list it must have one for each encoder "
                f"({names}); make pixel_values with this model's image processor"
            )
        counts = [len(pixels) for pixels in views]
        different = {*counts, len(image_sizes)}
        if different == {0}:
            raise UserError(
                "pixel_values holds no images; leave pixel_values and image_sizes out for text alone"
            )
        if len(different) > 1:
            raise UserError(
                f"pixel_values has {', '.join(map(str, counts))} images for {names}, and image_sizes "
                f"{len(image_sizes)}; they must be the same images"
            )


def _build_encoders(config: FusedVisionConfig) -> list[Encoder]:
    """New encoders of a config, in torch's default type."""
    dtype = torch.get_default_dtype()
    attention = config._attn_implementation
    return [
        build_encoder(each, dtype=dtype, attn_implementation=attention) for each in config.encoder_configs
    ]


def output_width(encoder: Encoder) -> int:
    """The number of channels of all the layers that the encoder returns, together."""
    numbers = encoder.layer_numbers(encoder.layers)  # from 1
    return sum(encoder.layer_widths[number - 1] for number in numbers)
