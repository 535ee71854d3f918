"""Any model of timm behind the contract, through its `forward_intermediates`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import Encoder, EncoderConfig, Features, LayerFeatures
from encoders.names import nearest
from encoders.positions import refuse_position_options
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError, first_line
from vision_core.hub import hub_or_cache

LOCAL = "local-dir:"  # timm's prefix for a folder
HUB = "hf-hub:"  # and for a name on the Hub


@dataclass(frozen=True)
class Trunk:
    """The layers of a vision tower; `Trunk.of` reads them off a timm model.

    Attributes:
        widths: channels of each layer's map.
        strides: pixels from one feature to the next in each layer.
        num_prefix_tokens: how many tokens of a layer come before those of the patches.
        has_cls: whether the first of these is a CLS token and not a register.
        native_size: the only size that it takes, or None for any.
        norms_layers: whether its code puts the final norm behind every layer when asked to.
        map_norm: where its code does not, the norm for maps of that width: the one behind the last
            layer (Swin) or behind the pooling (ConvNeXt).
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    num_prefix_tokens: int
    has_cls: bool
    native_size: tuple[int, int] | None
    norms_layers: bool
    map_norm: nn.LayerNorm | None = None

    @classmethod
    def of(cls, model: nn.Module, takes_any_size: bool) -> Trunk:
        """Raises UserError for a model without `forward_intermediates`."""
        if not hasattr(model, "forward_intermediates"):
            raise UserError(
                f"timm's {type(model).__name__} has no forward_intermediates, so its maps cannot be read; "
                "choose another model"
            )
        is_vit = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
        num_prefix_tokens = getattr(model, "num_prefix_tokens", 0) if is_vit else 0
        # many ViTs that average their patches have an Identity here, and their norm behind the average
        final_norm = getattr(model, "norm", nn.Identity())
        return cls(
            widths=tuple(entry["num_chs"] for entry in model.feature_info),
            strides=tuple(entry["reduction"] for entry in model.feature_info),
            num_prefix_tokens=num_prefix_tokens,
            has_cls=num_prefix_tokens > 0 and getattr(model, "cls_token", None) is not None,
            native_size=None if takes_any_size else _only_size(model),
            norms_layers=is_vit and not isinstance(final_norm, nn.Identity),
            map_norm=None if is_vit else _map_norm(model),
        )

    def layer(self, number: int, output: Tensor | tuple[Tensor, Tensor], norm: bool) -> LayerFeatures:
        """The features of a layer from what `forward_intermediates` returns for it: its map, or its
        map and prefix tokens."""
        patch_map = output[0] if isinstance(output, tuple) else output
        if norm and self._has_map_norm_for(patch_map):
            return LayerFeatures(number, _layer_norm_of_map(patch_map, self.map_norm), None, True)
        cls = output[1][:, 0] if self.has_cls else None
        return LayerFeatures(number, patch_map, cls, norm and self.norms_layers)

    def _has_map_norm_for(self, patch_map: Tensor) -> bool:
        return self.map_norm is not None and self.map_norm.normalized_shape == (patch_map.shape[1],)


class TimmEncoder(Encoder):
    """A timm model without its classifier. `pooled` is what its classifier would have got.

    Args:
        model: made by `timm.create_model(name, num_classes=0, **model_args)`.
        name, model_args: those two, which make the same architecture again.
        takes_any_size: whether it interpolates its positions itself (`dynamic_img_size`).
    """

    library = "timm"

    def __init__(
        self,
        model: nn.Module,
        transform: ImageTransform,
        *,
        name: str,
        model_args: dict[str, Any],
        takes_any_size: bool,
        layers: Sequence[int] = (-1,),
        norm: bool = True,
        source: str = "",
        untrained: bool = False,
    ) -> None:
        super().__init__(transform, layers=layers, norm=norm, source=source, untrained=untrained)
        self.model = model
        self.model_name = name
        self.model_args = model_args
        self.trunk = Trunk.of(model, takes_any_size)
        self.layer_widths = self.trunk.widths
        self.stride = self.trunk.strides[-1]
        self.num_channels = model_args.get("in_chans", model.pretrained_cfg["input_size"][0])
        # Virchow is published with all its tokens and no image vector
        self.pooled_width = None if getattr(model, "global_pool", None) == "" else model.head_hidden_size
        self.has_cls = self.trunk.has_cls

    def architecture(self) -> dict[str, Any]:
        return {"name": self.model_name, "args": self.model_args}

    def size_problem(self, height: int, width: int) -> str | None:
        if self.trunk.native_size is None:
            return super().size_problem(height, width)
        problem = native_size_problem(self.trunk.native_size, height, width)
        return problem and f"{problem}; give load_timm an image_size to have its positions resampled"

    def features(self, pixel_values: Tensor, layers: tuple[int, ...]) -> Features:
        options = {"norm": self.norm and self.trunk.norms_layers}
        if self.trunk.num_prefix_tokens:
            options["return_prefix_tokens"] = True
        indices = sorted({number - 1 for number in layers})
        final, outputs = self.model.forward_intermediates(pixel_values, indices=indices, **options)
        by_number = {index + 1: output for index, output in zip(indices, outputs, strict=True)}
        chosen = tuple(self.trunk.layer(number, by_number[number], self.norm) for number in layers)
        self._check_grid(pixel_values, chosen)
        pooled = None if self.pooled_width is None else self.model.forward_head(final, pre_logits=True)
        return Features(chosen, pooled)

    def _check_grid(self, pixel_values: Tensor, layers: tuple[LayerFeatures, ...]) -> None:
        """Raise UserError for a last map that has not one place for each stride: no mask can be laid
        on it. Inception has no padding, LeViT has more than its size needs."""
        size = pixel_values.shape[-2:]
        expected = self.grid(*size)
        for layer in layers:
            found = layer.patch_map.shape[-2:]
            if layer.number == self.num_layers and found != expected:
                raise UserError(
                    f"{self.name}: its map of {size[0]} x {size[1]} pixels is {found[0]} x {found[1]}, "
                    f"not {expected[0]} x {expected[1]}; choose another model"
                )


# -- the adapter (see encoders/adapters/__init__.py)


def load(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> TimmEncoder:
    """The model that timm calls `name`, with its published weights."""
    options["source"] = source
    with hub_or_cache(name.removeprefix(LOCAL), source):
        return load_timm(name, pretrained=True, image_size=image_size, dtype=dtype, **options)


def untrained(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> TimmEncoder:
    """The model that timm calls `name`, with random weights."""
    options |= {"source": source, "untrained": True}
    return load_timm(name, pretrained=False, image_size=image_size, dtype=dtype, **options)


def build(
    config: EncoderConfig, *, dtype: torch.dtype, attn_implementation: str | None = None
) -> TimmEncoder:
    """The encoder that the config describes, with random weights."""
    transform = config.image_transform()
    return timm_from_architecture(config.architecture, transform, dtype=dtype, **config.encoder_options())


def check(name: str, *, source: str, has_weights: bool) -> None:
    """Raise UserError where timm is missing or does not know the name."""
    _architecture_and_args(name)


# -- models of timm


def load_timm(
    name: str,
    *,
    pretrained: bool,
    image_size: tuple[int, int] | None = None,
    model_args: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> TimmEncoder:
    """The model `name` with its published weights or random ones. `options` are those of `Encoder`.

    image_size: (height, width) that a model whose positions belong to one size is made for; default
    as published.
    model_args: for `timm.create_model`.

    Raises UserError where timm is missing, does not know the name, or cannot get the weights.
    """
    refuse_position_options(options, options.get("source", f"timm:{name}"))
    # what is saved must not need the Hub, or the folder, that the name may point to
    architecture, published_args = _architecture_and_args(name)
    args = {**published_args, **_args_of_weights(name), **(model_args or {})}
    if image_size is not None and _timm().get_pretrained_cfg(architecture).fixed_input_size:
        args["img_size"] = list(image_size)
    model, takes_any_size = _create(name, pretrained, args)
    return TimmEncoder(
        model.to(dtype).eval(),
        published_transform(model, takes_any_size),
        name=architecture,
        model_args=args,
        takes_any_size=takes_any_size,
        **options,
    )


def timm_from_architecture(
    architecture: dict[str, Any], transform: ImageTransform, *, dtype: torch.dtype, **options: Any
) -> TimmEncoder:
    """The model that `TimmEncoder.architecture` describes, with random weights."""
    name = architecture["name"]
    args = architecture["args"]
    _architecture_and_args(name)
    model, takes_any_size = _create(name, False, args)
    return TimmEncoder(
        model.to(dtype),
        transform,
        name=name,
        model_args=args,
        takes_any_size=takes_any_size,
        **options,
    )


def published_transform(model: nn.Module, takes_any_size: bool) -> ImageTransform:
    """The preprocessing in timm's description of a model, at the size that the model was made for,
    or the nearest one that it takes.

    Raises UserError for padding, and for images whose border is cut off first.
    """
    import timm.data

    said = timm.data.resolve_model_data_config(model)
    if said["crop_mode"] == "border":
        raise _not_understood(model, "pads its images to a square")
    if said.get("crop_border_pixels"):
        raise _not_understood(model, "cuts the border off its images")
    size = None if takes_any_size else _only_size(model)
    if size is None:
        size = _multiple_of_stride(model, said["input_size"][-2:])
    return ImageTransform(
        size=size,
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
        fit="squash" if said["crop_mode"] == "squash" else "crop",
        margin=math.floor(min(size) / said["crop_pct"]) / min(size),  # timm rounds the resized side down
        interpolation=said["interpolation"],
        preprocess="published",
        resampler="pillow",
    )


def _not_understood(model: nn.Module, what: str) -> UserError:
    name = type(model).__name__
    return UserError(f"timm's {name} {what}, which is not understood; choose another model")


def native_size_problem(native: tuple[int, int], height: int, width: int) -> str | None:
    """What is wrong with a size for a model that takes only one, or None."""
    if (height, width) == native:
        return None
    return (
        f"it takes images of {native[0]} x {native[1]} pixels and no other size, such as {height} x {width}"
    )


def _only_size(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) of a model that takes one size alone, or None."""
    if not model.pretrained_cfg.get("fixed_input_size"):
        return None
    return _made_for(model) or tuple(model.pretrained_cfg["input_size"][-2:])


def _made_for(model: nn.Module) -> tuple[int, int] | None:
    """(height, width) that the positions of the patches belong to, or None."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return tuple(size) if size else None


def _multiple_of_stride(model: nn.Module, published: Sequence[int]) -> tuple[int, int]:
    """The size nearest to the published one that the model takes. ViTs leave the pixels of half a
    patch out (SigLIP's 384 are 27 patches of 14), convolutions pad them (ResNets are published for
    such as 176)."""
    stride = model.feature_info[-1]["reduction"]
    size = _made_for(model)
    if size:
        return size[0] // stride * stride, size[1] // stride * stride
    return math.ceil(published[0] / stride) * stride, math.ceil(published[1] / stride) * stride


def _map_norm(model: nn.Module) -> nn.LayerNorm | None:
    """The layer norm behind the last map or behind the pooling, if there is one."""
    candidates = [
        getattr(model, "norm", None),
        getattr(model, "norm_pre", None),
        getattr(getattr(model, "head", None), "norm", None),
    ]
    return next((norm for norm in candidates if isinstance(norm, nn.LayerNorm)), None)


def _layer_norm_of_map(patch_map: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`[B, C, h, w]` with the layer norm over its channels at every place, whichever layout timm's
    own code gives to `norm`."""
    channels_last = patch_map.movedim(1, -1)
    normed = F.layer_norm(channels_last, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return normed.movedim(-1, 1)


def _timm() -> Any:
    """The part of timm that makes models, or a UserError that says how to get it."""
    try:
        import timm.models
    except ImportError:
        raise UserError(
            "timm: needs the package timm; pip install 'vision-encoder-fusion[encoders]'"
        ) from None
    return timm.models


def _hub() -> Any:
    """The part of timm that reads weights from the Hub and from folders, as weights only."""
    return import_module("timm.models._hub")


def _architecture_and_args(name: str) -> tuple[str, dict[str, Any]]:
    """timm's name of the architecture behind `name`, and the arguments that a checkpoint on the Hub
    or in a folder was made with."""
    models = _timm()
    if name.startswith((HUB, LOCAL)):
        try:
            said = models.resolve_model_input_args(name)
        except Exception as error:  # an absent or broken config raises whatever its reader does
            raise _unloadable(name, error) from None
        return said["model_name"], said.get("pretrained_model_args", {})
    is_known = name in models.list_pretrained() if "." in name else models.is_model(name)
    if not is_known:
        known = [*models.list_pretrained(), *models.list_models()]
        raise UserError(f"timm has no model {name}{nearest(name, known)}")
    return name, {}


def _args_of_weights(name: str) -> dict[str, Any]:
    """The arguments of a model on the Hub or in a folder that JSON cannot hold, read off the shapes
    of its weights.

    Virchow and UNI2 have a gated MLP, whose second matrix takes half of what the first one gives;
    their cards have the user pass its classes.
    """
    readers = {LOCAL: _hub().load_state_dict_from_path, HUB: _hub().load_state_dict_from_hf}
    prefix, colon, place = name.partition(":")
    read = readers.get(prefix + colon)
    if read is None:
        return {}
    try:
        weights = read(place)
    except Exception:  # what is wrong with the weights is said when they are loaded
        return {}
    first = weights.get("blocks.0.mlp.fc1.weight")
    second = weights.get("blocks.0.mlp.fc2.weight")
    if first is None or second is None or first.shape[0] != 2 * second.shape[1]:
        return {}
    return {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}


def _create(name: str, pretrained: bool, args: dict[str, Any]) -> tuple[nn.Module, bool]:
    """The model, and whether it takes any size. Raises UserError where it cannot be made or
    loaded."""
    create_model = _timm().create_model
    options = {**args, "pretrained": pretrained, "num_classes": 0}
    options.pop("dynamic_img_size", None)
    if isinstance(options.get("mlp_layer"), str):
        options["mlp_layer"] = getattr(import_module("timm.layers"), options["mlp_layer"])
    try:
        try:
            return create_model(name, dynamic_img_size=True, **options), True
        except TypeError as error:  # how timm says that a class has no such option
            if "dynamic_img_size" not in str(error):
                raise
        return create_model(name, **options), False
    except Exception as error:  # a model that cannot be made or loaded raises whatever its code does
        raise _unloadable(name, error) from None


def _unloadable(name: str, error: Exception) -> UserError:
    reason = first_line(error)
    return UserError(
        f"timm:{name} cannot be loaded ({reason}); check the name in list_encoders() and the network"
    )
