"""Convert a checkpoint in the layout of the released Cambrian-1 models into a model of this package,
tensor by tensor.

    python -m fusion.convert_cambrian --checkpoint cambrian-8b --output_dir outputs/cambrian-8b

A released checkpoint holds the connector and the language model; the encoders come from where they
were published.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from fusion.assemble import assemble_vlm, fuse_encoders
from fusion.chat_templates import named_template
from fusion.fuse import load_and_say
from fusion.fuse_args import CONVERT, CONVERT_HELP, ConvertArguments, check_converting
from fusion.modeling_fused_vision import FusedVisionModel
from fusion.modeling_fusion_vlm import FusionVlmForConditionalGeneration
from fusion.processing_fusion import FusionProcessor
from fusion.save import save_fused
from vision_core.arguments import parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.files.text_files import check_openable, parse_json, read_text
from vision_core.printable import say, shortened
from vision_core.runs.folder_kinds import refuse_folder
from vision_core.runs.run_facts import run_again
from vision_core.runs.work_folder import WorkFolder, config_of

LANGUAGE_MODELS = {"cambrian_llama": "llama", "cambrian_phi3": "phi3"}
LANGUAGE_MODEL = r"model\.(embed_tokens|layers|norm)\..+|lm_head\.weight"  # names of its tensors
NUMBER_LIMIT = 2**31  # no number of a config is as large
VALUE_LENGTH = 60  # characters of a wrong value that an error shows
CONFIG_KEYS = [
    "hidden_size",
    "vision_hidden_size",
    "connector_depth",
    "connector_only",
    "image_token_len",
    "query_num_list",
    "num_of_vision_sampler_layers",
    "start_of_vision_sampler_layers",
    "stride_of_vision_sampler_layers",
]
# A released config tells the prompt that the model was trained with only by the number of tokens in
# front of the image (`image_position`).
PROMPTS = {91: "cambrian_llama3", 35: "vicuna_v1", 87: "cambrian_chatml"}
RELEASED_DATA = (
    "Cambrian-1's: Tong et al. 2024 name the data of alignment and of fine-tuning. Nothing was trained here."
)
RELEASED_NOTE = (
    "The weights are those of the released checkpoint under other names; the authors' licence holds for them, "
    "and nothing was measured here."
)
NUM_HEADS = 16  # in every released model; it is written in their code, not in the config

# Patterns of published names, and the names here that replace them.
WITHIN_A_LAYER = [
    (r"(proj_context\.weight|proj_in\.weight|norm\.(?:weight|bias))", r"\1"),
    (r"proj_out\.linear_1\.weight", "proj_out.0.weight"),
    (r"proj_out\.linear_2\.weight", "proj_out.2.weight"),
    (r"cross_attn\.q_proj\.0\.(weight|bias)", r"attention.q_norm.\1"),
    (r"cross_attn\.q_proj\.1\.weight", "attention.q_proj.weight"),
    (r"cross_attn\.([kv])_proj_(\d+)\.0\.(weight|bias)", r"attention.\1_norms.\2.\3"),
    (r"cross_attn\.([kv])_proj_(\d+)\.1\.weight", r"attention.\1_projs.\2.weight"),
    (r"cross_attn\.o_proj\.weight", "attention.o_proj.weight"),
]
OUTSIDE_OF_LAYERS = [
    (r"model\.mm_projector\.(.+)", r"vision_model.connector.mm_projector.\1"),
    (r"model\.mm_projector_aux_(\d+)\.(.+)", r"vision_model.connector.mm_projector_aux.\1.\2"),
    (r"model\.(vision_query|image_newline)", r"vision_model.connector.\1"),
]
LAYERS = [
    (r"model\.vision_sampler_(\d+)\.layers\.(\d+)\.(.+)", r"vision_model.connector.vision_sampler.\1.\2."),
    (r"model\.vision_sampler_layers\.(\d+)\.layers\.0\.(.+)", r"vision_sampler_layers.\1."),
]


def new_name(published: str, grid: int, group_grids: Sequence[int], encoder_grids: Sequence[int]) -> str:
    """The name here of a published tensor of the connector, or of the layers in the language model,
    in a model of these grids.

    Raises UserError for the name of any other tensor.
    """
    for pattern, replacement in LAYERS:
        match = re.fullmatch(pattern, published)
        if match:
            query_grid = grid if "vision_sampler_layers" in published else group_grids[int(match[1])]
            windowed = [encoder for encoder, side in enumerate(encoder_grids) if side > query_grid]
            return match.expand(replacement) + _within_a_layer(published, match[match.lastindex], windowed)
    for pattern, replacement in OUTSIDE_OF_LAYERS:
        match = re.fullmatch(pattern, published)
        if match:
            return match.expand(replacement)
    raise _unknown_tensor(published)


def _within_a_layer(published: str, rest: str, windowed: Sequence[int]) -> str:
    """The name within a layer; windowed: the encoders with several tokens in a window, which alone
    have positions."""
    place = re.fullmatch(r"pos_embed_(\d+)", rest)
    if place and int(place[1]) in windowed:
        return f"positions.{windowed.index(int(place[1]))}"
    if place:
        raise UserError(
            f"{published} is of an encoder that has one token per window here; "
            "are encoders and grids those of the checkpoint?"
        )
    for pattern, replacement in WITHIN_A_LAYER:
        match = re.fullmatch(pattern, rest)
        if match:
            return match.expand(replacement)
    raise _unknown_tensor(published)


def _unknown_tensor(published: str) -> UserError:
    return UserError(f"{published} is not a tensor of the published Cambrian-1 layout; nothing was written")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder's safetensors files. Raises UserError where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no *.safetensors; download the whole checkpoint")
    tensors = {}
    for file in tqdm(files, desc="reading", disable=len(files) < 2):
        check_openable(file, str(file), "download the whole checkpoint")
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                tensors[name] = opened.get_tensor(name)
    return tensors


def convert(
    folder: Path, encoders: Iterable[str], chat_template: str | None = None
) -> tuple[FusionVlmForConditionalGeneration, FusionProcessor]:
    """Convert a folder in the published layout into a model and its processor.

    Raises UserError where a tensor does not fit.
    """
    published = read_released_config(folder)
    template = named_template(chat_template or prompt_of(published))
    tensors = read_tensors(folder)
    dtype = next(iter(tensors.values())).dtype
    language_names = [name for name in tensors if re.fullmatch(LANGUAGE_MODEL, name)]
    language_tensors = {name: tensors.pop(name) for name in language_names}
    language_model = AutoModelForCausalLM.from_config(
        language_config(published), dtype=dtype, trust_remote_code=False
    )
    copy_tensors(language_model, language_tensors)
    vision_model = fuse_released_encoders(published, encoders)
    model, processor = assemble_vlm(
        vision_model,
        language_model,
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        chat_template=template,
        num_sva_layers=0 if published["connector_only"] else published["num_of_vision_sampler_layers"],
        sva_start=published["start_of_vision_sampler_layers"],
        sva_stride=published["stride_of_vision_sampler_layers"],
    )
    connector = vision_model.connector
    renamed = {}
    for name, tensor in tensors.items():
        own_name = new_name(name, connector.grid, connector.group_grids, connector.encoder_grids)
        renamed[own_name] = tensor
    copy_tensors(model, renamed)
    return model, processor


def fuse_released_encoders(published: Mapping[str, Any], encoders: Iterable[str]) -> FusedVisionModel:
    """Load the encoders, and make the connector that a released config describes."""
    loaded = list(map(load_and_say, encoders))
    grid = math.isqrt(int(published["image_token_len"]))
    vision_model, _ = fuse_encoders(
        loaded,
        hidden_size=published["hidden_size"],
        connector_options={
            "width": published["vision_hidden_size"],
            "depth": published["connector_depth"],
            "num_heads": NUM_HEADS,
            "group_grids": [math.isqrt(int(count)) for count in published["query_num_list"]],
        },
        grid=grid,
        encoder_grids=[encoder.fusion_grid or grid for encoder in loaded],
        mask_rule="published",
    )
    return vision_model


def read_released_config(folder: Path) -> dict[str, Any]:
    """Read a released model's config. Raises UserError where it cannot be read or lacks a key."""
    refuse_folder(folder, "a released Cambrian-1", ("cambrian", "language_model", "model", "unknown"))
    path = str(folder / "config.json")
    cure = "name a released checkpoint's folder"
    published = parse_json(read_text(path, path, cure), f"{path} cannot be read", cure)
    if not isinstance(published, dict):
        raise UserError(f"{path} is not the config of a model, an object with keys; {cure}")
    if published.get("model_type") not in list(LANGUAGE_MODELS):
        known = ", ".join(LANGUAGE_MODELS)
        found = _shown(published.get("model_type"))
        raise UserError(f"a config of type {found} is not a released Cambrian-1's; known: {known}")
    missing = [key for key in CONFIG_KEYS if key not in published]
    if missing:
        raise UserError(
            f"{path} does not say {', '.join(missing)}; it is not the config of a complete released model"
        )
    for key in CONFIG_KEYS:
        _check_numbers(published[key], key, path)
    return published


def _check_numbers(value: Any, key: str, path: str) -> None:
    """Raise UserError where a config holds something else than a whole number, or than a list of
    them for `query_num_list`."""
    is_list = key == "query_num_list" and isinstance(value, list)
    for number in value if is_list else [value]:
        if not isinstance(number, int) or not 0 <= number < NUMBER_LIMIT:
            raise UserError(
                f"{path} says {key} = {_shown(number)}, which is not a number of a released model; "
                "fetch the file again"
            )


def _shown(value: Any) -> str:
    """A value of a config, as an error shows it."""
    return shortened(reprlib.repr(value), VALUE_LENGTH)


def prompt_of(published: Mapping[str, Any]) -> str:
    """The name of the chat template that a released model was trained with.

    Raises UserError where the config does not tell.
    """
    if published["model_type"] == "cambrian_phi3":
        return "cambrian_phi3"
    position = published.get("image_position")
    if position not in list(PROMPTS):
        known = ", ".join(f"{number} ({name})" for number, name in PROMPTS.items())
        raise UserError(
            f"the config's image_position is {_shown(position)}, which tells no released prompt; "
            f"known: {known}; say by --chat_template which one the model was trained with"
        )
    return PROMPTS[position]


def language_config(published: Mapping[str, Any]) -> PreTrainedConfig:
    """Make the config of the language model from the keys of a released config that belong to it."""
    model_type = LANGUAGE_MODELS[published["model_type"]]
    known = {*AutoConfig.for_model(model_type).to_dict(), "rope_theta", "rope_scaling"}
    known -= {"model_type", "architectures"}
    values = {name: value for name, value in published.items() if name in known}
    return AutoConfig.for_model(model_type, **values)


def copy_tensors(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the model, but not into its encoders, nor into the language model of a
    larger one: these have their tensors already.

    Raises UserError where a tensor is missing, left over or of another shape.
    """
    filled = ("vision_model.encoders.", "language_model.", *model.all_tied_weights_keys)
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(filled)}
    _refuse_names("has no", set(own) - set(tensors))
    _refuse_names("has, and the model has not,", set(tensors) - set(own))
    with torch.no_grad():
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise UserError(
                    f"{name} is {list(tensor.shape)} in the checkpoint and {list(own[name].shape)} in the model"
                )
            own[name].copy_(tensor)


def _refuse_names(problem: str, names: set[str]) -> None:
    if names:
        raise UserError(
            f"the checkpoint {problem} {min(names)} ({len(names)} in all); "
            "are encoders and grids those of the checkpoint?"
        )


def main() -> None:
    """Read a released checkpoint, convert it, save the model."""
    args = parse_arguments(ConvertArguments, description=CONVERT_HELP)
    check_converting(args)
    model, processor = convert(Path(args.checkpoint), args.encoders, args.chat_template)
    work = WorkFolder.open(args.output_dir, "", config_of(args), args.resume_from_checkpoint, CONVERT)
    command = run_again("-m fusion.convert_cambrian", work.path)

    def save(folder: Path) -> None:
        save_fused(
            folder, model, processor, command=command, stub=True, data=RELEASED_DATA, note=RELEASED_NOTE
        )

    work.publish(save)
    say(f"saved {work.path}")


if __name__ == "__main__":
    run_script(main)
