"""Fuse vision encoders into one vision model, and with a language model into a vision-language model; connectors are new and untrained.

python -m fusion.fuse --encoders outputs/dinov2-1 hf:google/siglip-base-patch16-224 --hidden_size 1024
python -m fusion.fuse --encoders outputs/dinov2-1 hf:google/siglip-base-patch16-224 --language_model hf-name-or-folder --num_sva_layers 4
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from encoders.base import Encoder
from encoders.load import load_encoder
from fusion.assemble import assemble_vlm, fuse_encoders, image_processor_of, load_language_model, own_grid
from fusion.build_connector import connector_options
from fusion.chat_templates import named_template
from fusion.modeling_fused_vision import FusedVisionModel
from fusion.save import save_fused
from vision_core.arguments import arguments_to_yaml, option, parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.run_facts import run_again
from vision_core.run_folder import RunFolder, check_folder


@dataclass
class FuseArguments:
    """What is fused, and how."""

    encoders: list[str] = option(
        ["tiny:dinov2", "tiny:siglip"],
        "folders, hf:NAME, timm:NAME, open_clip:MODEL/TAG; each may end in ?layers=-2&norm=false&image_size=336&grid=24",
        "what",
    )
    language_model: str | None = option(
        None, "folder or Hub name of a causal language model, or tiny:llama; without it a vision model is saved", "what"
    )
    hidden_size: int | None = option(None, "channels of the tokens; default: the language model's, or 1024", "what")
    connector: str = option("sva", "sva, mlp, linear, channel_concat, interleaved, additive, resampler or pixel_shuffle", "connector")
    grid: int | None = option(None, "side of the grid of tokens; default: the smallest of the encoders' grids", "connector")
    newline: bool = option(True, "a learned token behind every row of tokens", "connector")
    connector_width: int | None = option(None, "channels inside an sva or resampler; default 1024", "connector")
    connector_heads: int | None = option(None, "attention heads inside an sva or resampler; default 16", "connector")
    connector_depth: int | None = option(None, "layers inside an sva or resampler; default 3", "connector")
    num_queries: int | None = option(None, "tokens of a resampler; default 64", "connector")
    group_grids: list[int] | None = option(None, "sva: grids of the query groups; default one group of --grid", "connector")
    context: Literal["first", "all"] | None = option(None, "sva: encoders whose mean is the global context; default first", "connector")
    zero_init_output: bool = option(False, "sva: layers, those in the language model too, start as the identity", "connector")
    fit: Literal["pad", "squash"] = option("pad", "images are padded to a square, or squashed", "images")
    mask_rule: Literal["exact", "published"] = option(
        "exact", "which cells an image covers: any overlap, or the released code's floors", "images"
    )
    chat_template: str | None = option(
        None,
        "plain, vicuna_v1 (LLaVA-1.5's), cambrian_llama3, cambrian_chatml, cambrian_phi3, or a .jinja file; default: the language model's own, "
        "or plain where it has none",
        "language model",
    )
    num_sva_layers: int = option(0, "sva: layers of the language model that look into the encoders again", "language model")
    sva_start: int = option(0, "the first such layer, from 0", "language model")
    sva_stride: int = option(3, "layers from one to the next", "language model")
    output_dir: str | None = option(None, "a new folder; default outputs/fused-<n>", "output")
    stub: bool = option(
        True, "a file that imports this package, by which processes that import only transformers hear what is missing", "output"
    )
    seed: int = option(0, "of the new weights", "output")


def main() -> None:
    """Load, fuse, save."""
    args = parse_arguments(FuseArguments, description=__doc__)
    check_arguments(args)
    options = options_of(args)
    chat_template = named_template(args.chat_template) if args.chat_template else None
    language_model, tokenizer = load_language_model(args.language_model) if args.language_model else (None, None)
    hidden_size = args.hidden_size or (language_model.config.get_text_config().hidden_size if language_model else 1024)
    loaded = [load_with_options(text) for text in args.encoders]
    grid = args.grid or min(own_grid(encoder) for encoder, _ in loaded)
    model, processor = fuse_encoders(
        [encoder for encoder, _ in loaded],
        hidden_size=hidden_size,
        connector=args.connector,
        connector_options=options,
        grid=grid,
        encoder_grids=[given or max(round(own_grid(encoder) / grid), 1) * grid for encoder, given in loaded],
        newline=args.newline,
        fit=args.fit,
        mask_rule=args.mask_rule,
        seed=args.seed,
    )
    describe(model)
    if language_model is not None:
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
    run = RunFolder.open(args.output_dir, "fused", arguments_to_yaml(args), can_resume=False)
    run.close()
    save_fused(run.path, model, processor, command=run_again("-m fusion.fuse", run.path), stub=args.stub)
    print(f"saved {run.path}; its README.md shows how to load it")


def check_arguments(args: FuseArguments) -> None:
    """Raises UserError for what cannot work, before models are loaded for minutes."""
    check_folder(args.output_dir, "fused", can_resume=False)
    if not args.encoders:
        raise UserError("--encoders is empty; name at least one encoder")
    for name in ("num_sva_layers", "chat_template"):
        if getattr(args, name) and args.language_model is None:
            raise UserError(f"--{name} goes with --language_model; name one or leave it out")


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


def load_with_options(text: str) -> tuple[Encoder, int | None]:
    """`SOURCE?layers=-2&norm=false&image_size=336&grid=24` as the encoder and the grid that its map is resized to, if any."""
    source, _, tail = text.partition("?")
    options: dict[str, Any] = {}
    for item in tail.split("&") if tail else []:
        name, _, value = item.partition("=")
        try:
            options[name] = ENCODER_OPTIONS[name](value)
        except KeyError:
            raise UserError(f"{text}: unknown option {name!r}; known: {', '.join(ENCODER_OPTIONS)}") from None
        except ValueError:
            raise UserError(f"{text}: {name}={value} cannot be read; write ?layers=-2&norm=false&image_size=336&grid=24") from None
    grid = options.pop("grid", None)
    return load_encoder(source, **options), grid


def _truth(value: str) -> bool:
    return {"true": True, "false": False}[value] if value in ("true", "false") else int(value) == 1


ENCODER_OPTIONS = {"layers": lambda value: [int(each) for each in value.split(",")], "norm": _truth, "image_size": int, "grid": int}


def describe(model: FusedVisionModel) -> None:
    """What a user would check before training: a line for every encoder, one for the connector."""
    config = model.config
    for encoder, grid in zip(model.encoders, config.encoder_grids, strict=True):
        own, side = own_grid(encoder), encoder.transform.size[0]
        resized = f", resized from {own} x {own}" if own != grid else ""
        print(
            f"{encoder.name}: {side} x {side} pixels -> {grid} x {grid}{resized}, {grid // config.grid} x {grid // config.grid} under each token"
        )
    tokens = image_processor_of(model).num_tokens(1, 1)
    millions = sum(parameter.numel() for parameter in model.connector.parameters()) / 1e6
    print(f"{config.connector}: {tokens} tokens of {config.hidden_size} for a square image, {millions:.2f} M new parameters")


def run() -> None:
    """The command `fuse`."""
    run_script(main)


if __name__ == "__main__":
    run()
