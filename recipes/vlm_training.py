"""One stage of training a fused vision-language model, on transformers' Trainer, under any of its launchers."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import PrinterCallback, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from fusion import FusionVlmForConditionalGeneration
from fusion.cross_attention import VisionCrossAttentionLayer
from fusion.resampler import ResamplerLayer
from recipes.conversations import open_conversations
from recipes.map_cache import MapCache
from recipes.vlm_args import VlmArguments
from recipes.vlm_card import write_card
from recipes.vlm_data import BLANK, ConversationCollator, ConversationDataset
from recipes.vlm_models import load_model, merge_adapter, write_default_model
from recipes.vlm_trainer import GroupedByLength, Progress, Rates, StopWhenTold, VlmTrainer
from recipes.zero_config import check_zero_config
from vision_core.arguments import arguments_to_yaml
from vision_core.distributed import broadcast_text, gather_objects, is_main_process, rank, world_size
from vision_core.randomness import numpy_generator
from vision_core.run_folder import RunFolder
from vision_core.stopping import StopRequest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train(
    stage: str,
    args: VlmArguments,
    choose: Callable[[FusionVlmForConditionalGeneration], nn.Module],
    rates: Rates,
    launchers: list[tuple[int, str]],
) -> None:
    """A whole stage: join the processes, load, `choose(model)` what trains, train, publish."""
    with tempfile.TemporaryDirectory() as aside, StopRequest(launchers) as stop:
        base = args.init_from or aside
        if args.init_from is None:
            write_default_model(Path(aside), args.seed)  # before ZeRO-3 takes over how models are made
        settings = training_arguments(args)
        run, folder, checkpoint = open_run(args, stage)
        settings.output_dir = folder
        cache = filled_cache(args, base, settings) if args.feature_cache else None
        model, processor = load_model(base)
        if is_deepspeed_zero3_enabled():
            fetch_whole_layers(model)
        model = choose(model)
        data, held_out = (
            ConversationDataset(list(map(open_conversations, texts)), processor, args.max_length, args.seed, cache) if texts else None
            for texts in (args.conversations, args.eval_conversations)
        )
        told, progress = StopWhenTold(stop), Progress()
        trainer = VlmTrainer(
            model,
            settings,
            train_dataset=data,
            eval_dataset=held_out,
            data_collator=ConversationCollator(processor, args.packing, cache),
            processing_class=processor,
            callbacks=[told, progress],
            rates=rates,
            sampler=order_by_length(args, data) if args.group_by_length else None,
            run=run,
            keep=args.save_total_limit,
        )
        trainer.remove_callback(PrinterCallback)
        with closing(progress):
            trainer.train(resume_from_checkpoint=checkpoint or None)
        if told.stopped:
            raise SystemExit(stop.exit_status)
        publish(trainer, base, args, stage)


def training_arguments(args: VlmArguments) -> TrainingArguments:
    """For the Trainer; making them joins the processes, and prepares ZeRO-3, so it comes before the model."""
    shared = (
        "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "learning_rate", "warmup_steps",
        "lr_scheduler_type", "weight_decay", "max_grad_norm", "activation_checkpointing", "bf16", "deepspeed", "logging_steps", "save_steps",
        "dataloader_num_workers", "seed",
    )  # fmt: skip
    if args.deepspeed:
        launched_alone()
        check_zero_config(Path(args.deepspeed), vars(args), int(os.environ["WORLD_SIZE"]))
    settings = TrainingArguments(
        output_dir="outputs",  # replaced by the run's folder once the processes can agree on one
        eval_strategy="steps" if args.eval_conversations else "no",
        eval_steps=args.eval_steps,
        per_device_eval_batch_size=args.per_device_train_batch_size,
        optim="adamw_torch",
        remove_unused_columns=False,
        label_names=["labels"],
        logging_nan_inf_filter=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,  # `Progress` shows it
        **{name: getattr(args, name) for name in shared},
    )
    _ = settings.device  # joins the processes
    if args.deepspeed:
        import deepspeed

        deepspeed.init_distributed()  # ZeRO-3 asks deepspeed's own group for the number of processes when the model is made
    return settings


def launched_alone() -> None:
    """Where no launcher has said so, tell deepspeed that this process is the only one."""
    if "WORLD_SIZE" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def open_run(args: VlmArguments, stage: str) -> tuple[RunFolder | None, str, str]:
    """The run's folder, held by the main process; its path and the checkpoint to go on from, or "", the same on every process."""
    run = None
    if is_main_process():
        run = RunFolder.open(args.output_dir, stage, arguments_to_yaml(args), args.resume_from_checkpoint)
    path = broadcast_text(str(run.path) if run else "")
    return run, path, broadcast_text(str(run.checkpoint or "") if run else "")


def fetch_whole_layers(model: nn.Module) -> None:
    """ZeRO-3 is told of layers that compute with weights of the modules in them, which are there only if the layer is fetched as one."""
    from deepspeed.utils import set_z3_leaf_modules

    kinds = [kind for kind in (VisionCrossAttentionLayer, ResamplerLayer) if any(isinstance(module, kind) for module in model.modules())]
    if kinds:
        set_z3_leaf_modules(model, kinds)


def order_by_length(args: VlmArguments, data: ConversationDataset) -> GroupedByLength:
    """Samples of like length in one step."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    return GroupedByLength(data.rough_lengths(), batch, partial(numpy_generator, "length groups", args.seed))


def filled_cache(args: VlmArguments, base: str, settings: TrainingArguments) -> MapCache:
    """The cache of the frozen encoders' features, with every image of the run in it."""
    with whole_models(settings):
        model, processor = load_model(base)
    vision_model, image_processor = model.vision_model.to(settings.device), processor.image_processor
    cache = MapCache(Path(args.feature_cache), vision_model, image_processor, DTYPES[args.feature_cache_dtype])
    for text in (*args.conversations, *args.eval_conversations):
        source = open_conversations(text)
        mine = range(rank(), len(source), world_size())
        images = (
            image for index in tqdm(mine, desc=f"features of {text}", disable=not is_main_process()) for image in source[index].images
        )
        cache.fill(images, vision_model, image_processor)
    cache.fill([BLANK], vision_model, image_processor)
    gather_objects(None)  # nobody reads before all is there
    return cache


@contextmanager
def whole_models(settings: TrainingArguments) -> Iterator[None]:
    """Inside, models are made whole on every process, also where ZeRO-3 would shard them."""
    config = getattr(settings, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


def publish(trainer: VlmTrainer, base: str, args: VlmArguments, stage: str) -> None:
    """The trained model, whole, its processor and its card, in the run's folder."""
    folder = Path(trainer.args.output_dir)
    has_adapter = hasattr(trainer.model, "peft_config")
    trainer.save_model(str(folder / "adapter" if has_adapter else folder))
    if is_main_process():
        (folder / "adapter" if has_adapter else folder).joinpath(
            "training_args.bin"
        ).unlink()  # a pickle, which nobody needs to load the model
        if has_adapter:
            unset_hf_deepspeed_config()
            merge_adapter(base, folder / "adapter", folder)
        write_card(folder, stage, f"recipes/sva_{stage}.py", vars(args), trainer.state.log_history)
        print(f"saved {folder}")
