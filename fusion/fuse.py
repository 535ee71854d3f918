"""Fuse vision encoders into one vision model, and with a language model into a vision-language
model; connectors are new and untrained.

python -m fusion.fuse --encoders outputs/dinov2-1 hf:google/siglip-base-patch16-224 --hidden_size
1024 python -m fusion.fuse --encoders outputs/dinov2-1 hf:google/siglip-base-patch16-224
--language_model hf-name-or-folder --num_sva_layers 4
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from encoders.base import Encoder
from encoders.load import check_source, load_encoder
from fusion.assemble import assemble_vlm, fuse_encoders, image_processor_of, load_language_model, own_grid
from fusion.chat_templates import named_template
from fusion.connectors.build import connector_options
from fusion.fuse_args import FUSE, FUSE_HELP, FUSED, FuseArguments, check_fusing
from fusion.modeling_fused_vision import FusedVisionModel
from fusion.save import save_fused
from vision_core.arguments import parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.printable import say
from vision_core.runs.run_facts import run_again
from vision_core.runs.work_folder import WorkFolder, config_of


def main() -> None:
    """Load, fuse, save."""
    args = parse_arguments(FuseArguments, description=FUSE_HELP)
    check_fusing(args)
    options = options_of(args)
    chat_template = named_template(args.chat_template) if args.chat_template else None
    check_encoders(args.encoders)
    language_model, tokenizer = None, None
    if args.language_model:
        say_now(f"loading the language model {args.language_model} ...")
        language_model, tokenizer = load_language_model(args.language_model)
    hidden_size = args.hidden_size or (
        language_model.config.get_text_config().hidden_size if language_model else 1024
    )
    encoders = [load_and_say(text) for text in args.encoders]
    say_now(f"making the connector {args.connector} ...")
    model, processor = fuse_encoders(
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
    describe(model)
    if language_model is not None:
        say_now(
            f"putting the language model behind it, with {args.num_sva_layers} layers that look again ..."
        )
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


def say_now(text: str) -> None:
    """What is done now; each of it can take minutes."""
    say(text, file=sys.stderr)


def check_encoders(texts: Sequence[str]) -> None:
    """Raises UserError where one of them names nothing, before the first is loaded for minutes."""
    for text in texts:
        check_source(text)


def options_of(args: FuseArguments) -> dict[str, Any]:
    """The connector's options that were given. Raises UserError for one that it does not have."""
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
    """What a user would check before training: a line for every encoder, one for the connector."""
    config = model.config
    for encoder, grid in zip(model.encoders, config.encoder_grids, strict=True):
        own, side = own_grid(encoder), encoder.transform.size[0]
        resized = f", resized from {own} x {own}" if own != grid else ""
        say(
            f"{encoder.name}: {side} x {side} pixels -> {grid} x {grid}{resized}, {grid // config.grid} x {grid // config.grid} under each token"
        )
    tokens = image_processor_of(model).num_tokens(1, 1)
    millions = sum(parameter.numel() for parameter in model.connector.parameters()) / 1e6
    say(
        f"{config.connector}: {tokens} tokens of {config.hidden_size} for a square image, {millions:.2f} M new parameters"
    )


def run() -> None:
    """The command `fuse`."""
    run_script(main)


if __name__ == "__main__":
    run()
