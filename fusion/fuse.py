"""Fuse vision encoders into one vision model, or with a language model into a vision-language model.
Connectors are new and untrained.

    python -m fusion.fuse --encoders outputs/dinov2-1 hf:google/siglip-base-patch16-224
    python -m fusion.fuse --encoders outputs/dinov2-1 timm:NAME --language_model NAME --num_sva_layers 4
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from encoders.base import Encoder
from encoders.load import check_source, load_encoder
from fusion.assemble import assemble_vlm, fuse_encoders, image_processor_of, load_language_model, own_grid
from fusion.chat_templates import named_template
from fusion.connectors.build import connector_options
from fusion.fuse_args import FUSE, FUSE_HELP, FUSED, FuseArguments, check_fusing
from fusion.image_processing_fusion import FusionImageProcessor
from fusion.modeling_fused_vision import FusedVisionModel
from fusion.save import save_fused
from vision_core.arguments import parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.printable import say
from vision_core.runs.run_facts import run_again
from vision_core.runs.work_folder import WorkFolder, config_of


def main() -> None:
    """Load the parts, fuse them, save the model."""
    args = parse_arguments(FuseArguments, description=FUSE_HELP)
    check_fusing(args)
    options = options_of(args)
    chat_template = named_template(args.chat_template) if args.chat_template else None
    check_encoders(args.encoders)
    language_model = None
    tokenizer = None
    if args.language_model:
        say_now(f"loading the language model {args.language_model} ...")
        language_model, tokenizer = load_language_model(args.language_model)
    hidden_size = args.hidden_size or default_hidden_size(language_model)
    model, processor = fuse(args, options, hidden_size)
    describe(model)
    if language_model is not None:
        say_now(f"adding the language model, with {args.num_sva_layers} layers that look again ...")
        model, processor = assemble_vlm(
            model,
            language_model,
            tokenizer,
            chat_template=chat_template,
            num_sva_layers=args.num_sva_layers,
            sva_start=args.sva_start,
            sva_stride=args.sva_stride,
            zero_init_sva=args.zero_init_output,
            seed=args.seed,
        )
    work = WorkFolder.open(args.output_dir, FUSED, config_of(args), args.resume_from_checkpoint, FUSE)
    say_now(f"writing {work.path} ...")
    command = run_again("-m fusion.fuse", work.path)
    work.publish(lambda folder: save_fused(folder, model, processor, command=command, stub=args.stub))
    say(f"saved {work.path}; its README.md shows how to load it")


def fuse(
    args: FuseArguments, options: dict[str, Any], hidden_size: int
) -> tuple[FusedVisionModel, FusionImageProcessor]:
    """Load the encoders and fuse them; options: the connector's."""
    encoders = list(map(load_and_say, args.encoders))
    say_now(f"making the connector {args.connector} ...")
    return fuse_encoders(
        encoders,
        hidden_size=hidden_size,
        connector=args.connector,
        connector_options=options,
        grid=args.grid,
        newline=args.newline,
        fit=args.fit,
        mask_rule=args.mask_rule,
        seed=args.seed,
    )


def default_hidden_size(language_model: PreTrainedModel | None) -> int:
    """The hidden size of the language model that will read the tokens, or 1024 without one."""
    if language_model is None:
        return 1024
    return language_model.config.get_text_config().hidden_size


def say_now(text: str) -> None:
    """Say on stderr what begins now; each of these steps can take minutes."""
    say(text, file=sys.stderr)


def check_encoders(texts: Sequence[str]) -> None:
    """Raise UserError where one of the texts names nothing, before the first encoder is loaded for
    minutes."""
    for text in texts:
        check_source(text)


def options_of(args: FuseArguments) -> dict[str, Any]:
    """The connector's options that were given. Raises UserError for an option that it lacks."""
    given = {
        "width": args.connector_width,
        "num_heads": args.connector_heads,
        "depth": args.connector_depth,
        "num_queries": args.num_queries,
        "group_grids": args.group_grids,
        "context": args.context,
        "zero_init_output": args.zero_init_output or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    unknown = sorted(set(given) - set(connector_options(args.connector)))
    if unknown:
        raise UserError(f"the connector {args.connector} has no {', '.join(unknown)}; leave it out")
    return given


def load_and_say(text: str) -> Encoder:
    """The encoder that a text names; what is being loaded is said first."""
    say_now(f"loading the encoder {text} ...")
    return load_encoder(text)


def describe(model: FusedVisionModel) -> None:
    """Say what a user would check before training: a line for every encoder, one for the
    connector."""
    config = model.config
    for encoder, grid in zip(model.encoders, config.encoder_grids, strict=True):
        own = own_grid(encoder)
        side = encoder.transform.size[0]
        resized = f", resized from {own} x {own}" if own != grid else ""
        under = grid // config.grid
        say(
            f"{encoder.name}: {side} x {side} pixels -> {grid} x {grid}{resized}, "
            f"{under} x {under} under each token"
        )
    tokens = image_processor_of(model).num_tokens(1, 1)
    parameters = sum(parameter.numel() for parameter in model.connector.parameters())
    say(
        f"{config.connector}: {tokens} tokens of {config.hidden_size} for a square image, "
        f"{parameters / 1e6:.2f} M new parameters"
    )


def run() -> None:
    """Run the command `fuse`."""
    run_script(main)


if __name__ == "__main__":
    run()
