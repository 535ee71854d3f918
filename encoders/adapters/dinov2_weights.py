"""The published DINOv2 `.pth` files (facebookresearch/dinov2) as models of transformers, key by
key, with a report of what matched."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.preprocess import PUBLISHED_MARGIN, ImageTransform
from vision_core.errors import UserError, first_line
from vision_core.files.text_files import check_openable

HEAD_WIDTH = 64  # of every published model; the file does not say it
WRAPPING_KEYS = ("teacher", "model", "state_dict")  # around the tensors in the files of a training
# prefixes of DistributedDataParallel, compile and FSDP
WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module)\.")
# widths of facebookresearch/dinov3 and what transformers calls the model
DINOV3_NAMES = {384: "vits16", 768: "vitb16", 1024: "vitl16", 1280: "vith16plus", 4096: "vit7b16"}
# the state of a training has the chunk's number in front of the block's
BLOCK = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.(.+)")
# published names -> those of transformers, outside of the blocks
NAMES_OUTSIDE_BLOCKS = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
# published names -> those of transformers, several where a tensor is stacked of them in this order
NAMES_IN_BLOCK = {
    "norm1": ["norm1"],
    "norm2": ["norm2"],
    "attn.qkv": ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    "attn.proj": ["attention.o_proj"],
    "ls1.gamma": ["layer_scale1.lambda1"],
    "ls2.gamma": ["layer_scale2.lambda1"],
    "mlp.fc1": ["mlp.fc1"],
    "mlp.fc2": ["mlp.fc2"],
    "mlp.w12": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.w3": ["mlp.down_proj"],
}


@dataclass(frozen=True)
class ConversionReport:
    """What became of the tensors of a file.

    Attributes:
        matched: published key -> keys of transformers.
        unused: published keys without a place.
        missing: keys of transformers that nothing filled.
    """

    matched: dict[str, list[str]]
    unused: list[str]
    missing: list[str]

    def __str__(self) -> str:
        counts = f"{len(self.matched)} published keys matched, {len(self.unused)} unused, {len(self.missing)} missing"
        lines = [counts]
        lines += [f"  {old} -> {', '.join(new)}" for old, new in self.matched.items()]
        lines += [f"  unused: {key}" for key in self.unused]
        lines += [f"  missing: {key}" for key in self.missing]
        return "\n".join(lines)


def load(
    name: str, *, source: str, image_size: tuple[int, int] | None, dtype: torch.dtype, **options: Any
) -> TransformersEncoder:
    """The encoder in the file `name` (see encoders/adapters/__init__.py)."""
    return load_dinov2_pth(Path(name), dtype=dtype, source=source, **options)


def check(name: str, *, source: str, has_weights: bool) -> None:
    """Raise UserError for a file that does not exist."""
    if not os.path.exists(name):
        raise UserError(f"{name} cannot be read as weights: there is no such file; name a published .pth")


def load_dinov2_pth(path: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> TransformersEncoder:
    """The model of a published file, or of a `teacher_checkpoint.pth` of the published training.
    `options` are those of `TransformersEncoder`.

    The pixels are the published evaluation's: 256 for a crop of 224, ImageNet's mean and standard
    deviation. Sizes other than the stored grid's are interpolated as transformers does;
    `position_offset=0.1` does it as the published code. The encoder has the report as `conversion`.

    Raises UserError for a file that holds other than tensors or lacks keys.
    """
    model, report = convert_dinov2(read_pth(path), dtype)
    if report.missing:
        raise UserError(
            f"{path} is not a published DINOv2 backbone: "
            f"nothing for {len(report.missing)} weights, such as {report.missing[0]}"
        )
    transform = ImageTransform(
        (224, 224), margin=PUBLISHED_MARGIN, preprocess="published", resampler="pillow"
    )
    encoder = TransformersEncoder(model, transform, **options)
    encoder.conversion = report
    return encoder


def read_pth(path: Path) -> dict[str, Tensor]:
    """The backbone's tensors in a `.pth` file, read as weights only, under the published names.

    A file holds the backbone alone, as published; a teacher with its heads, as
    `teacher_checkpoint.pth`; or the complete state of a training, `{"model":
    {"teacher.backbone.blocks.0.0.norm1.weight": ...}}`, of which the teacher is taken. Names may
    begin with the `module.` and `_orig_mod.` of torch's wrappers. Tensors of other parts keep their
    names.

    Raises UserError for a file that holds other than tensors, a process's share of sharded weights,
    or another model.
    """
    check_openable(path, f"{path} cannot be read as weights", "give the published .pth file")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a broken file, or one with other objects
        reason = first_line(error)
        raise UserError(
            f"{path} cannot be read as weights ({reason}); give the published .pth file"
        ) from None
    tensors = _of_the_teacher(values)
    tensors = {key.removeprefix("backbone."): value for key, value in tensors.items()}
    _check_backbone(tensors, path)
    return tensors


def _of_the_teacher(values: Any) -> dict[str, Tensor]:
    """The tensors of the teacher, or all of a file that has none, without the prefixes of
    wrappers."""
    tensors = {}
    for key, value in _innermost(values).items():
        if isinstance(value, Tensor):
            tensors[WRAPPERS.sub("", key)] = value
    of_teacher = {}
    for key, value in tensors.items():
        if key.startswith("teacher."):
            of_teacher[key.removeprefix("teacher.")] = value
    return of_teacher or tensors


def _innermost(values: Any) -> dict[str, Any]:
    """The dictionary inside those that the files of a training put around it."""
    if not isinstance(values, dict):
        return {}
    for key in WRAPPING_KEYS:
        if isinstance(values.get(key), dict):
            return _innermost(values[key])
    return values


def _check_backbone(tensors: dict[str, Tensor], path: Path) -> None:
    if "pos_embed" in tensors and "patch_embed.proj.weight" in tensors:
        return
    if any("flat_param" in key for key in tensors):
        problem = "holds one process's share of sharded weights"
        cure = "give the eval/training_N/teacher_checkpoint.pth of the same training"
    elif any(key.startswith("rope_embed.") for key in tensors):
        width = tensors["cls_token"].shape[-1] if "cls_token" in tensors else 0
        name = DINOV3_NAMES.get(width, "vitb16")
        problem = "is a DINOv3, whose layout is not read here"
        cure = (
            f"take the same weights as hf:facebook/dinov3-{name}-pretrain-lvd1689m, after you accept the "
            "licence there and log in by `hf auth login`, or timm's copy: list_encoders('timm:*dinov3*')"
        )
    else:
        problem = "is not a DINOv2 backbone: it has no pos_embed or patch_embed"
        cure = "give the published .pth file"
    raise UserError(f"{path} {problem}; {cure}")


def convert_dinov2(
    published: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> tuple[Dinov2Model | Dinov2WithRegistersModel, ConversionReport]:
    """A transformers model with the published tensors, and a report of what went where."""
    model = _empty_model(published).to(dtype)
    own_state = model.state_dict()
    filled: dict[str, Tensor] = {}
    matched = {}
    unused = []
    for key in published:
        parts = parts_of(key, published[key])
        if parts and _all_fit(parts, own_state):
            filled |= {name: part.clone() for name, part in parts.items()}
            matched[key] = list(parts)
        else:
            unused.append(key)
    report = ConversionReport(matched, unused, sorted(set(own_state) - set(filled)))
    if not report.missing:
        model.load_state_dict(filled)
    return model.eval(), report


def _all_fit(parts: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
    return all(name in state and state[name].shape == part.shape for name, part in parts.items())


def parts_of(key: str, value: Tensor) -> dict[str, Tensor]:
    """A published tensor under transformers' names, in several parts where it is split; empty for a
    key without a place."""
    names = names_in_transformers(key)
    if not names:
        return {}
    if key == "mask_token":
        value = value.flatten(1)
    return dict(zip(names, value.chunk(len(names)), strict=True))


def names_in_transformers(key: str) -> list[str]:
    """transformers' names for a published key, several where the tensor is split in equal parts
    along the first axis; none for an unknown key."""
    stem = key
    suffix = ""
    if key.endswith((".weight", ".bias")):
        stem, _, suffix = key.rpartition(".")
        suffix = f".{suffix}"
    if stem in NAMES_OUTSIDE_BLOCKS:
        return [NAMES_OUTSIDE_BLOCKS[stem] + suffix]
    block = BLOCK.fullmatch(stem)
    if not block or block[2] not in NAMES_IN_BLOCK:
        return []
    return [f"encoder.layer.{block[1]}.{name}{suffix}" for name in NAMES_IN_BLOCK[block[2]]]


def _empty_model(published: dict[str, Tensor]) -> Dinov2Model | Dinov2WithRegistersModel:
    """A model of the shape that the published tensors have."""
    width, channels, patch, _ = published["patch_embed.proj.weight"].shape
    numbers = [int(match[1]) for match in map(BLOCK.fullmatch, published) if match]
    side = int((published["pos_embed"].shape[1] - 1) ** 0.5)
    shape = {
        "hidden_size": width,
        "num_hidden_layers": max(numbers, default=-1) + 1,
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
        "use_swiglu_ffn": any(".mlp.w12." in key for key in published),
        "mlp_ratio": 4,
    }
    if "register_tokens" in published:
        return Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**shape, num_register_tokens=published["register_tokens"].shape[1])
        )
    return Dinov2Model(Dinov2Config(**shape))
