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
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    DINOv3ViTImageProcessor,
    PretrainedConfig,
)

from encoders.base import Encoder, Features, LayerFeatures, tokens_to_map
from encoders.positions import set_position_interpolation
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import refuse_special_files

RESAMPLES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's numbers


ATTENTION_FLAGS = {
    "sdpa": "_supports_sdpa",
    "flash_attention_2": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
}


@dataclass(frozen=True)
class Family:
    """What one model type returns (executed, not assumed: tests/encoders/test_contract.py).

    vision_class: the class of the vision tower.
    norm: its attribute with the final norm, or None where it has none.
    last_is_normed: whether `last_hidden_state` is behind that norm.
    cls, registers: whether a CLS token stands first, and the config's field that counts the
    register tokens behind it.
    prefix: the config's field that counts all tokens in front of the patches, where the model has
    several CLS tokens.
    pooled: the published image vector: the model's pooler output, its summary of some CLS tokens,
    the CLS token, or none.
    sizes: how the model takes another size than its own: by itself, by an argument of its forward,
        as a bag of patches, or not at all.
    tower: where the vision tower lies in a checkpoint of the whole vision-language model.
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
WHOLE_MODELS = {  # image-text and vision-language models that hold a vision tower
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "clip": "clip_vision_model",
    "metaclip_2": "metaclip_2_vision_model",
    "aimv2": "aimv2_vision_model",
    "internvl": "internvl_vision",
    "tipsv2": "tipsv2_vision_model",
}
# repositories whose models need code of their own, by the model type in their config, and what has
# the same weights without it
WITHOUT_OWN_CODE = {
    "intern_vit_6b": "InternViT is the vision tower of InternVL: hf:OpenGVLab/InternVL3-1B-hf has that of 300M, InternVL3-78B-hf that of 6B",
    "internvl_chat": "take the folder of the same name that ends in -hf, such as hf:OpenGVLab/InternVL3-1B-hf",
}


class TransformersEncoder(Encoder):
    """A vision tower of transformers.

    Args:
        model: an object of one of the classes in `FAMILIES`.
        position_antialias: Dinov2 and Dinov2WithRegisters only: resample the position embeddings
            with or without antialiasing. None leaves the class its own way, which is without for
            Dinov2 and with for Dinov2WithRegisters and timm. It matters where a size has fewer
            patches than the stored grid.
        position_offset: the same models only: 0.1 resamples as the code behind the models that were
            published without registers, see `positions.py`. None takes what the model's config
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
        self.position_offset = (
            getattr(config, "position_offset", None) if position_offset is None else position_offset
        )
        self.layer_widths = tuple(
            config.hidden_sizes if self.family.stages else [config.hidden_size] * config.num_hidden_layers
        )
        self.num_channels = config.num_channels
        self.stride = 4 * 2 ** (self.num_layers - 1) if self.family.stages else _square(config.patch_size)
        self.num_prefix_tokens = _num_prefix_tokens(self.family, config)
        self.has_norm = self.family.norm is not None and not isinstance(
            self._final_norm, nn.Identity
        )  # InternVL may have none
        self.pooled_width = self._width_of_pooled()
        self.has_cls = self.family.cls
        if config.model_type == "vit_mae":
            config.mask_ratio = 0.0
        set_position_interpolation(model, position_antialias, self.position_offset)

    @property
    def _final_norm(self) -> nn.Module:
        return getattr(self.model, self.family.norm) if self.family.norm else nn.Identity()

    def _width_of_pooled(self) -> int | None:
        config, pooled = self.model.config, self.family.pooled
        if pooled == "summary":
            return self.width * len(config.summary_idxs)
        has_pooled = pooled == "cls" or (pooled == "pooler" and _has_pooler(config))
        return self.width if has_pooled else None

    def architecture(self) -> dict[str, Any]:
        return self.model.config.to_diff_dict() | {"model_type": self.model.config.model_type}

    def size_problem(self, height: int, width: int) -> str | None:
        config = self.model.config
        if (height, width) == self._native_size():
            return None  # also where it is no multiple of the patch: SigLIP so400m cuts 384 pixels into 27 patches of 14, and leaves the rest
        if (
            self.family.sizes == "native"
            and not getattr(config, "is_native", False)
            and (height, width) != (config.image_size,) * 2
        ):
            return f"it was trained for {config.image_size} x {config.image_size} pixels and takes no other size, such as {height} x {width}"
        return super().size_problem(height, width)

    def features(self, pixel_values: Tensor, layers: tuple[int, ...]) -> Features:
        grid = (pixel_values.shape[-2] // self.stride, pixel_values.shape[-1] // self.stride)
        only_last = (
            layers == (self.num_layers,)
            and not self.family.stages
            and (self.norm or not self.family.last_is_normed)
        )
        output = self.model(**self._inputs(pixel_values, grid), output_hidden_states=not only_last)
        chosen = tuple(self._layer(output, number, grid) for number in layers)
        return Features(chosen, self._pooled(output))

    def _inputs(self, pixel_values: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        if self.family.sizes == "patches":
            patches = F.unfold(
                pixel_values, self.stride, stride=self.stride
            )  # channels first; the processor's patches have them last
            patches = patches.unflatten(1, (self.num_channels, -1)).permute(0, 3, 2, 1).flatten(2)
            mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device)
            return {
                "pixel_values": patches,
                "pixel_attention_mask": mask,
                "spatial_shapes": torch.tensor([grid] * len(patches), device=patches.device),
            }
        inputs: dict[str, Any] = {"pixel_values": pixel_values}
        if self.family.sizes == "argument":
            inputs["interpolate_pos_encoding"] = pixel_values.shape[-2:] != self._native_size()
        if self.model.config.model_type == "vit_mae":
            # without it the patches come back in a random order, even with nothing masked
            inputs["noise"] = (
                torch.arange(grid[0] * grid[1], device=pixel_values.device)
                .float()
                .expand(len(pixel_values), -1)
            )
        return inputs

    def _native_size(self) -> tuple[int, int] | None:
        size = getattr(self.model.config, "image_size", None)
        return (size, size) if isinstance(size, int) else size and tuple(size)

    def _layer(self, output: Any, number: int, grid: tuple[int, int]) -> LayerFeatures:
        is_last = number == self.num_layers
        if self.family.stages:
            return self._stage(output, number)
        if is_last and self.norm == self.family.last_is_normed:
            tokens = output.last_hidden_state
        else:
            tokens = (
                output.last_hidden_state
                if is_last and not self.family.last_is_normed
                else output.hidden_states[number]
            )
            tokens = self._final_norm(tokens) if self.norm else tokens
        cls = tokens[:, 0] if self.has_cls else None
        return LayerFeatures(
            number, tokens_to_map(tokens[:, self.num_prefix_tokens :], grid), cls, self.norm and self.has_norm
        )

    def _stage(self, output: Any, number: int) -> LayerFeatures:
        """Only the last stage has the final norm's width."""
        patch_map, normed = output.hidden_states[number], self.norm and number == self.num_layers
        if normed:
            patch_map = self._final_norm(patch_map.movedim(1, -1)).movedim(-1, 1)
        return LayerFeatures(number, patch_map, None, normed)

    def _pooled(self, output: Any) -> Tensor | None:
        if self.pooled_width is None:
            return None
        if self.family.pooled == "cls":
            return output.last_hidden_state[:, 0]
        return output.summary if self.family.pooled == "summary" else output.pooler_output


def load_transformers(
    name: str, *, dtype: torch.dtype = torch.float32, **options: Any
) -> TransformersEncoder:
    """The vision tower of a checkpoint, a Hub name or a folder, with its image processor. `options`
    as for `TransformersEncoder`.

    Raises UserError for a model that is no known vision tower, missing weights, or a checkpoint
    that cannot be read.
    """
    model = load_backbone(name, read_config(name), dtype=dtype)
    return TransformersEncoder(model, read_transform(name), **options)


def load_backbone(name: str, config: PretrainedConfig, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The vision tower of a checkpoint with this config. Raises UserError as
    `load_transformers`."""
    family = family_of(config, name)
    mapping = {rf"^(model\.)?{family.tower}\.": ""} if family.tower else None
    try:
        with _quiet():  # the text tower's weights are not wanted, and what is missing is said below
            model, report = getattr(transformers, family.vision_class).from_pretrained(
                name, dtype=dtype, output_loading_info=True, key_mapping=mapping, config=vision_config(config)
            )
    except Exception as error:  # a broken checkpoint raises whatever its reader does
        raise _unreadable(name, error) from None
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} weights of a {family.vision_class}, such as {missing[0]}; give a whole checkpoint"
        )
    return model


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
        raise UserError(
            f"this is no vision tower of transformers {transformers.__version__}: {first_line(error)}"
        ) from None
    vision_class = getattr(transformers, family_of(config).vision_class)
    if attn_implementation == "eager" or getattr(
        vision_class, ATTENTION_FLAGS.get(attn_implementation, ""), False
    ):
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
    model_type, own_code = said.get("model_type"), "auto_map" in said
    if own_code and model_type in WITHOUT_OWN_CODE:
        cure = WITHOUT_OWN_CODE[model_type]
    elif own_code and model_type not in CONFIG_MAPPING:
        cure = "look for the same model in transformers' own format, or as timm:NAME"
    elif own_code and model_type == "radio" and "hidden_size" not in said:
        cure = "take one in transformers' own format, such as hf:nvidia/C-RADIOv4-H"
    else:
        return
    raise UserError(f"{name} needs code of its own (trust_remote_code), which is never run here; {cure}")


def vision_config(config: PretrainedConfig) -> PretrainedConfig:
    """The vision tower's part of a whole model's config."""
    return config.vision_config if config.model_type in WHOLE_MODELS else config


def family_of(config: PretrainedConfig, name: str = "the model") -> Family:
    """The family of a vision tower, or of a whole model that holds one. Raises UserError for other
    model types."""
    model_type = WHOLE_MODELS.get(config.model_type, config.model_type)
    if model_type not in FAMILIES:
        known = ", ".join([*FAMILIES, *WHOLE_MODELS])
        raise UserError(
            f"{name} is a {config.model_type}, which is no known vision tower; known: {known}; others may load as timm:NAME"
        )
    return FAMILIES[model_type]


def read_transform(name: str) -> ImageTransform:
    """The preprocessing that a checkpoint's image processor describes."""
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"{name} has no image processor that can be read ({first_line(error)}); add its preprocessor_config.json"
        ) from None
    return transform_from_processor(processor)


def transform_from_processor(processor: Any) -> ImageTransform:
    """A transformers image processor as an `ImageTransform`, to the pixel for square sizes and
    images of any size.

    NaFlex keeps an image's aspect ratio, so images of a batch have different grids; here all get
    the square one.

    Raises UserError for sizes of another kind than sides, shorter side and crop, or patches.
    """
    said = processor.to_dict()
    size, crop = (dict(said.get("size") or {}), said.get("crop_size") if said.get("do_center_crop") else None)
    fit, margin = "crop", 1.0
    if crop:
        target = (crop["height"], crop["width"])
        fit = "crop" if "shortest_edge" in size else "squash"
        margin = size["shortest_edge"] / min(target) if fit == "crop" else size["height"] / target[0]
        if fit == "squash" and round(margin * target[1]) != size["width"]:
            raise UserError(
                f"an image processor that resizes to {size} and crops {crop} is not understood; give the encoder an image size"
            )
    elif (
        "crop_pct" in said and "shortest_edge" in size
    ):  # ConvNext: below 384 a crop of this share, from 384 on squashed
        target = (size["shortest_edge"],) * 2
        fit, margin = (
            ("crop", int(target[0] / said["crop_pct"]) / target[0]) if target[0] < 384 else ("squash", 1.0)
        )
    elif "height" in size:
        target, fit = (size["height"], size["width"]), "squash"
    elif "max_num_patches" in said:  # NaFlex: any grid of so many patches; the square one stands for all
        target, fit = (int(said["max_num_patches"] ** 0.5) * said["patch_size"],) * 2, "squash"
    elif "shortest_edge" in size:
        target = (size["shortest_edge"],) * 2
    else:
        raise UserError(
            f"an image processor that resizes to {size} is not understood; give the encoder an image size"
        )
    mean, std = (said["image_mean"], said["image_std"]) if said.get("do_normalize", True) else ([0.0], [1.0])
    resampler = "tensor_float" if isinstance(processor, DINOv3ViTImageProcessor) else "tensor"
    interpolation = RESAMPLES[int(said.get("resample", 3))]
    transform = ImageTransform(
        target, tuple(mean), tuple(std), fit, margin, interpolation, "published", resampler
    )
    in_own_scale = not said.get("do_rescale", True)
    return replace(transform, pictures=not in_own_scale, pixel_options=said.get("pixel_options", ""))


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
    """How many tokens stand in front of the patches."""
    if family.prefix:
        return getattr(config, family.prefix)
    registers = getattr(config, family.registers) if family.registers else 0
    return int(family.cls) + registers


def _square(side: int | Sequence[int]) -> int:
    sides = {side} if isinstance(side, int) else set(side)
    if len(sides) > 1:
        raise UserError(
            f"patches of {' x '.join(str(each) for each in side)} pixels are not square; only square ones are understood"
        )
    return sides.pop()


def _unreadable(name: str, error: Exception) -> UserError:
    return UserError(
        f"{name} cannot be loaded ({first_line(error)}); give a folder with config, weights and image processor, or a Hub name"
    )
