"""Vision towers of open_clip behind the contract: its own ViT, and the towers that it takes from
timm (ConvNeXt, SigLIP's ViT)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from encoders.adapters.timm_encoder import Trunk, native_size_problem
from encoders.base import Encoder, EncoderConfig, Features
from encoders.names import nearest, nearest_encoders_clause
from encoders.positions import refuse_position_options
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError, first_line
from vision_core.files.text_files import check_openable
from vision_core.hub import hub_or_cache

WEIGHT_FILES = (".safetensors", ".pt")


class OpenClipEncoder(Encoder):
    """The vision tower of an open_clip model. `pooled` is its image vector in the space shared with
    texts, not normalised.

    Args:
        visual: an `open_clip.transformer.VisionTransformer` or `open_clip.timm_model.TimmModel`.
        model_config: open_clip's description of the complete model, from which the tower can be
            built again.
    """

    library = "open_clip"

    def __init__(
        self,
        visual: nn.Module,
        transform: ImageTransform,
        *,
        model_config: dict[str, Any],
        layers: Sequence[int] = (-1,),
        norm: bool = True,
        source: str = "",
        untrained: bool = False,
    ) -> None:
        super().__init__(transform, layers=layers, norm=norm, source=source, untrained=untrained)
        self.model = visual
        self.model_config = model_config
        self.trunk = _trunk(visual)
        self.layer_widths = self.trunk.widths
        self.stride = self.trunk.strides[-1]
        self.num_channels = 3
        self.pooled_width = model_config["embed_dim"]
        self.has_cls = self.trunk.has_cls

    def architecture(self) -> dict[str, Any]:
        return self.model_config

    def size_problem(self, height: int, width: int) -> str | None:
        if self.trunk.native_size is None:
            return super().size_problem(height, width)
        problem = native_size_problem(self.trunk.native_size, height, width)
        return problem and f"{problem}; load it with image_size to have its positions resampled"

    def features(self, pixel_values: Tensor, layers: tuple[int, ...]) -> Features:
        indices = sorted({number - 1 for number in layers})
        output = self.model.forward_intermediates(
            pixel_values,
            indices=indices,
            normalize_intermediates=self.norm and self.trunk.norms_layers,
            output_extra_tokens=self.trunk.num_prefix_tokens > 0,
        )
        outputs = output["image_intermediates"]
        prefixes = output.get("image_intermediates_prefix")
        if prefixes:
            outputs = zip(outputs, prefixes, strict=True)
        by_number = {index + 1: each for index, each in zip(indices, outputs, strict=True)}
        chosen = tuple(self.trunk.layer(number, by_number[number], self.norm) for number in layers)
        return Features(chosen, output["image_features"])


# -- the adapter (see encoders/adapters/__init__.py)


def load(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> OpenClipEncoder:
    """The vision tower that MODEL/TAG names."""
    model, tag = model_and_tag(name, source)
    refuse_position_options(options, source)
    with hub_or_cache(source):
        return load_open_clip(model, tag, image_size=image_size, dtype=dtype, source=source, **options)


def untrained(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> OpenClipEncoder:
    """The vision tower of MODEL with random weights; a tag is not looked at."""
    refuse_position_options(options, source)
    model = name.partition("/")[0]
    options |= {"source": source, "untrained": True}
    return load_open_clip(model, None, image_size=image_size, dtype=dtype, **options)


def build(
    config: EncoderConfig, *, dtype: torch.dtype, attn_implementation: str | None = None
) -> OpenClipEncoder:
    """The encoder that the config describes, with random weights."""
    transform = config.image_transform()
    return open_clip_from_architecture(
        config.architecture, transform, dtype=dtype, **config.encoder_options()
    )


def check(name: str, *, source: str, has_weights: bool) -> None:
    """Raise UserError for a model, or weights, that open_clip does not know."""
    if has_weights:
        model, tag = model_and_tag(name, source)
        check_open_clip(model, tag)
    else:
        check_open_clip(name.partition("/")[0], None)


def model_and_tag(name: str, source: str) -> tuple[str, str]:
    """The parts of MODEL/TAG. Raises UserError where no weights are named."""
    model, _, tag = name.partition("/")
    if not tag:
        raise UserError(
            f"{source} names no weights{nearest_encoders_clause(source)}; "
            "write open_clip:MODEL/TAG, or untrained:open_clip:MODEL"
        )
    return model, tag


# -- models of open_clip


def load_open_clip(
    model: str,
    tag: str | None,
    *,
    image_size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> OpenClipEncoder:
    """The vision tower of `model` with the weights `tag`, a published name or a file, or random
    ones for None.

    A file is a .safetensors file of the complete model, or what `open_clip_train` writes
    (`epoch_3.pt`), read as weights only.

    image_size: (height, width) to which the positions are resampled; default as published.
    `options` are those of `Encoder`.

    Raises UserError for an unknown model or tag, weights of another kind of file, or where
    open_clip is missing.
    """
    config = model_config(model)
    config["quick_gelu"] = quick_gelu(model, tag)
    if tag is None:
        if image_size:
            config["vision_cfg"] = {**config["vision_cfg"], "image_size": list(image_size)}
        return build_open_clip(config, dtype=dtype, **options)
    both_towers = load_both_towers(model, tag, image_size=image_size)
    visual = both_towers.visual.to(dtype).eval()
    config["vision_cfg"]["image_size"] = list(visual.image_size)
    transform = transform_from_preprocess(visual.preprocess_cfg)
    return OpenClipEncoder(visual, transform, model_config=config, **options)


def build_open_clip(
    config: dict[str, Any], *, dtype: torch.dtype = torch.float32, **options: Any
) -> OpenClipEncoder:
    """A tower with random weights from open_clip's description of a model, with open_clip's default
    preprocessing."""
    refuse_position_options(options, options.get("source", "open_clip"))
    transform = transform_from_preprocess({"size": config["vision_cfg"]["image_size"]})
    return open_clip_from_architecture(config, transform, dtype=dtype, **options)


def open_clip_from_architecture(
    architecture: dict[str, Any], transform: ImageTransform, *, dtype: torch.dtype, **options: Any
) -> OpenClipEncoder:
    """The tower that `OpenClipEncoder.architecture` describes, with random weights."""
    parts = import_open_clip().model
    fields = parts.CLIPVisionCfg.__dataclass_fields__
    vision = {name: value for name, value in architecture["vision_cfg"].items() if name in fields}
    if isinstance(vision["image_size"], list):
        vision["image_size"] = tuple(vision["image_size"])
    vision["timm_model_pretrained"] = False  # the weights come from a saved encoder, or are random
    use_quick_gelu = architecture.get("quick_gelu", False)
    visual = parts._build_vision_tower(architecture["embed_dim"], vision, use_quick_gelu)
    if hasattr(visual, "trunk"):  # open_clip builds these at the size of timm's own description
        visual.set_input_size(visual.image_size)
    return OpenClipEncoder(visual.to(dtype), transform, model_config=architecture, **options)


def load_both_towers(model: str, tag: str, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Both towers of an open_clip model; see `load_open_clip`."""
    open_clip = import_open_clip()
    use_quick_gelu = quick_gelu(model, tag)
    check_open_clip(model, tag)
    try:
        return open_clip.create_model(
            model,
            pretrained=tag,
            force_image_size=image_size,
            force_quick_gelu=use_quick_gelu,
            weights_only=True,
        )
    except Exception as error:  # weights that cannot be read raise whatever their reader does
        raise UserError(
            f"open_clip:{model}/{tag} cannot be loaded ({first_line(error)}); check the file, or the network"
        ) from None


def check_open_clip(model: str, tag: str | None) -> None:
    """Raise UserError for an unknown model, and for weights that are neither published nor a file
    that can be read safely. A tag of None stands for random weights. Nothing is loaded."""
    model_config(model)
    if tag is None:
        return
    known = import_open_clip().list_pretrained_tags_by_model(model)
    if tag in known:
        return
    if not os.path.exists(tag):
        listed = ", ".join(known) or "none"
        raise UserError(f"open_clip has no weights {tag} for {model}{nearest(tag, known)}; it has {listed}")
    check_openable(tag, tag, "give the file of the weights")
    if not tag.endswith(WEIGHT_FILES):
        raise UserError(
            f"{tag} is not a .safetensors file; convert it, or give the .pt file that open_clip_train wrote"
        )


def model_config(model: str) -> dict[str, Any]:
    """open_clip's description of a model. Raises UserError for an unknown name."""
    open_clip = import_open_clip()
    config = open_clip.get_model_config(model)
    if config is None:
        raise UserError(f"open_clip has no model {model}{nearest(model, open_clip.list_models())}")
    return config


def quick_gelu(model: str, tag: str | None) -> bool:
    """Whether `model` was trained with the activation x * sigmoid(1.702 x): its own description
    says so, or that of the weights `tag`.

    open_clip itself only warns where the two differ (27 of its published pairs, ViT-B-32/openai
    among them), and then computes with another one.
    """
    said_of_weights = import_open_clip().get_pretrained_cfg(model, tag or "")
    return bool(model_config(model).get("quick_gelu") or said_of_weights.get("quick_gelu"))


def transform_from_preprocess(preprocess: dict[str, Any]) -> ImageTransform:
    """open_clip's `preprocess_cfg` as an `ImageTransform`; keys that are missing have open_clip's
    defaults."""
    from open_clip.transform import PreprocessCfg

    said = PreprocessCfg(**preprocess)
    if said.resize_mode == "longest":
        raise UserError(
            "open_clip's resize_mode longest pads images, which is not understood; give another model"
        )
    size = (said.size, said.size) if isinstance(said.size, int) else tuple(said.size)
    return ImageTransform(
        size=size,
        mean=tuple(said.mean),
        std=tuple(said.std),
        fit="squash" if said.resize_mode == "squash" else "crop",
        # `random` means bicubic outside of training
        interpolation="bilinear" if said.interpolation == "bilinear" else "bicubic",
        preprocess="published",
        resampler="pillow",
    )


def import_open_clip() -> Any:
    """The package, or a UserError that says how to get it."""
    try:
        import open_clip
    except ImportError:
        raise UserError(
            "open_clip: needs the package open_clip_torch; pip install 'vision-encoder-fusion[encoders]'"
        ) from None
    return open_clip


def _trunk(visual: nn.Module) -> Trunk:
    """The layers of a tower. Raises UserError for ResNets and attentional pools."""
    if hasattr(visual, "trunk"):
        return Trunk.of(visual.trunk, takes_any_size=False)
    if not hasattr(visual, "transformer") or visual.attn_pool is not None:
        raise UserError(
            "this open_clip tower is neither a plain ViT nor a timm model; "
            "its ResNets and attentional pools are not understood"
        )
    depth = len(visual.transformer.resblocks)
    return Trunk(
        widths=(visual.transformer.width,) * depth,
        strides=(visual.patch_size[0],) * depth,
        num_prefix_tokens=1,
        has_cls=True,
        native_size=tuple(visual.image_size),
        norms_layers=True,
    )
