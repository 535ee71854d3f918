"""One stage of training a fused vision-language model, on transformers' Trainer, under any of its
launchers."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from fusion import FusionVlmForConditionalGeneration
from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.connectors.resampler import ResamplerLayer
from fusion.conversations.batches import ConversationCollator
from fusion.conversations.mixtures import ConversationDataset
from fusion.conversations.sources import ConversationSource, open_conversations
from fusion.conversations.stream import ConversationStream, open_stream
from fusion.conversations.stream_data import Source, StreamDataset
from fusion.map_cache import MapCache
from fusion.processing_fusion import FusionProcessor
from fusion.training.cache_of_a_run import fill_for_a_run
from fusion.training.card import write_card
from fusion.training.models import check_model_folder, load_model, merge_adapter
from fusion.training.small_default import corpus, write_small_default
from fusion.training.trainer import GroupedByLength, Plan, VlmTrainer
from recipes.vlm_args import VlmArguments, check_stage, deepspeed_config, program_of
from vision_core.conversation_kinds import is_stream
from vision_core.printable import say
from vision_core.processes.distributed import (
    is_main_process,
    print_once,
    refuse_unequal,
    share_cores,
    world_size,
)
from vision_core.processes.launchers import is_first_launched
from vision_core.processes.stopping import StopRequest
from vision_core.randomness import numpy_generator
from vision_core.runs.checkpoint_fit import refuse_other_start
from vision_core.runs.data_facts import DataFacts
from vision_core.runs.folder_checks import FolderAhead, checkpoint_ahead, config_in
from vision_core.runs.run_folder import RunFolder
from vision_core.trainer.preview import introduction, preview
from vision_core.trainer.resume import look_at_start
from vision_core.trainer.run_trainer import look_at_run, open_run, training_arguments
from vision_core.trainer.zero_checkpoint import refuse_other_layout
from vision_core.trainer.zero_names import check_names

MASTERS = (
    torch.float32
)  # weights that train: in bf16 small steps are rounded away; mixed precision makes its own copies
FIRST_ROWS = 64  # whose length a dry run looks at
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train(
    stage: str,
    args: VlmArguments,
    planned: Callable[[FusionVlmForConditionalGeneration], Plan],
    launchers: list[tuple[int, str]],
) -> None:
    """A whole stage: join the processes, load, decide by `planned(model)` what trains, train,
    publish."""
    share_cores()
    check_stage(stage, args)
    if args.deepspeed:
        check_names(Path(args.deepspeed), deepspeed_config(args))
    if args.init_from:
        check_model_folder(args.init_from)
    else:
        refuse_forgotten_start(args)
    with tempfile.TemporaryDirectory() as aside:
        base = args.init_from or f"{aside}/model"
        if args.init_from is None:
            if is_first_launched():
                learning = "" if args.dry_run else ", and learn from drawn scenes first"
                say(f"no --init_from: small stand-ins are made{learning}")
            # before ZeRO-3 takes over how models are made, and while a signal still ends the
            # program at once: there is nothing yet to save
            write_small_default(
                Path(base), corpus(args.conversations), args.seed, stand_ins=True, learn=not args.dry_run
            )
        # before signals are remembered: a launcher's ends a process that waits for others to join,
        # one of which has failed
        settings = vlm_training_arguments(args)
        with StopRequest(launchers, args.grace_seconds, getting_ready=True) as stop:
            if args.dry_run:
                dry_run(stage, args, planned, base, settings, f"{aside}/run")
            else:
                _train(stage, args, planned, base, settings, stop)


def refuse_forgotten_start(args: VlmArguments) -> None:
    """Raises UserError where a run that began from a model is to go on without --init_from: before
    small stand-ins learn for minutes."""
    checkpoint = checkpoint_ahead(args.output_dir, args.resume_from_checkpoint)
    began_from = config_in(checkpoint.parent).get("init_from") if checkpoint else None
    if began_from is not None:
        refuse_other_start(None, {"init_from": (began_from, None)})


def _train(
    stage: str,
    args: VlmArguments,
    planned: Callable[[FusionVlmForConditionalGeneration], Plan],
    base: str,
    settings: TrainingArguments,
    stop: StopRequest,
) -> None:
    sources = opened_alike(args)
    run, folder, checkpoint = open_run(args, stage, program_of(stage), partial(check_checkpoint, args))
    settings.output_dir = folder
    print_once(header(args, folder, checkpoint))
    facts = look_at_start(run, facts_of_rows(*sources) if run else [], args.init_from, args.changed_data)
    trainer = build_trainer(args, planned, base, settings, *sources, run)
    trainer.facts = facts
    print_once(introduction(trainer))
    trainer.train_until_told(stop, checkpoint)
    publish(trainer, base, args, stage)


def dry_run(
    stage: str,
    args: VlmArguments,
    planned: Callable[[FusionVlmForConditionalGeneration], Plan],
    base: str,
    settings: TrainingArguments,
    aside: str,
) -> None:
    """All that a run does before its first step, but for its folder and the features of
    `--feature_cache`; then what it would be."""
    ahead, checkpoint = look_at_run(args, stage, program_of(stage), partial(check_checkpoint, args))
    sources = opened_alike(args)
    settings.output_dir = aside
    look_at_start(ahead, facts_of_rows(*sources) if ahead else [], args.init_from, args.changed_data)
    trainer = build_trainer(replace(args, feature_cache=None), planned, base, settings, *sources, ahead)
    rows = trainer.train_dataset
    lengths = [len(rows[number]["input_ids"]) for number in range(min(len(rows), FIRST_ROWS))]
    longest = (
        f"longest          {max(lengths):,} tokens, of the first {len(lengths):,} rows; --max_length is "
        f"{args.max_length:,}"
    )
    print_once([*preview(trainer, checkpoint), longest])


def check_checkpoint(args: VlmArguments, checkpoint: Path) -> None:
    """Raises UserError where a run with these options could not take up the optimizer's states of
    `checkpoint`."""
    refuse_other_layout(checkpoint, deepspeed_config(args) if args.deepspeed else None, world_size())


def header(args: VlmArguments, folder: str, checkpoint: str) -> list[str]:
    """What a run is as far as its options say it, before a model is loaded and features are
    computed for hours."""
    lines = [
        f"run folder       {folder}",
        f"model            {args.init_from or 'small stand-ins'}",
        f"conversations    {', '.join(args.conversations)}",
        f"held out         {', '.join(args.eval_conversations) or 'nothing'}",
    ]
    return [*lines, f"goes on from     {checkpoint}"] if checkpoint else lines


def build_trainer(
    args: VlmArguments,
    planned: Callable[[FusionVlmForConditionalGeneration], Plan],
    base: str,
    settings: TrainingArguments,
    sources: Sequence[Source],
    held_out: Sequence[Source],
    run: RunFolder | FolderAhead | None,
) -> VlmTrainer:
    """The model of `base` with what `planned` says of it, the data, and what trains the one on the
    other."""
    cache = filled_cache(args, base, settings, [*sources, *held_out]) if args.feature_cache else None
    model, processor = load_model(base, MASTERS)
    if is_deepspeed_zero3_enabled():
        fetch_whole_layers(model)
    plan = planned(model)
    settings.learning_rate = plan.learning_rate
    data, order = training_data(args, sources, processor, cache, settings.train_batch_size)
    return VlmTrainer(
        plan.model,
        settings,
        train_dataset=data,
        eval_dataset=ConversationDataset(held_out, processor, args.max_length, args.seed, cache)
        if held_out
        else None,
        data_collator=ConversationCollator(processor, args.packing, cache),
        processing_class=processor,
        rates=plan.rates,
        sampler=order,
        run=run,
        keep=args.save_total_limit,
    )


def opened(texts: Sequence[str]) -> list[Source]:
    """The sources that `texts` name. Raises UserError."""
    return [open_stream(text) if is_stream(text) else open_conversations(text) for text in texts]


def facts_of_rows(sources: Sequence[Source], held_out: Sequence[Source]) -> list[DataFacts]:
    """Of the files of rows; images that rows name are not looked at."""
    named = {"conversations": sources, "eval_conversations": held_out}
    return [
        DataFacts(
            f"{option} {number}",
            source.name,
            None if isinstance(source, ConversationStream) else len(source),
            "rows",
            *source.state_of_files(),
        )
        for option, of_option in named.items()
        for number, source in enumerate(of_option, 1)
    ]


def opened_alike(args: VlmArguments) -> tuple[list[Source], list[Source]]:
    """What is trained on, and what is held out. Raises UserError, on all processes, where they do
    not see the same rows."""
    sources, held_out = opened(args.conversations), opened(args.eval_conversations)
    named = zip([*args.conversations, *args.eval_conversations], [*sources, *held_out], strict=True)
    refuse_unequal({text: len(source) for text, source in named if not is_stream(text)})
    return sources, held_out


def training_data(
    args: VlmArguments,
    sources: Sequence[Source],
    processor: FusionProcessor,
    cache: MapCache | None,
    batch: int,
) -> tuple[ConversationDataset | StreamDataset, Sampler | None]:
    """The samples and their order, None for the Trainer's own. batch: samples of one process and
    forward."""
    step = batch * args.gradient_accumulation_steps * world_size()
    if any(map(is_stream, args.conversations)):
        stream = StreamDataset(sources, processor, args.max_length, args.seed, args.max_steps * step)
        return stream, SequentialSampler(stream)
    data = ConversationDataset(sources, processor, args.max_length, args.seed, cache)
    return data, order_by_length(args, data, step) if args.group_by_length else None


def vlm_training_arguments(args: VlmArguments) -> TrainingArguments:
    """For the Trainer; making them joins the processes, and prepares ZeRO-3, so it comes before the
    model."""
    if args.deepspeed:
        launched_alone()
    settings = training_arguments(
        args,
        has_eval=bool(args.eval_conversations),
        label_names=["labels"],
        activation_checkpointing=args.activation_checkpointing,
        deepspeed=deepspeed_config(args) if args.deepspeed else None,
    )
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
        os.environ |= {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }


def fetch_whole_layers(model: nn.Module) -> None:
    """ZeRO-3 is told of layers that compute with weights of the modules in them, which are there
    only if the layer is fetched as one."""
    from deepspeed.utils import set_z3_leaf_modules

    kinds = [
        kind
        for kind in (VisionCrossAttentionLayer, ResamplerLayer)
        if any(isinstance(module, kind) for module in model.modules())
    ]
    if kinds:
        set_z3_leaf_modules(model, kinds)


def order_by_length(args: VlmArguments, data: ConversationDataset, step: int) -> GroupedByLength:
    """Samples of like length in one step, which takes `step` of them."""
    return GroupedByLength(data.rough_lengths(), step, partial(numpy_generator, "length groups", args.seed))


def filled_cache(
    args: VlmArguments, base: str, settings: TrainingArguments, sources: Sequence[ConversationSource]
) -> MapCache:
    """The cache of the frozen encoders' features, with every image of the run in it. Raises
    UserError; see `fill_for_a_run`."""
    with whole_models(settings):
        model, processor = load_model(base, MASTERS)
    vision_model, image_processor = (model.vision_model.to(settings.device), processor.image_processor)
    cache = MapCache(
        Path(args.feature_cache), vision_model, image_processor, DTYPES[args.feature_cache_dtype]
    )
    fill_for_a_run(cache, sources, vision_model, image_processor)
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
    folder, has_adapter = Path(trainer.args.output_dir), hasattr(trainer.model, "peft_config")
    with trainer.publishing() as aside:
        trainer.save_model(str(aside / "adapter" if has_adapter else aside))
        if is_main_process():
            if has_adapter:
                unset_hf_deepspeed_config()
                merge_adapter(base, aside / "adapter", aside)
            options = vars(args) | {"learning_rate": trainer.args.learning_rate}
            write_card(folder, stage, program_of(stage), options, trainer.model, trainer.state)
    if is_main_process():
        trainer.run.finish()
        say(f"saved {folder}")
