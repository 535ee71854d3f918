"""Builds the trainer of a DINOv2 run from the options of `pretrain/dinov2.py`, and says what the run
is."""

from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch.optim import AdamW

from encoders.evaluation.knn_benchmark import KnnBenchmark
from pretrain.batches.order import BatchLayout
from pretrain.batches.stream_places import StreamPlaces
from pretrain.distillation_training import DistillationTrainer
from pretrain.run.args import DINOv2Arguments, backbone_text, evaluation_size
from pretrain.run.bad_images import BadImageWatch
from pretrain.run.batch_reader import BatchReader
from pretrain.run.build import (
    build_card_facts,
    build_loader,
    build_method,
    build_multicrop,
    build_optimizer,
    build_schedules,
    load_weights,
)
from pretrain.run.build_evaluation import build_benchmark, data_facts, untrained_accuracy
from pretrain.run.due import Every
from pretrain.run.health import CHECKS_PER_RUN, HealthWatch, draw_probes
from pretrain.run.health_check import HealthCheck
from pretrain.run.introduction import introduction
from pretrain.run.knn_evaluation import KnnEvaluation
from pretrain.run.loss_scale import LossScaler
from pretrain.run.monitor import Monitor
from pretrain.run.run_files import EncoderInput, RunFiles
from pretrain.run.training_state import Changes, changed_course, course, resume_from
from pretrain.self_distillation import SelfDistillation
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.ranges import range_notes
from vision_core.images.source import ImageSource, ImageStream
from vision_core.processes.distributed import print_once
from vision_core.runs.checkpoint_fit import state_of_start
from vision_core.runs.data_facts import DataFacts, facts_as_json, tell_changed_data
from vision_core.runs.run_folder import RunFolder

Source = ImageSource | ImageStream


def build_trainer(
    args: DINOv2Arguments,
    accelerator: Accelerator,
    source: Source,
    layout: BatchLayout,
    run: RunFolder | None,
    output_dir: Path,
    checkpoint: str,
) -> DistillationTrainer:
    """Build all parts of the run, take up `checkpoint` or initial weights, and say what the run
    is."""
    if run is not None:
        tell_run(args, source, layout, output_dir, run.step, accelerator.device.type)
    method = build_method(args)
    method.to(accelerator.device)
    optimizer = build_optimizer(args, method)
    schedules = build_schedules(args, layout.global_batch)
    changes = run.changes if run else {}
    state = load_checkpoint(args, checkpoint, method, optimizer, changes) if checkpoint else None
    step = state["step"] if state else 0
    monitor = Monitor(accelerator, run, Every(args.logging_steps, args.max_steps), step, layout.global_batch)
    # before the many images of the benchmark are read: these weights may be wrong
    if state is None and args.init_from:
        monitor.say_all(load_weights(method, args.init_from))
    benchmark = build_benchmark(args, source, run is not None)
    data = data_facts(source, benchmark) if run is not None else []
    if state:
        monitor.say_all(tell_changed_data(checkpoint, state.get("data"), data, args.changed_data))
    places = StreamPlaces(source.description, layout, args.dataloader_num_workers, step)
    health = build_health_check(args, source, method, monitor)
    reading = pixel_options_text(source.pixel_options)
    if state:
        monitor.say_all(changed_course(state, args.seed, layout.global_batch, reading))
        if not isinstance(source, ImageSource):
            monitor.say_all(places.load_state_dict(state.get("stream")))
    in_own_scale = args.num_channels != 3 or health.probes.is_floating_point()
    trainer = DistillationTrainer(
        accelerator=accelerator,
        model=accelerator.prepare(method),
        method=method,
        optimizer=optimizer,
        scaler=LossScaler(accelerator.device.type, enabled=args.fp16),
        schedules=schedules,
        batches=build_reader(args, source, layout, step=step, places=places, monitor=monitor),
        monitor=monitor,
        health=health,
        knn=build_knn_evaluation(args, method, benchmark, monitor),
        files=build_files(
            args, source, method, optimizer, benchmark=benchmark, in_own_scale=in_own_scale, monitor=monitor
        ),
        run=run,
        output_dir=output_dir,
        course=lasting_state(args, layout, reading, data, state or {}),
        seed=args.seed,
        max_steps=args.max_steps,
        max_grad_norm=args.max_grad_norm,
        step=step,
    )
    if state:
        trainer.load_state_dict(state)
    if run is not None:
        greet(args, source, trainer, in_own_scale)
    return trainer


def lasting_state(
    args: DINOv2Arguments, layout: BatchLayout, reading: str, data: list[DataFacts], state: dict
) -> dict:
    """What every checkpoint of a run holds: its data, the weights it began from, and the options
    that decide about its course. reading: how images are read. state: of the checkpoint that is
    resumed, or {}."""
    return {
        "data": facts_as_json(data),
        "init_from": state.get("init_from") or state_of_start(args.init_from),
        **course(args.seed, layout.global_batch, reading),
    }


def build_reader(
    args: DINOv2Arguments,
    source: Source,
    layout: BatchLayout,
    *,
    step: int,
    places: StreamPlaces,
    monitor: Monitor,
) -> BatchReader:
    """Read the batches from `step` on; of a stream from `places`."""
    return BatchReader(
        build_loader(args, source, layout, step, places),
        layout.micro_batches,
        places=places,
        bad_images=BadImageWatch(args.max_bad_fraction, monitor.run),
        timeout=args.dataloader_timeout,
        count_waiting=monitor.waited_for_data,
    )


def load_checkpoint(
    args: DINOv2Arguments, checkpoint: str, method: SelfDistillation, optimizer: AdamW, changes: Changes
) -> dict:
    """Bring method and optimizer to the state of a checkpoint; returns the rest of the state.
    changes: the options that are not as they were, name -> (old, new)."""
    return resume_from(
        Path(checkpoint),
        init_from=args.init_from,
        max_steps=args.max_steps,
        method=method,
        optimizer=optimizer,
        changes=changes,
    )


def build_files(
    args: DINOv2Arguments,
    source: Source,
    method: SelfDistillation,
    optimizer: AdamW,
    *,
    benchmark: KnnBenchmark | None,
    in_own_scale: bool,
    monitor: Monitor,
) -> RunFiles:
    """Write checkpoints, the encoder, its image processor and its card."""
    return RunFiles(
        monitor.run,
        source,
        method,
        optimizer,
        benchmark=benchmark,
        encoder_input=EncoderInput(evaluation_size(args), args.image_mean, args.image_std, in_own_scale),
        card=build_card_facts(args),
        every=Every(args.save_steps, args.max_steps),
        save_total_limit=args.save_total_limit,
        say=monitor.say,
    )


def build_health_check(
    args: DINOv2Arguments, source: Source, method: SelfDistillation, monitor: Monitor
) -> HealthCheck:
    """Draw the probe images, and look at the teacher's figures on them at intervals."""
    note_unreadable = partial(monitor.name_unreadable, "health probes")
    probes = draw_probes(source, evaluation_size(args), args.seed, note=note_unreadable)
    quiet_steps = max(args.warmup_steps, args.max_steps // 20)
    health_steps = args.health_steps or max(args.max_steps // CHECKS_PER_RUN, 1)
    return HealthCheck(
        method,
        probes,
        args.image_mean,
        args.image_std,
        every=Every(health_steps, args.max_steps),
        watch=HealthWatch(args.num_prototypes, quiet_steps),
        monitor=monitor,
        stops_run=args.stop_when_sick,
    )


def build_knn_evaluation(
    args: DINOv2Arguments, method: SelfDistillation, benchmark: KnnBenchmark | None, monitor: Monitor
) -> KnnEvaluation:
    """Judge the teacher's backbone at intervals, where the run has images for it."""
    every = None
    if args.eval_dataset is not None:
        every = Every(args.eval_steps, args.max_steps)
    return KnnEvaluation(method.teacher["backbone"], benchmark, every, monitor)


def tell_run(
    args: DINOv2Arguments, source: Source, layout: BatchLayout, folder: Path, first_step: int, device: str
) -> None:
    """Say what the options make of the run."""
    print_once(
        introduction(
            folder,
            source,
            layout,
            notes=range_notes(source, args.num_channels, args.image_mean, args.image_std),
            backbone=backbone_text(args),
            device=device,
            steps=(first_step, args.max_steps),
            lr_scaling=args.lr_scaling,
        )
    )


def greet(args: DINOv2Arguments, source: Source, trainer: DistillationTrainer, in_own_scale: bool) -> None:
    """Say what the crops are and how large the backbone is; measure and say what it has to beat."""
    backbone = trainer.method.student["backbone"]
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    crops = build_multicrop(args, source).describe(in_own_scale)
    trainer.monitor.say(f"crops           {crops}")
    trainer.monitor.say(f"parameters      {parameters / 1e6:.1f} M of the backbone")
    benchmark = trainer.knn.benchmark
    if benchmark is not None:
        references = benchmark.evaluate_baselines() | untrained_accuracy(args, benchmark)
        trainer.knn.tell_references(references)
