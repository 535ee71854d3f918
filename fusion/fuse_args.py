"""The options of `python -m fusion.fuse` and `python -m fusion.convert_cambrian`, and the checks
that need no model.

This module imports nothing heavy. Python imports a package before a program that lies in it, so the
package itself makes these programs look at their options first.
"""

from dataclasses import dataclass
from typing import Literal

from vision_core.arguments import option
from vision_core.errors import UserError
from vision_core.processes.launchers import is_program
from vision_core.runs.work_folder import check_work, config_of, resume_option
from vision_core.start import look_first

FUSE = "fusion.fuse"
FUSE_COMMAND = "fuse"
CONVERT = "fusion.convert_cambrian"
FUSED = "fused"  # name of the default folder
FUSE_HELP = """\
Fuse vision encoders into one vision model, or with a language model into a vision-language model. Connectors are new \
and untrained.

    python -m fusion.fuse --encoders outputs/dinov2-1 hf:google/siglip-base-patch16-224
    python -m fusion.fuse --encoders outputs/dinov2-1 timm:NAME --language_model NAME --num_sva_layers 4
"""
CONVERT_HELP = """\
Convert a checkpoint in the layout of the released Cambrian-1 models into a model of this package, tensor by tensor.

    python -m fusion.convert_cambrian --checkpoint cambrian-8b --output_dir outputs/cambrian-8b

A released checkpoint holds the connector and the language model; the encoders come from where they were published.
"""
# The four encoders of the released models with their sizes, layers and grids, in the order in which
# they were trained.
RELEASED_ENCODERS = [
    "open_clip:ViT-SO400M-14-SigLIP-384/webli?grid=24",
    "hf:openai/clip-vit-large-patch14-336?layers=-2&norm=false&grid=24",
    "hf:facebook/dinov2-giant?image_size=378&grid=24&position_offset=0.1",
    "open_clip:convnext_xxlarge/laion2b_s34b_b82k_augreg_soup"
    "?layers=1,2,3,4&norm=false&image_size=1024&grid=96",
]


@dataclass
class FuseArguments:
    """What is fused, and how."""

    encoders: list[str] = option(
        ["tiny:dinov2", "tiny:siglip"],
        "folders, hf:NAME, timm:NAME, open_clip:MODEL/TAG; each may end in "
        "?layers=-2&norm=false&image_size=336&grid=24",
        "what",
    )
    language_model: str | None = option(
        None,
        "folder or Hub name of a causal language model, or tiny:llama; without it a vision model is saved",
        "what",
    )
    hidden_size: int | None = option(
        None, "channels of the tokens; default: the language model's, or 1024", "what"
    )
    connector: str = option(
        "sva",
        "sva, mlp, linear, channel_concat, interleaved, additive, resampler or pixel_shuffle",
        "connector",
    )
    grid: int | None = option(
        None, "side of the grid of tokens; default: the smallest of the encoders' grids", "connector"
    )
    newline: bool = option(True, "a learned token behind every row of tokens", "connector")
    connector_width: int | None = option(
        None, "channels inside an sva or resampler; default 1024", "connector"
    )
    connector_heads: int | None = option(
        None, "attention heads inside an sva or resampler; default 16", "connector"
    )
    connector_depth: int | None = option(None, "layers inside an sva or resampler; default 3", "connector")
    num_queries: int | None = option(None, "tokens of a resampler; default 64", "connector")
    group_grids: list[int] | None = option(
        None, "sva: grids of the query groups; default one group of --grid", "connector"
    )
    context: Literal["first", "all"] | None = option(
        None, "sva: encoders whose mean is the global context; default first", "connector"
    )
    zero_init_output: bool = option(
        False, "sva: layers, those in the language model too, start as the identity", "connector"
    )
    fit: Literal["pad", "squash"] = option("pad", "images are padded to a square, or squashed", "images")
    mask_rule: Literal["exact", "published"] = option(
        "exact", "which cells an image covers: any overlap, or the released code's floors", "images"
    )
    chat_template: str | None = option(
        None,
        "plain, vicuna_v1 (of LLaVA-1.5), cambrian_llama3, cambrian_chatml, cambrian_phi3, or a .jinja file; "
        "default: the language model's own, or plain where it has none",
        "language model",
    )
    num_sva_layers: int = option(
        0, "sva: layers of the language model that look into the encoders again", "language model"
    )
    sva_start: int = option(0, "the first such layer, from 0", "language model")
    sva_stride: int = option(3, "layers from one to the next", "language model")
    output_dir: str | None = option(None, "a new folder; default outputs/fused-<n>", "output")
    resume_from_checkpoint: str | None = resume_option("output")
    stub: bool = option(
        True,
        "add a file that imports this package, so that processes that import only transformers are told "
        "what is missing",
        "output",
    )
    seed: int = option(0, "seed of the new weights", "output")


@dataclass
class ConvertArguments:
    """What is converted, and where it goes."""

    checkpoint: str = option("", "folder with config.json, *.safetensors and a tokenizer", "what")
    encoders: list[str] = option(
        RELEASED_ENCODERS,
        "in the order in which the checkpoint was trained; options as for fusion.fuse",
        "what",
    )
    chat_template: str | None = option(
        None,
        "as for fusion.fuse; default: the prompt that the released model was trained with, which its config tells",
        "what",
    )
    output_dir: str = option("", "a new folder", "output")
    resume_from_checkpoint: str | None = resume_option("output")


def look_first_as_program() -> None:
    """End a process that is one of these programs if its options are `--help` or wrong; do nothing
    in any other process."""
    if is_program(FUSE, FUSE_COMMAND):
        look_first(FuseArguments, FUSE_HELP, check_fusing, program=f"python -m {FUSE}")
    elif is_program(CONVERT):
        look_first(ConvertArguments, CONVERT_HELP, check_converting, program=f"python -m {CONVERT}")


def check_fusing(args: FuseArguments) -> None:
    """Raise UserError for what cannot work, before models are loaded for minutes."""
    check_work(args.output_dir, FUSED, config_of(args), args.resume_from_checkpoint, FUSE)
    if not args.encoders:
        raise UserError("--encoders is empty; name at least one encoder")
    for name in ("num_sva_layers", "chat_template"):
        if getattr(args, name) and args.language_model is None:
            raise UserError(f"--{name} goes with --language_model; name one or leave it out")


def check_converting(args: ConvertArguments) -> None:
    """Raise UserError for options that are missing, and for a folder with anything in it."""
    if not args.checkpoint or not args.output_dir:
        raise UserError("both --checkpoint FOLDER and --output_dir FOLDER are needed")
    check_work(args.output_dir, "", config_of(args), args.resume_from_checkpoint, CONVERT)
