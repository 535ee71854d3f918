"""Vision towers of transformers behind the contract: which class, which tokens, which norm, for
each model type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from encoders.adapters.image_processors import read_transform
from encoders.base import Encoder, EncoderConfig, Features, LayerFeatures, tokens_to_map
from encoders.names import nearest_encoders_clause
from encoders.positions import set_position_interpolation
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import refuse_special_files
from vision_core.hub import hub_or_cache

# names of attention implementations, and the class attribute that says whether a model has one
ATTENTION_FLAGS = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}


@dataclass(frozen=True)
class Family:
    """What the models of one type return, as tests/encoders/test_contract.py sees it.

    Attributes:
        vision_class: the class of the vision tower.
        norm: its attribute with the final norm, or None where it has none.
        last_is_normed: whether `last_hidden_state` is behind that norm.
        cls: whether the tokens begin with a CLS token.
        registers: the config's field that counts the register tokens behind it.
        prefix: the config's field that counts all tokens in front of the patches, where the model
            has several CLS tokens.
        pooled: the published image vector: the model's pooler output, its summary of some CLS
            tokens, the CLS token, or none.
        sizes: how the model takes another size than its own: by itself, by an argument of its
            forward, as a bag of patches, or not at all.
        stages: whether it returns maps of stages (ConvNeXt) rather than tokens of blocks.
        tower: where the vision tower lies in a checkpoint of the complete vision-language model.
    """

    vision_class: str
    norm: str | None
    last_is_normed: bool = True
    cls: bool = True
    registers: str | None = None
    prefix: str | None = None
    pooled: Literal["pooler", "summary", "cls", "none"] = "pooler"
    sizes: Literal["any", "argument", "patches", "native"] = "any"
    stages: bool = False
    tower: str | None = None


FAMILIES = {
    "dinov2": Family("Dinov2Model", "layernorm"),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "layernorm", registers="num_register_tokens"),
    "dinov3_vit": Family("DINOv3ViTModel", "norm", registers="num_register_tokens"),
    "dinov3_convnext": Family("DINOv3ConvNextModel", "layer_norm", cls=False, stages=True),
    "convnext": Family("ConvNextModel", "layernorm", cls=False, stages=True),
    "convnextv2": Family("ConvNextV2Model", "layernorm", cls=False, stages=True),
    "siglip_vision_model": Family("SiglipVisionModel", "post_layernorm", cls=False, sizes="argument"),
    "siglip2_vision_model": Family("Siglip2VisionModel", "post_layernorm", cls=False, sizes="patches"),
    "clip_vision_model": Family("CLIPVisionModel", "post_layernorm", last_is_normed=False, sizes="argument"),
    "metaclip_2_vision_model": Family(
        "MetaClip2VisionModel", "post_layernorm", last_is_normed=False, sizes="argument"
    ),
    "vit": Family("ViTModel", "layernorm", pooled="cls", sizes="argument"),
    "vit_mae": Family("ViTMAEModel", "layernorm", pooled="cls", sizes="argument"),
    "ijepa": Family("IJepaModel", "layernorm", cls=False, pooled="none", sizes="argument"),
    "aimv2_vision_model": Family(
        "Aimv2VisionModel", "rms_norm", cls=False, sizes="native", tower="vision_model"
    ),
    "internvl_vision": Family("InternVLVisionModel", "layernorm", pooled="none", tower="vision_tower"),
    "radio": Family("RadioModel", None, last_is_normed=False, prefix="num_summary_tokens", pooled="summary"),
    "tipsv2_vision_model": Family("Tipsv2VisionModel", "layernorm", registers="num_register_tokens"),
}
MODELS_WITH_A_TOWER = {  # image-text and vision-language models that hold a vision tower
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "clip": "clip_vision_model",
    "metaclip_2": "metaclip_2_vision_model",
    "aimv2": "aimv2_vision_model",
    "internvl": "internvl_vision",
    "tipsv2": "tipsv2_vision_model",
}
# model types whose repositories bring code of their own, and where the same weights are without it
WITHOUT_OWN_CODE = {
    "intern_vit_6b": (
        "InternViT is the vision tower of InternVL: "
        "hf:OpenGVLab/InternVL3-1B-hf has that of 300M, InternVL3-78B-hf that of 6B"
    ),
    "internvl_chat": "take the folder of the same name that ends in -hf, such as hf:OpenGVLab/InternVL3-1B-hf",
}


class TransformersEncoder(Encoder):
    """A vision tower of transformers.

    Args:
        model: an object of one of the classes in `FAMILIES`.
        position_antialias: for Dinov2 and Dinov2WithRegisters only: whether the resampling of
            position embeddings is antialiased. None leaves it to the class: Dinov2 does without,
            Dinov2WithRegisters and timm antialias. It matters where a size has fewer patches than
            the stored grid.
        position_offset: for the same models only: 0.1 resamples as the code behind the models that
            were published without registers, see `positions.py`. None takes what the model's config
            says, which is what a run of `pretrain/` was trained with, and otherwise transformers'
            way, which is 0.
    """

    library = "transformers"

    def __init__(
        self,
        model: nn.Module,
        transform: ImageTransform,
        *,
        layers: Sequence[int] = (-1,),
        norm: bool = True,
        source: str = "",
        untrained: bool = False,
        position_antialias: bool | None = None,
        position_offset: float | None = None,
    ) -> None:
        super().__init__(transform, layers=layers, norm=norm, source=source, untrained=untrained)
        config = model.config
        self.family = family_of(config)
        self.model = model
        self.position_antialias = position_antialias
        self.position_offset = position_offset
        if position_offset is None:
            self.position_offset = getattr(config, "position_offset", None)
        if self.family.stages:
            self.layer_widths = tuple(config.hidden_sizes)
            self.stride = 4 * 2 ** (self.num_layers - 1)
        else:
            self.layer_widths = (config.hidden_size,) * config.num_hidden_layers
            self.stride = _only_side(config.patch_size)
        self.num_channels = config.num_channels
        self.num_prefix_tokens = _num_prefix_tokens(self.family, config)
        self.has_norm = not isinstance(self._final_norm, nn.Identity)
        self.pooled_width = self._width_of_pooled()
        self.has_cls = self.family.cls
        if config.model_type == "vit_mae":
            config.mask_ratio = 0.0
        set_position_interpolation(model, position_antialias, self.position_offset)

    @property
    def _final_norm(self) -> nn.Module:
        """The norm behind the last layer; an Identity in RADIO and in some InternVL, which have none."""
        return getattr(self.model, self.family.norm) if self.family.norm else nn.Identity()

    def _width_of_pooled(self) -> int | None:
        config, pooled = self.model.config, self.family.pooled
        if pooled == "summary":
            return self.width * len(config.summary_idxs)
        has_pooled = pooled == "cls" or (pooled == "pooler" and _has_pooler(config))
        return self.width if has_pooled else None

    def architecture(self) -> dict[str, Any]:
        return self.model.config.to_diff_dict() | {"model_type": self.model.config.model_type}

    def family_options(self) -> dict[str, Any]:
        return {"position_antialias": self.position_antialias, "position_offset": self.position_offset}

    def size_problem(self, height: int, width: int) -> str | None:
        # The native size may have a rest: SigLIP so400m cuts 384 pixels into 27 patches of 14, and
        # leaves 6 pixels out.
        if (height, width) == self._native_size():
            return None
        if self.family.sizes == "native" and not getattr(self.model.config, "is_native", False):
            side = self.model.config.image_size
            return f"it was trained for {side} x {side} pixels and takes no other size, such as {height} x {width}"
        return super().size_problem(height, width)

    def features(self, pixel_values: Tensor, layers: tuple[int, ...]) -> Features:
        grid = (pixel_values.shape[-2] // self.stride, pixel_values.shape[-1] // self.stride)
        wants_hidden_states = layers != (self.num_layers,) or not self._last_state_will_do()
        output = self.model(**self._inputs(pixel_values, grid), output_hidden_states=wants_hidden_states)
        chosen = tuple(self._layer(output, number, grid) for number in layers)
        return Features(chosen, self._pooled(output))

    def _last_state_will_do(self) -> bool:
        """Whether the last layer can be made of `last_hidden_state` alone."""
        return not self.family.stages and (self.norm or not self.family.last_is_normed)

    def _inputs(self, pixel_values: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        """The arguments of the model's forward."""
        if self.family.sizes == "patches":
            return self._inputs_of_patches(pixel_values, grid)
        inputs: dict[str, Any] = {"pixel_values": pixel_values}
        if self.family.sizes == "argument":
            inputs["interpolate_pos_encoding"] = pixel_values.shape[-2:] != self._native_size()
        if self.model.config.model_type == "vit_mae":
            # without it the patches come back in a random order, even with nothing masked
            order = torch.arange(grid[0] * grid[1], device=pixel_values.device).float()
            inputs["noise"] = order.expand(len(pixel_values), -1)
        return inputs

    def _inputs_of_patches(self, pixel_values: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        """The arguments of NaFlex, whose processor puts the channels of a patch last."""
        patches = F.unfold(pixel_values, self.stride, stride=self.stride)
        patches = patches.unflatten(1, (self.num_channels, -1)).permute(0, 3, 2, 1).flatten(2)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device),
            "spatial_shapes": torch.tensor([grid] * len(patches), device=patches.device),
        }

    def _native_size(self) -> tuple[int, int] | None:
        """(height, width) that the positions were stored for, where the config says it."""
        size = getattr(self.model.config, "image_size", None)
        if isinstance(size, int):
            return size, size
        return tuple(size) if size else None

    def _layer(self, output: Any, number: int, grid: tuple[int, int]) -> LayerFeatures:
        if self.family.stages:
            return self._stage(output, number)
        tokens = self._tokens(output, number)
        return LayerFeatures(
            number=number,
            patch_map=tokens_to_map(tokens[:, self.num_prefix_tokens :], grid),
            cls=tokens[:, 0] if self.has_cls else None,
            normalised=self.norm and self.has_norm,
        )

    def _tokens(self, output: Any, number: int) -> Tensor:
        """All tokens `[B, tokens, D]` of a block, behind the final norm where that is wanted."""
        is_last = number == self.num_layers
        if is_last and self.norm == self.family.last_is_normed:
            return output.last_hidden_state
        if is_last and not self.family.last_is_normed:
            tokens = output.last_hidden_state
        else:
            tokens = output.hidden_states[number]
        return self._final_norm(tokens) if self.norm else tokens

    def _stage(self, output: Any, number: int) -> LayerFeatures:
        """The map of a stage; only the last one has the width of the final norm."""
        patch_map = output.hidden_states[number]
        is_normed = self.norm and number == self.num_layers
        if is_normed:
            patch_map = self._final_norm(patch_map.movedim(1, -1)).movedim(-1, 1)
        return LayerFeatures(number, patch_map, None, is_normed)

    def _pooled(self, output: Any) -> Tensor | None:
        if self.pooled_width is None:
            return None
        if self.family.pooled == "cls":
            return output.last_hidden_state[:, 0]
        return output.summary if self.family.pooled == "summary" else output.pooler_output


# -- the adapter (see encoders/adapters/__init__.py)


def load(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> TransformersEncoder:
    """The vision tower of a checkpoint on the Hub or in a folder, with its image processor.

    Raises UserError for a model without a known vision tower, missing weights, or a checkpoint that
    cannot be read.
    """
    with _looking_up(name, source):
        model = load_backbone(name, read_config(name), dtype=dtype)
        return TransformersEncoder(model, read_transform(name), source=source, **options)


def untrained(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> TransformersEncoder:
    """The architecture and the image processor of a checkpoint, with random weights."""
    with _looking_up(name, source):
        published = _published_config(name)
    config = replace(published, source=source, untrained=True, **options)
    return build(with_layerscale_one(config), dtype=dtype)


def build(
    config: EncoderConfig, *, dtype: torch.dtype, attn_implementation: str | None = None
) -> TransformersEncoder:
    """The encoder that the config describes, with random weights."""
    return build_transformers(
        config.architecture,
        config.image_transform(),
        dtype=dtype,
        attn_implementation=attn_implementation,
        position_antialias=config.position_antialias,
        position_offset=config.position_offset,
        **config.encoder_options(),
    )


def check(name: str, *, source: str, has_weights: bool) -> None:
    """Raise UserError where the configs of a checkpoint cannot be read."""
    with _looking_up(name, source):
        _published_config(name)


@contextmanager
def _looking_up(name: str, source: str) -> Iterator[None]:
    """Inside, files come from the Hub, its cache or a folder. An error about a name on the Hub also
    says the nearest known names."""
    try:
        with hub_or_cache(name, source):
            yield
    except UserError as error:
        clause = nearest_encoders_clause(source) if source.endswith(f"hf:{name}") else ""
        raise UserError(f"{error}{clause}") from None


def _published_config(name: str) -> EncoderConfig:
    """The config of a checkpoint, from its model's config and its image processor."""
    config = read_config(name)
    family_of(config, name)
    return EncoderConfig("transformers", vision_config(config).to_dict(), read_transform(name).to_dict())


def with_layerscale_one(config: EncoderConfig) -> EncoderConfig:
    """The config for random weights: with the layer scale of 1e-5 that a training starts from, the
    blocks of a random model would do nothing."""
    if "layerscale_value" not in config.architecture:
        return config
    return replace(config, architecture={**config.architecture, "layerscale_value": 1.0})


# -- checkpoints of transformers


def load_backbone(name: str, config: PretrainedConfig, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The vision tower of a checkpoint with this config. Raises UserError as `load`."""
    family = family_of(config, name)
    mapping = {rf"^(model\.)?{family.tower}\.": ""} if family.tower else None
    try:
        with _quiet():  # the text tower's weights are not wanted, and what is missing is said below
            model, report = getattr(transformers, family.vision_class).from_pretrained(
                name,
                dtype=dtype,
                output_loading_info=True,
                key_mapping=mapping,
                config=vision_config(config),
            )
    except Exception as error:  # a broken checkpoint raises whatever its reader does
        raise _unreadable(name, error) from None
    refuse_missing_weights(report, name, family.vision_class)
    return model


def refuse_missing_weights(report: dict[str, Any], name: str, class_name: str) -> None:
    """Raise UserError where transformers' report on loading a checkpoint names weights that are
    missing or of another shape."""
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} weights of a {class_name}, such as {missing[0]}; "
            "give a complete checkpoint"
        )


def build_transformers(
    architecture: dict[str, Any],
    transform: ImageTransform,
    *,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    **options: Any,
) -> TransformersEncoder:
    """The tower that `TransformersEncoder.architecture` describes, with random weights (on the meta
    device inside `torch.device("meta")`).

    attn_implementation: where the class has it; ConvNeXt, say, has no attention.
    """
    values = dict(architecture)
    try:
        config = AutoConfig.for_model(values.pop("model_type"), **values)
    except (KeyError, ValueError, TypeError) as error:
        version = transformers.__version__
        raise UserError(
            f"this is not a vision tower of transformers {version}: {first_line(error)}"
        ) from None
    vision_class = getattr(transformers, family_of(config).vision_class)
    flag = ATTENTION_FLAGS.get(attn_implementation, "")
    if attn_implementation == "eager" or getattr(vision_class, flag, False):
        config._attn_implementation = attn_implementation
    return TransformersEncoder(vision_class(config).to(dtype), transform, **options)


def read_config(name: str) -> PretrainedConfig:
    """The config of a checkpoint. Raises UserError where there is none."""
    refuse_special_files(name)
    try:
        said, _ = PretrainedConfig.get_config_dict(name)
    except Exception as error:  # a broken config raises whatever its reader does
        raise _unreadable(name, error) from None
    _refuse_own_code(said, name)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise _unreadable(name, error) from None


def _refuse_own_code(said: dict[str, Any], name: str) -> None:
    """Raise UserError for a config that only code from its own repository understands; such code is
    never run."""
    if "auto_map" not in said:
        return
    model_type = said.get("model_type")
    if model_type in WITHOUT_OWN_CODE:
        cure = WITHOUT_OWN_CODE[model_type]
    elif model_type not in CONFIG_MAPPING:
        cure = "look for the same model in transformers' own format, or as timm:NAME"
    elif model_type == "radio" and "hidden_size" not in said:
        cure = "take one in transformers' own format, such as hf:nvidia/C-RADIOv4-H"
    else:
        return
    raise UserError(f"{name} needs code of its own (trust_remote_code), which is never run here; {cure}")


def vision_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a complete model's config that describes its vision tower."""
    return config.vision_config if config.model_type in MODELS_WITH_A_TOWER else config


def family_of(config: PretrainedConfig, name: str = "the model") -> Family:
    """The family of a vision tower, or of a complete model that holds one. Raises UserError for other
    model types."""
    model_type = MODELS_WITH_A_TOWER.get(config.model_type, config.model_type)
    if model_type not in FAMILIES:
        known = ", ".join([*FAMILIES, *MODELS_WITH_A_TOWER])
        raise UserError(
            f"{name} is a {config.model_type}, which is not a known vision tower; known: {known}; "
            "others may load as timm:NAME"
        )
    return FAMILIES[model_type]


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings from transformers inside."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _has_pooler(config: PretrainedConfig) -> bool:
    """SigLIP and AIMv2 can be published without their pooling head."""
    return getattr(config, "vision_use_head", getattr(config, "use_head", True))


def _num_prefix_tokens(family: Family, config: PretrainedConfig) -> int:
    """How many tokens come before those of the patches."""
    if family.prefix:
        return getattr(config, family.prefix)
    registers = getattr(config, family.registers) if family.registers else 0
    return int(family.cls) + registers


def _only_side(side: int | Sequence[int]) -> int:
    """The side of square patches. Raises UserError for patches of two sides."""
    if isinstance(side, int):
        return side
    if len(set(side)) > 1:
        shown = " x ".join(map(str, side))
        raise UserError(f"patches of {shown} pixels are not square; only square ones are understood")
    return side[0]


def _unreadable(name: str, error: Exception) -> UserError:
    return UserError(
        f"{name} cannot be loaded ({first_line(error)}); "
        "give a folder with config, weights and image processor, or a Hub name"
    )
