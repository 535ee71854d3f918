"""One stage of training a fused vision-language model, on transformers' Trainer, under any of its launchers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from fusion import FusionProcessor, FusionVlmForConditionalGeneration, assemble_vlm, fuse_encoders
from fusion.cross_attention import VisionCrossAttentionLayer
from fusion.resampler import ResamplerLayer
from fusion.tiny import tiny_language_model
from recipes.conversations import open_conversations
from recipes.vlm_args import VlmArguments
from recipes.vlm_data import ConversationCollator, ConversationDataset
from vision_core.arguments import arguments_to_yaml
from vision_core.distributed import broadcast_text, is_main_process
from vision_core.errors import UserError
from vision_core.run_folder import RunFolder

SAMPLER = re.compile(r"vision_query|vision_sampler")
ENCODER = re.compile(r"vision_model\.encoders\.")


class VlmTrainer(Trainer):
    """Trainer whose optimizer has a rate for each kind of module.

    rates: (pattern, learning rate); the first pattern found in a parameter's name decides, and `args.learning_rate` holds for the others.
    """

    def __init__(self, *args: Any, rates: Sequence[tuple[re.Pattern[str], float]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rates = list(rates)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    rate = next((rate for pattern, rate in self.rates if pattern.search(name)), self.args.learning_rate)
                    groups.setdefault((rate, self.args.weight_decay if name in decayed else 0.0), []).append(parameter)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(
                [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()], **options
            )
        return self.optimizer


def training_arguments(args: VlmArguments) -> TrainingArguments:
    """For the Trainer; making them joins the processes, and prepares ZeRO-3, so it comes before the model."""
    shared = (
        "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "learning_rate", "warmup_steps",
        "lr_scheduler_type", "weight_decay", "max_grad_norm", "activation_checkpointing", "bf16", "deepspeed", "logging_steps", "save_steps",
        "save_total_limit", "dataloader_num_workers", "seed",
    )  # fmt: skip
    settings = TrainingArguments(
        output_dir="outputs",  # replaced by the run's folder once the processes can agree on one
        eval_strategy="steps" if args.eval_conversations else "no",
        eval_steps=args.eval_steps,
        optim="adamw_torch",
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        **{name: getattr(args, name) for name in shared},
    )
    _ = settings.device  # joins the processes
    if args.deepspeed:
        import deepspeed

        deepspeed.init_distributed()  # ZeRO-3 asks deepspeed's own group for the number of processes when the model is made
    return settings


def write_default_model(folder: Path, seed: int) -> None:
    """Tiny untrained models, fused: what stands in where none is named."""
    vision_model, _ = fuse_encoders(
        ["tiny:dinov2", "tiny:siglip"], hidden_size=64, connector_options={"width": 64, "num_heads": 4, "depth": 2}, grid=4, seed=seed
    )
    model, processor = assemble_vlm(vision_model, *tiny_language_model("qwen3", seed), num_sva_layers=2, sva_stride=2, seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_model(init_from: str) -> tuple[FusionVlmForConditionalGeneration, FusionProcessor]:
    """The model and processor of a folder. Raises UserError for one that holds no fused vision-language model."""
    if not (Path(init_from) / "config.json").is_file():
        raise UserError(f"--init_from {init_from} holds no model; name a folder that fusion.fuse or an earlier stage wrote")
    model = AutoModelForImageTextToText.from_pretrained(init_from, trust_remote_code=False)
    if not isinstance(model, FusionVlmForConditionalGeneration):
        raise UserError(
            f"--init_from {init_from} is a {type(model).__name__}, not a fused vision-language model; make one with fusion.fuse"
        )
    return model, AutoProcessor.from_pretrained(init_from, trust_remote_code=False)


def open_folder(args: VlmArguments, stage: str) -> str:
    """The new folder of this run with its options in it, the same on every process."""
    path = ""
    if is_main_process():
        run = RunFolder.open(args.output_dir, stage, arguments_to_yaml(args))
        run.close()
        path = str(run.path)
    return broadcast_text(path)


def train(
    stage: str,
    args: VlmArguments,
    choose: Any,
    rates: Sequence[tuple[re.Pattern[str], float]],
) -> None:
    """A whole stage: join, load, `choose(model)` what trains, train, save the model and its processor."""
    with tempfile.TemporaryDirectory() as aside:
        if args.init_from is None:
            write_default_model(Path(aside), args.seed)  # before ZeRO-3 takes over how models are made
        settings = training_arguments(args)
        settings.output_dir = open_folder(args, stage)
        model, processor = load_model(args.init_from or aside)
    if is_deepspeed_zero3_enabled():
        from deepspeed.utils import set_z3_leaf_modules

        # these compute with weights of the modules in them, which are there only if the whole layer is fetched as one
        set_z3_leaf_modules(model, [VisionCrossAttentionLayer, ResamplerLayer])
    model = choose(model)
    sets = [
        ConversationDataset([open_conversations(text) for text in texts], processor, args.max_length, args.seed) if texts else None
        for texts in (args.conversations, args.eval_conversations)
    ]
    trainer = VlmTrainer(
        model,
        settings,
        train_dataset=sets[0],
        eval_dataset=sets[1],
        data_collator=ConversationCollator(processor),
        processing_class=processor,
        rates=rates,
    )
    trainer.train()
    trainer.save_model()
    if is_main_process():
        print(f"saved {settings.output_dir}")
