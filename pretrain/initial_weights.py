"""Loads `--init_from`: the weights of a DINOv2 that people have are fitted to the backbone of a new
run, with a report."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from encoders import load_encoder
from encoders.adapters.dinov2_weights import HEAD_WIDTH, parts_of, read_pth
from encoders.adapters.transformers_encoder import TransformersEncoder, load_backbone, read_config
from encoders.saved import is_saved_encoder
from encoders.source_text import split_source
from pretrain.backbone import Backbone
from vision_core.errors import UserError
from vision_core.hub import hub_or_cache
from vision_core.runs.folder_kinds import folder_kind, refuse_folder

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
FOLDERS_OF_OTHER_LIBRARIES = ("timm", "open_clip")
# Kinds of folders that are looked into, or refused by their reader.
FOLDERS_TO_READ = ("encoder", "saved_encoder", "weights", "model", "unknown")
POSITIONS = "embeddings.position_embeddings"
REGISTERS = "embeddings.register_tokens"
PATCHES = "embeddings.patch_embeddings.projection.weight"
MAY_BE_FRESH = (REGISTERS, "embeddings.mask_token")  # some checkpoints have none


@dataclass(frozen=True)
class FoundWeights:
    """A backbone's tensors under transformers' names, the names of what else the file holds, and the
    number of heads, None where the file does not say it."""

    tensors: dict[str, Tensor]
    unused: list[str]
    num_heads: int | None


@dataclass
class LoadReport:
    """What became of every tensor of the backbone, and of those of the source that have no
    place."""

    source: str
    loaded: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for people: the counts, then each tensor that is not simply the source's."""
        total = len(self.loaded) + len(self.resized)
        counts = (
            f"{len(self.loaded)} as they are, {len(self.resized)} resized, "
            f"{len(self.fresh)} fresh, {len(self.unused)} unused"
        )
        lines = [f"{total} backbone tensors loaded from {self.source}: {counts}"]
        lines += [f"  resized: {name}, {how}" for name, how in self.resized.items()]
        lines += [f"  fresh: {name}, {why}" for name, why in self.fresh.items()]
        return lines + self._unused_lines()

    def _unused_lines(self) -> list[str]:
        """One line for each part of the source, such as its heads."""
        parts: dict[str, int] = {}
        for name in self.unused:
            part = ".".join(name.split(".")[:2])
            parts[part] = parts.get(part, 0) + 1
        return [
            f"  unused: {part}, {count} {'tensors' if count > 1 else 'tensor'}"
            for part, count in parts.items()
        ]


@torch.no_grad()
def load_backbone_weights(backbone: Backbone, source: str) -> list[str]:
    """Copy the weights of `source` into `backbone`; returns lines that say what became of every
    tensor.

    Args:
        source: a folder (of a run, of transformers, of `save_encoder`), `hf:NAME` or a name on the
            Hub, `dinov2_pth:FILE` or a file of facebookresearch/dinov2: the published backbone, a
            `teacher_checkpoint.pth`, or a training state, whose teacher is taken.

    Where shapes differ, positions are resampled, the patch projection is fitted to the number of
    channels, and registers are taken as far as both have them. Any other difference raises
    `UserError`.
    """
    found = find_weights(source)
    _refuse_other_heads(source, found.num_heads, backbone.config.num_attention_heads)
    report = LoadReport(source)
    state = fitted_state(backbone, found.tensors, report)
    report.unused += found.unused
    backbone.load_state_dict(state)
    return report.lines() + _doubts(found, backbone)


def _refuse_other_heads(source: str, num_heads: int | None, own_heads: int) -> None:
    """Raises UserError where the source is known to have another number of heads."""
    if num_heads not in (None, own_heads):
        raise UserError(
            f"init_from={source}: it has {num_heads} heads, the run {own_heads}; "
            f"give --num_attention_heads {num_heads}"
        )


def _doubts(found: FoundWeights, backbone: Backbone) -> list[str]:
    """A note where the source does not say its heads and the run differs from all published models."""
    width, heads = backbone.config.hidden_size, backbone.config.num_attention_heads
    if found.num_heads is None and width != heads * HEAD_WIDTH:
        return [
            f"  note: the file does not say its heads; published ones have a width of {HEAD_WIDTH}, "
            f"the run's {width // heads}"
        ]
    return []


def find_weights(source: str) -> FoundWeights:
    """The backbone that `source` names. Raises UserError where there is none, and for options, which
    say how an encoder is used and not which weights it has."""
    given = split_source(source)[1]
    if given:
        raise UserError(f"init_from={source}: {next(iter(given))} does not change the weights; leave it out")
    if os.path.isdir(source):
        _check_kind(Path(source))
    try:
        if source.startswith("dinov2_pth:") or os.path.isfile(source):
            return _of_pth(Path(source.removeprefix("dinov2_pth:")))
        if is_saved_encoder(source):
            return _of_saved_encoder(source)
        with hub_or_cache(source, f"init_from={source}"):
            return _of_transformers(source.removeprefix("hf:"))
    except UserError as error:
        raise UserError(f"init_from={source}: {error}") from None


def _check_kind(folder: Path) -> None:
    """Raises UserError for a folder that holds no DINOv2 under names that are known here."""
    kind = folder_kind(folder)
    if kind.name in FOLDERS_OF_OTHER_LIBRARIES:
        raise UserError(
            f"init_from={folder} is {kind.is_a}, whose weights have other names; give the same model of "
            "transformers, such as hf:facebook/dinov2-small, or its published file as dinov2_pth:FILE"
        )
    refuse_folder(folder, "an encoder", FOLDERS_TO_READ)


def fitted_state(backbone: Backbone, tensors: dict[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """A state of the backbone: its own tensors replaced by those of the source. `report` keeps what
    becomes of each."""
    state = backbone.state_dict()
    wrong: list[str] = []
    for name, own in state.items():
        given = tensors.get(name)
        if given is None and name in MAY_BE_FRESH:
            report.fresh[name] = "which the source does not have"
        elif given is None:
            wrong.append(name)
        elif given.shape == own.shape:
            state[name] = given
            report.loaded.append(name)
        else:
            fitted = fit_tensor(name, given, own, report)
            if fitted is None:
                wrong.append(name)
            else:
                state[name] = fitted
    for name in tensors:
        if name not in state:
            unplaced = report.unused if name in MAY_BE_FRESH else wrong
            unplaced.append(name)
    if wrong:
        raise UserError(_wrong_text(report.source, wrong))
    return state


def _wrong_text(source: str, names: list[str]) -> str:
    return (
        f"init_from={source}: {len(names)} tensors do not fit, first {names[:3]}; give the run the "
        "checkpoint's hidden_size, num_hidden_layers, patch_size and ffn"
    )


def resize_position_embeddings(table: Tensor, side: int) -> Tensor:
    """Resize a `[1, 1 + M*M, D]` table (CLS first) to `[1, 1 + side*side, D]`: bicubic, in float32,
    CLS untouched."""
    cls, grid = table[:, :1], table[:, 1:]
    old = math.isqrt(grid.shape[1])
    grid = grid.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=side < old)
    return torch.cat([cls, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1).to(cls.dtype)], dim=1)


def fit_channels(projection: Tensor, num_channels: int) -> Tensor:
    """`[D, C, p, p]` for another number of channels: each gets the mean over C, times C /
    num_channels.

    An image with the same values in all channels has the same patch embedding before and after.
    """
    old = projection.shape[1]
    mean = projection.float().mean(1, keepdim=True) * (old / num_channels)
    return mean.expand(-1, num_channels, -1, -1).to(projection.dtype).contiguous()


def fit_tensor(name: str, given: Tensor, own: Tensor, report: LoadReport) -> Tensor | None:
    """The source's tensor in the run's shape, or None where no rule makes it so."""
    if name == POSITIONS and given.shape[-1] == own.shape[-1]:
        old = math.isqrt(given.shape[1] - 1)
        new = math.isqrt(own.shape[1] - 1)
        report.resized[name] = f"position embeddings resized from {old} x {old} to {new} x {new} (bicubic)"
        return resize_position_embeddings(given, new)
    if name == PATCHES and (given.shape[0], *given.shape[2:]) == (own.shape[0], *own.shape[2:]):
        old = given.shape[1]
        new = own.shape[1]
        report.resized[name] = (
            f"from {old} to {new} channels: each has the mean over the {old}, times {old} / {new}"
        )
        return fit_channels(given, new)
    if name == REGISTERS and given.shape[-1] == own.shape[-1]:
        old = given.shape[1]
        new = own.shape[1]
        shared = min(old, new)
        report.resized[name] = f"the first {shared} of {old} are taken, {new - shared} start afresh"
        return torch.cat([given[:, :shared].to(own.dtype), own[:, shared:]], dim=1)
    return None


def _of_pth(path: Path) -> FoundWeights:
    tensors: dict[str, Tensor] = {}
    unused: list[str] = []
    for key, value in read_pth(path).items():
        parts = parts_of(key, value)
        tensors |= parts
        if not parts:
            unused.append(key)
    return FoundWeights(tensors, unused, None)


def _of_saved_encoder(source: str) -> FoundWeights:
    encoder = load_encoder(source)
    if not isinstance(encoder, TransformersEncoder) or encoder.model.config.model_type not in MODEL_TYPES:
        raise UserError(
            f"it is not a DINOv2 of transformers ({encoder.library}); give one of {' or '.join(MODEL_TYPES)}"
        )
    return FoundWeights(encoder.model.state_dict(), [], encoder.model.config.num_attention_heads)


def _of_transformers(name: str) -> FoundWeights:
    config = read_config(name)
    if config.model_type not in MODEL_TYPES:
        raise UserError(
            f"it is a {config.model_type}, and the run trains a DINOv2; give one of {' or '.join(MODEL_TYPES)}"
        )
    model = load_backbone(name, config)
    return FoundWeights(model.state_dict(), [], config.num_attention_heads)
