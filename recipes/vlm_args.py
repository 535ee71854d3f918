"""The options of connector training and of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vision_core.arguments import option
from vision_core.errors import UserError


@dataclass
class VlmArguments:
    """What both stages ask for; names are those of transformers' TrainingArguments where it has them."""

    init_from: str | None = option(None, "a folder of fusion.fuse or of an earlier stage; default: tiny models, fused on the spot", "model")
    conversations: list[str] = option(
        ["scenes?count=2000"], "what to learn from; llava:FILE, messages:FILE, parquet:GLOB, hf:NAME, scenes", "data"
    )
    eval_conversations: list[str] = option(
        ["scenes?count=200&split=held_out"], "what the loss is measured on in between; [] for none", "data"
    )
    max_length: int = option(2048, "tokens of a conversation, image tokens counted; longer ones are an error", "data")
    per_device_train_batch_size: int = option(8, "conversations per process and step", "optimisation")
    gradient_accumulation_steps: int = option(1, "batches to one step", "optimisation")
    num_train_epochs: float = option(1.0, "passes over the data", "optimisation")
    max_steps: int = option(-1, "steps, in place of epochs", "optimisation")
    learning_rate: float = option(1e-3, "of everything without a rate of its own", "optimisation")
    sampler_learning_rate: float | None = option(None, "of the aggregator's queries and cross-attention layers, everywhere", "optimisation")
    warmup_steps: float = option(0.03, "steps, or below 1 their share", "optimisation")
    lr_scheduler_type: str = option("cosine", "as in transformers", "optimisation")
    weight_decay: float = option(0.0, "of matrices", "optimisation")
    max_grad_norm: float = option(1.0, "gradients are clipped to it", "optimisation")
    activation_checkpointing: bool = option(False, "compute activations again in the backward pass", "memory")
    bf16: bool = option(False, "mixed precision", "memory")
    packing: bool = option(False, "several short conversations in one row, each seeing itself alone", "memory")
    group_by_length: bool = option(False, "conversations of like length in one batch", "memory")
    feature_cache: str | None = option(None, "a folder for what frozen encoders make of each image; computed once, then read", "memory")
    feature_cache_dtype: Literal["fp32", "bf16"] = option("bf16", "what it is kept in", "memory")
    deepspeed: str | None = option(None, "a ZeRO config, recipes/zero/zero2.json or zero3.json", "memory")
    logging_steps: float = option(10, "steps between lines of the log", "run")
    eval_steps: float = option(100, "steps between measurements of --eval_conversations", "run")
    save_steps: float = option(500, "steps between checkpoints", "run")
    save_total_limit: int | None = option(2, "checkpoints that are kept", "run")
    dataloader_num_workers: int = option(0, "processes that read conversations", "run")
    seed: int = option(0, "of order, mixture and new weights", "run")
    output_dir: str | None = option(None, "a new folder; default outputs/<stage>-<n>", "run")
    resume_from_checkpoint: str | None = option(None, "a checkpoint-<step> folder, or true for the newest of --output_dir", "run")

    def __post_init__(self) -> None:
        if self.deepspeed and not Path(self.deepspeed).is_file():
            raise UserError(f"--deepspeed {self.deepspeed} is no file; ZeRO configs lie in recipes/zero")
        if not self.conversations:
            raise UserError("--conversations is empty; name at least one source of conversations")


@dataclass
class AlignArguments(VlmArguments):
    """The first stage: connector and layers in the language model train, the rest is frozen. Rates as Cambrian-1's scripts have them."""

    sampler_learning_rate: float | None = option(1e-4, "of the aggregator's queries and cross-attention layers, everywhere", "optimisation")
    warmup_steps: float = option(0.06, "steps, or below 1 their share", "optimisation")


@dataclass
class SftArguments(VlmArguments):
    """The second stage: the language model trains too, whole or by LoRA; encoders when they have a rate."""

    learning_rate: float = option(4e-5, "of everything without a rate of its own", "optimisation")
    encoder_learning_rate: float | None = option(None, "of the encoders; without one they are frozen", "optimisation")
    lora_rank: int = option(0, "LoRA in the language model; 0 trains it whole", "model")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_learning_rate is not None and (self.lora_rank or self.feature_cache):
            other = "--lora_rank, under which encoders are frozen" if self.lora_rank else "--feature_cache, which is of frozen encoders"
            raise UserError(f"--encoder_learning_rate and {other}; leave one of them out")
