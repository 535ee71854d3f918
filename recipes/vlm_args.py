"""The options of alignment and of supervised fine-tuning, the checks that need no data, and what
both scripts hand on. Imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from vision_core.arguments import option
from vision_core.conversation_kinds import is_stream
from vision_core.errors import UserError
from vision_core.trainer.options import TrainerOptions, check_output
from vision_core.trainer.zero_config import zero_config
from vision_core.trainer.zero_names import check_names

HELD_OUT_SCENES = ["scenes?count=200&split=held_out"]
CONVERSATIONS_HELP = (
    "sources of training data: llava:FILE, messages:FILE, parquet:GLOB, hf:NAME, scenes; docs/fine_tuning.md"
)
# The options that tell two runs apart; config.yaml beside the card has all of them.
SHOWN_ON_THE_CARD = (
    "init_from",
    "learning_rate",
    "sampler_learning_rate",
    "encoder_learning_rate",
    "lora_rank",
    "warmup_steps",
    "lr_scheduler_type",
    "weight_decay",
    "max_length",
    "packing",
    "bf16",
    "deepspeed",
    "seed",
)


@dataclass
class VlmArguments(TrainerOptions):
    """The options of both stages."""

    init_from: str | None = option(
        None,
        "the folder of a fused model, of fusion.fuse or an earlier stage; without one, small stand-ins are made",
        "model",
    )
    conversations: list[str] = option(["scenes?count=16000&turns=all"], CONVERSATIONS_HELP, "data")
    eval_conversations: list[str] = option(
        HELD_OUT_SCENES,
        "sources whose loss is measured in between, [] for none; the default holds where scenes are trained on",
        "data",
    )
    max_length: int = option(
        2048, "most tokens of a conversation, image tokens counted; a longer one is an error", "data"
    )
    per_device_train_batch_size: int = option(
        8, "conversations of one process in one forward", "optimisation"
    )
    learning_rate: float = option(1e-3, "rate of everything without a rate of its own", "optimisation")
    sampler_learning_rate: float | None = option(
        None, "rate of the aggregator's queries and of all cross-attention layers", "optimisation"
    )
    activation_checkpointing: bool = option(False, "compute activations again in the backward pass", "memory")
    packing: bool = option(
        False, "put several short conversations in one row, where each sees only itself", "memory"
    )
    group_by_length: bool = option(False, "put conversations of similar length in one batch", "memory")
    feature_cache: str | None = option(
        None, "a folder for the frozen encoders' features of each image, computed once, then read", "memory"
    )
    feature_cache_dtype: Literal["fp32", "bf16"] = option("bf16", "precision of the feature cache", "memory")
    deepspeed: str | None = option(None, "a ZeRO config, recipes/zero/zero2.json or zero3.json", "memory")

    def __post_init__(self) -> None:
        if not self.conversations:
            raise UserError("--conversations is empty; name at least one source of conversations")
        learns_from_scenes = any(text.startswith("scenes") for text in self.conversations)
        if self.eval_conversations == HELD_OUT_SCENES and not learns_from_scenes:
            # the loss on drawn scenes would say nothing of a model of something else
            self.eval_conversations = []
        if self.fp16 and self.deepspeed:
            raise UserError(
                "--fp16 is not possible with --deepspeed, whose mixed precision here is bf16; use --bf16 true"
            )
        check_streams(self)


def check_streams(args: VlmArguments) -> None:
    """Raises UserError where a stream is asked for something that needs the number of its rows, or
    all of them at once."""
    held_out = next(filter(is_stream, args.eval_conversations), None)
    if held_out is not None:
        raise UserError(
            f"--eval_conversations {held_out} is a stream, which is not measured on; leave out streaming=true"
        )
    stream = next(filter(is_stream, args.conversations), None)
    if stream is None:
        return
    if args.max_steps < 1:
        raise UserError(
            f"--conversations {stream} is a stream, whose length nobody knows; "
            "say by --max_steps how long to train"
        )
    if args.group_by_length:
        raise UserError(
            f"--group_by_length needs the length of every row, and {stream} is a stream; leave out one of the two"
        )
    if args.feature_cache:
        raise UserError(
            f"--feature_cache needs every image before the first step, and {stream} is a stream; "
            "leave out one of the two"
        )


@dataclass
class AlignArguments(VlmArguments):
    """The options of the first stage, in which the connector and the cross-attention layers in the
    language model train. The rates are those of Cambrian-1's scripts."""

    conversations: list[str] = option(["scenes?count=1000&turns=all"], CONVERSATIONS_HELP, "data")
    sampler_learning_rate: float | None = option(
        1e-4, "rate of the aggregator's queries and of all cross-attention layers", "optimisation"
    )
    warmup_steps: float = option(0.06, "steps, or below 1 their share", "optimisation")


@dataclass
class SftArguments(VlmArguments):
    """The options of the second stage, in which the language model trains too, with all its weights
    or by LoRA, and encoders where they have a rate."""

    learning_rate: float | None = option(
        None,
        "rate of everything without a rate of its own; by default 4e-5, and 1e-3 without --init_from",
        "optimisation",
    )
    encoder_learning_rate: float | None = option(
        None, "rate of the encoders; without one they are frozen", "optimisation"
    )
    lora_rank: int = option(0, "rank of LoRA in the language model; 0 trains all its weights", "model")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_learning_rate is None:
            return
        if self.lora_rank:
            raise UserError(
                "--encoder_learning_rate and --lora_rank, under which encoders are frozen; "
                "leave one of them out"
            )
        if self.feature_cache:
            raise UserError(
                "--encoder_learning_rate and --feature_cache, which is of frozen encoders; "
                "leave one of them out"
            )


def program_of(stage: str) -> str:
    """The script of a stage."""
    return f"recipes/sva_{stage}.py"


def check_stage(stage: str, args: VlmArguments) -> None:
    """Raises UserError for a ZeRO config that contradicts the options, and for an output folder that
    cannot be used."""
    if args.deepspeed:
        zero_config_of(args)
    check_output(stage, program_of(stage), args)


def zero_config_of(args: VlmArguments) -> dict[str, Any]:
    """The config of `--deepspeed`, in agreement with the other options. Raises UserError."""
    return zero_config(Path(args.deepspeed), vars(args), int(os.environ.get("WORLD_SIZE", "1")))


def complete_zero_config(args: VlmArguments) -> dict[str, Any] | None:
    """The same, with keys that DeepSpeed knows, and None without `--deepspeed`. Imports deepspeed.

    Raises UserError.
    """
    if not args.deepspeed:
        return None
    config = zero_config_of(args)
    check_names(Path(args.deepspeed), config)
    return config


def trainer_options(args: VlmArguments) -> TrainerOptions:
    """Those of the options that every program on the Trainer has."""
    return TrainerOptions(**{field.name: getattr(args, field.name) for field in fields(TrainerOptions)})


def card_settings(args: VlmArguments, learning_rate: float) -> dict[str, Any]:
    """The options that the model card shows, with the learning rate that holds."""
    options = vars(args) | {"learning_rate": learning_rate}
    return {name: options[name] for name in SHOWN_ON_THE_CARD if options.get(name) is not None}
