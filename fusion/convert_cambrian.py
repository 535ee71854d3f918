"""A checkpoint in the layout of the released Cambrian-1 models, made into one of this package,
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
MOST_OF_A_NUMBER = 2**31
SHOWN_OF_A_VALUE = 60
CONFIG_KEYS = [
    "hidden_size", "vision_hidden_size", "connector_depth", "connector_only", "image_token_len", "query_num_list",
    "num_of_vision_sampler_layers", "start_of_vision_sampler_layers", "stride_of_vision_sampler_layers",
]  # fmt: skip
# Which prompt a released model was trained with is written in its config only as the number of
# tokens in front of the image (`image_position`).
PROMPTS = {91: "cambrian_llama3", 35: "vicuna_v1", 87: "cambrian_chatml"}
RELEASED_DATA = (
    "Cambrian-1's: Tong et al. 2024 name the data of alignment and of fine-tuning. Nothing was trained here."
)
RELEASED_NOTE = "The weights are those of the released checkpoint under other names; the authors' licence holds for them, and nothing was measured here."
NUM_HEADS = 16  # of every released model; it is written in the code, not in the config
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
OUTSIDE = [
    (r"model\.mm_projector\.(.+)", r"vision_model.connector.mm_projector.\1"),
    (r"model\.mm_projector_aux_(\d+)\.(.+)", r"vision_model.connector.mm_projector_aux.\1.\2"),
    (r"model\.(vision_query|image_newline)", r"vision_model.connector.\1"),
]
LAYERS = [
    (r"model\.vision_sampler_(\d+)\.layers\.(\d+)\.(.+)", r"vision_model.connector.vision_sampler.\1.\2."),
    (r"model\.vision_sampler_layers\.(\d+)\.layers\.0\.(.+)", r"vision_sampler_layers.\1."),
]


def new_name(published: str, grid: int, group_grids: Sequence[int], encoder_grids: Sequence[int]) -> str:
    """Our name of a published tensor of the connector or of the layers in the language model, in a
    model of these grids. Raises UserError for another."""
    for pattern, replacement in LAYERS:
        match = re.fullmatch(pattern, published)
        if match:
            of_queries = grid if "vision_sampler_layers" in published else group_grids[int(match[1])]
            windowed = [encoder for encoder, side in enumerate(encoder_grids) if side > of_queries]
            return match.expand(replacement) + _within_a_layer(published, match[match.lastindex], windowed)
    for pattern, replacement in OUTSIDE:
        match = re.fullmatch(pattern, published)
        if match:
            return match.expand(replacement)
    raise _unknown(published)


def _within_a_layer(published: str, rest: str, windowed: Sequence[int]) -> str:
    """windowed: the encoders with several tokens per window, which alone have positions."""
    place = re.fullmatch(r"pos_embed_(\d+)", rest)
    if place and int(place[1]) in windowed:
        return f"positions.{windowed.index(int(place[1]))}"
    if place:
        raise UserError(
            f"{published} is of an encoder that has one token per window here; are encoders and grids those of the checkpoint?"
        )
    for pattern, replacement in WITHIN_A_LAYER:
        match = re.fullmatch(pattern, rest)
        if match:
            return match.expand(replacement)
    raise _unknown(published)


def _unknown(published: str) -> UserError:
    return UserError(f"{published} is no tensor of the published Cambrian-1 layout; nothing was written")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files. Raises UserError where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} has no *.safetensors; download the whole checkpoint")
    tensors = {}
    for file in tqdm(files, desc="reading", disable=len(files) < 2):
        check_openable(file, str(file), "download the whole checkpoint")
        with safe_open(file, framework="pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118 (not a dict)
    return tensors


def convert(
    folder: Path, encoders: Iterable[str], chat_template: str | None = None
) -> tuple[FusionVlmForConditionalGeneration, FusionProcessor]:
    """The model and processor of a folder in the published layout. Raises UserError where the two
    do not fit, tensor for tensor."""
    published = read_config(folder)
    template = named_template(chat_template or prompt_of(published))
    tensors = read_tensors(folder)
    of_language_model = {
        name: tensor for name, tensor in tensors.items() if re.fullmatch(LANGUAGE_MODEL, name)
    }
    dtype = next(iter(tensors.values())).dtype
    language_model = AutoModelForCausalLM.from_config(
        language_config(published), dtype=dtype, trust_remote_code=False
    )
    take_over(language_model, of_language_model)
    loaded = [load_and_say(text) for text in encoders]
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
    grids = connector.grid, connector.group_grids, connector.encoder_grids
    take_over(
        model,
        {new_name(name, *grids): tensor for name, tensor in tensors.items() if name not in of_language_model},
    )
    return model, processor


def read_config(folder: Path) -> dict[str, Any]:
    """A released model's config. Raises UserError where it cannot be read or says too little."""
    refuse_folder(folder, "a released Cambrian-1", ("cambrian", "language_model", "model", "unknown"))
    name, cure = str(folder / "config.json"), "name a released checkpoint's folder"
    published = parse_json(read_text(name, name, cure), f"{name} cannot be read", cure)
    if not isinstance(published, dict):
        raise UserError(f"{name} is no config of a model, an object with keys; {cure}")
    if published.get("model_type") not in list(LANGUAGE_MODELS):
        known = ", ".join(LANGUAGE_MODELS)
        said = shortened(reprlib.repr(published.get("model_type")), SHOWN_OF_A_VALUE)
        raise UserError(f"a config of type {said} is not a released Cambrian-1's; known: {known}")
    missing = [name for name in CONFIG_KEYS if name not in published]
    if missing:
        raise UserError(
            f"{folder / 'config.json'} does not say {', '.join(missing)}; it is not the config of a whole released model"
        )
    _check_numbers(published, name)
    return published


def _check_numbers(published: Mapping[str, Any], name: str) -> None:
    """Raise UserError where a config says something else than a whole number where one is
    expected."""
    for key in CONFIG_KEYS:
        values = (
            published[key]
            if key == "query_num_list" and isinstance(published[key], list)
            else [published[key]]
        )
        for value in values:
            if not isinstance(value, int) or not 0 <= value < MOST_OF_A_NUMBER:
                shown = shortened(reprlib.repr(value), SHOWN_OF_A_VALUE)
                raise UserError(
                    f"{name} says {key} = {shown}, which is no whole number of a released model; fetch the file again"
                )


def prompt_of(published: Mapping[str, Any]) -> str:
    """The name of the chat template that a released model was trained with. Raises UserError where
    its config does not tell."""
    if published["model_type"] == "cambrian_phi3":
        return "cambrian_phi3"
    position = published.get("image_position")
    if position not in list(PROMPTS):
        known = ", ".join(f"{number} ({name})" for number, name in PROMPTS.items())
        raise UserError(
            f"the config's image_position is {shortened(reprlib.repr(position), SHOWN_OF_A_VALUE)}, which tells no released prompt; known: {known}; "
            "say by --chat_template which one the model was trained with"
        )
    return PROMPTS[position]


def language_config(published: Mapping[str, Any]) -> PreTrainedConfig:
    """The language model's part of a released config."""
    model_type = LANGUAGE_MODELS[published["model_type"]]
    known = (set(AutoConfig.for_model(model_type).to_dict()) | {"rope_theta", "rope_scaling"}) - {
        "model_type",
        "architectures",
    }
    return AutoConfig.for_model(
        model_type, **{name: value for name, value in published.items() if name in known}
    )


def take_over(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the model, whose encoders, and whose language model within a larger one,
    have theirs already.

    Raises UserError where one is missing, left over or of another shape.
    """
    have_theirs = ("vision_model.encoders.", "language_model.", *model.all_tied_weights_keys)
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(have_theirs)}
    for problem, names in (
        ("has no", set(own) - set(tensors)),
        ("has, and the model has not,", set(tensors) - set(own)),
    ):
        if names:
            first = sorted(names)[0]
            raise UserError(
                f"the checkpoint {problem} {first} ({len(names)} in all); are encoders and grids those of the checkpoint?"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise UserError(
                    f"{name} is {list(tensor.shape)} in the checkpoint and {list(own[name].shape)} in the model"
                )
            own[name].copy_(tensor)


def main() -> None:
    """Read, convert, save."""
    args = parse_arguments(ConvertArguments, description=CONVERT_HELP)
    check_converting(args)
    model, processor = convert(Path(args.checkpoint), args.encoders, args.chat_template)
    work = WorkFolder.open(args.output_dir, "", config_of(args), args.resume_from_checkpoint, CONVERT)
    command = run_again("-m fusion.convert_cambrian", work.path)
    work.publish(
        lambda folder: save_fused(
            folder, model, processor, command=command, stub=True, data=RELEASED_DATA, note=RELEASED_NOTE
        )
    )
    say(f"saved {work.path}")


if __name__ == "__main__":
    run_script(main)
