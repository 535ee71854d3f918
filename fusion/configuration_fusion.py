"""The configs of fused models, which transformers keeps in config.json."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from encoders.base import EncoderConfig
from fusion.stub import ClassesOfAPackage
from vision_core.errors import UserError


@strict
class FusedVisionConfig(ClassesOfAPackage, PreTrainedConfig):
    """The config of several vision encoders and the connector that makes one sequence of tokens of
    them.

    encoders: each an `encoders.base.EncoderConfig` as a dict; its transform has the side of the
    square that the encoder sees.
    encoder_grids: the grids that encoder maps are resized to (bilinear) before the connector.
    connector: a name in `fusion.connectors.build`. connector_options: its options by name.
    hidden_size: D_h, channels of the tokens.
    grid: side of the connector's grid.
    newline: add a learned token behind every row of tokens.
    fit, mask_rule: see `fusion.connectors.geometry.image_box`.
    train_encoders: keep a graph through the encoders; False freezes them.
    """

    model_type = "fused_vision"
    base_config_key = "vision_config"

    encoders: list | None = None
    encoder_grids: list | None = None
    connector: str = "sva"
    connector_options: dict | None = None
    hidden_size: int = 4096
    grid: int = 24
    newline: bool = True
    fit: str = "pad"
    mask_rule: str = "exact"
    train_encoders: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.encoders = [_as_dict(each) for each in self.encoders or []]
        self.encoder_grids = [int(side) for side in self.encoder_grids or []]
        self.connector_options = dict(self.connector_options or {})
        super().__post_init__(**kwargs)
        if len(self.encoders) != len(self.encoder_grids):
            raise UserError(
                f"{len(self.encoders)} encoders and {len(self.encoder_grids)} encoder_grids; "
                "give one grid for each encoder"
            )
        if self.fit not in ("pad", "squash") or self.mask_rule not in ("exact", "published"):
            raise UserError(
                "fit is 'pad' or 'squash' and mask_rule 'exact' or 'published', "
                f"not {self.fit!r} and {self.mask_rule!r}"
            )

    @property
    def encoder_configs(self) -> list[EncoderConfig]:
        """The configs in `encoders`, read and checked."""
        return [EncoderConfig.from_dict(each) for each in self.encoders]


def _as_dict(encoder: EncoderConfig | Mapping[str, Any]) -> dict[str, Any]:
    return encoder.to_dict() if isinstance(encoder, EncoderConfig) else dict(encoder)


@strict
class FusionVlmConfig(ClassesOfAPackage, PreTrainedConfig):
    """The config of a language model that reads the tokens of a fused vision model.

    vision_config, text_config: the configs of the two models.
    image_token_id: the token that a text holds once for every token of an image.
    num_sva_layers, sva_start, sva_stride: image positions look into the encoders again after the
    layers sva_start + k * sva_stride of the language model, counted from 0, for every k below
    num_sva_layers. This needs the connector `sva`. Cambrian-1-8B has 10, 0, 3.
    zero_init_sva: those layers start as the identity.
    """

    model_type = "fusion_vlm"
    # Before it is saved a model names no code. TRL reads this attribute of every model whose class
    # transformers does not have, when it looks for the class of its reference model.
    auto_map: ClassVar[Mapping[str, str]] = MappingProxyType({})
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(config_class=FusedVisionConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 0
    num_sva_layers: int = 0
    sva_start: int = 0
    sva_stride: int = 3
    zero_init_sva: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if isinstance(self.text_config, FusionVlmConfig):
            raise UserError(
                "the language model is a fused vision-language model itself; name a language model, "
                "or its language_model"
            )
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        if self.sva_layers:
            self._check_sva_layers()

    def _check_sva_layers(self) -> None:
        """Raise UserError where the language model has too few layers, or the connector no
        windows."""
        count = self.text_config.num_hidden_layers
        if self.sva_layers[-1] >= count:
            raise UserError(
                f"layers {', '.join(map(str, self.sva_layers))} are to be followed by vision layers, but the "
                f"language model has only {count} (0 to {count - 1}); "
                "lower num_sva_layers, sva_start or sva_stride"
            )
        if self.vision_config.encoders and self.vision_config.connector != "sva":
            raise UserError(
                f"num_sva_layers={self.num_sva_layers} needs the connector sva, not "
                f"{self.vision_config.connector}, which has no windows; set num_sva_layers=0"
            )

    @property
    def sva_layers(self) -> list[int]:
        """The numbers, from 0, of the language model's layers that a vision layer follows."""
        return [self.sva_start + index * self.sva_stride for index in range(self.num_sva_layers)]
