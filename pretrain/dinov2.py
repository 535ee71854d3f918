"""DINOv2 pretraining: it takes unlabelled images and gives a vision encoder that
`transformers.AutoModel` loads.

    accelerate launch pretrain/dinov2.py [CONFIG.yaml] [--dataset ... --output_dir ...]

`--help` names every option, docs/pretraining.md explains. The loop is
`pretrain/distillation_training.py`, the losses are `pretrain/self_distillation.py`.
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import os

from pretrain.run.args import PROGRAM, DINOv2Arguments, backbone_text, check_start, config_of, evaluation_size
from vision_core.start import look_first

if __name__ == "__main__":
    look_first(DINOv2Arguments, __doc__, check_start)

# Before torch loads OpenMP: threads that wait must sleep, for on a CPU the data workers need the
# cores that they would spin on.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial

from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import ProjectConfiguration
from torch.optim import AdamW

from encoders.evaluation.knn_benchmark import KnnBenchmark
from pretrain.batches.order import BatchLayout
from pretrain.batches.stream_places import StreamPlaces
from pretrain.distillation_training import DistillationTrainer
from pretrain.run.bad_images import BadImageWatch
from pretrain.run.batch_reader import BatchReader
from pretrain.run.build import (
    build_card_facts,
    build_loader,
    build_method,
    build_multicrop,
    build_optimizer,
    build_schedules,
    check_trackers,
    load_weights,
)
from pretrain.run.build_evaluation import build_benchmark, data_facts, open_training_data, untrained_accuracy
from pretrain.run.data_workers import data_workers_watched
from pretrain.run.dry_run import describe_run
from pretrain.run.due import Every
from pretrain.run.health import CHECKS_PER_RUN, HealthWatch, draw_probes
from pretrain.run.health_check import HealthCheck
from pretrain.run.introduction import introduction
from pretrain.run.knn_evaluation import KnnEvaluation
from pretrain.run.loss_scale import LossScaler
from pretrain.run.monitor import Monitor
from pretrain.run.own_evaluation import keep_evaluation_of_resumed_run
from pretrain.run.run_files import EncoderInput, RunFiles
from pretrain.run.training_state import changed_course, course, resume_from
from pretrain.self_distillation import SelfDistillation
from vision_core.arguments import arguments_to_yaml, parse_arguments
from vision_core.errors import Stopped, run_script
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.ranges import range_notes
from vision_core.images.source import ImageSource, ImageStream
from vision_core.printable import say
from vision_core.processes.distributed import (
    broadcast_text,
    is_main_process,
    print_once,
    refuse_unequal,
    set_cpu_threads,
)
from vision_core.processes.fail_together import fail_together
from vision_core.processes.launchers import launchers_above
from vision_core.processes.stopping import StopRequest
from vision_core.runs.data_facts import facts_as_json, tell_changed_data
from vision_core.runs.folder_checks import changed_keys, check_folder, read_config
from vision_core.runs.run_folder import RunFolder

Source = ImageSource | ImageStream


def main() -> None:
    """Build everything, train, evaluate, publish."""
    started = time.perf_counter()
    args = parse_arguments(DINOv2Arguments, description=__doc__)
    keep_evaluation_of_resumed_run(args)
    check_start(args)
    check_trackers(args.report_to)
    set_cpu_threads(args.num_cpu_threads)
    accelerator = start_processes(args)
    layout = BatchLayout(
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        accelerator.num_processes,
        accelerator.process_index,
    )
    source, args.eval_dataset = open_training_data(args, accelerator.num_processes)
    if isinstance(source, ImageSource):
        layout.check(len(source))
        refuse_unequal({args.dataset: len(source)})
    if args.dry_run:
        dry_run(args, source, layout)
        return
    run, output_dir, checkpoint = open_run_folder(args)
    accelerator.project_configuration = ProjectConfiguration(str(output_dir))  # where trackers write
    with StopRequest(launchers_above(), args.grace_seconds) as stop:
        trainer = build_trainer(
            args=args,
            accelerator=accelerator,
            source=source,
            layout=layout,
            run=run,
            output_dir=output_dir,
            checkpoint=checkpoint,
        )
        with (
            trainer.monitor.progress(),
            data_workers_watched(source, layout, args.seed, lambda: trainer.step),
        ):
            trainer.batches.start(needs_one=trainer.step < args.max_steps)
            begin_run(args, trainer)
            trainer.train(stop)
        if trainer.step < args.max_steps:
            raise Stopped(stop.exit_status, trainer.leave(stop))
        trainer.finish(time.perf_counter() - started)


def start_processes(args: DINOv2Arguments) -> Accelerator:
    """Join the processes that train together."""
    accelerator = Accelerator(
        # float16 is cast and scaled in the loop, the same on every device
        mixed_precision="bf16" if args.bf16 else "no",
        log_with=args.report_to or None,
        project_dir=args.output_dir or "outputs",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=1))],
    )
    fail_together()
    return accelerator


def open_run_folder(args: DINOv2Arguments) -> tuple[RunFolder | None, Path, str]:
    """The run's folder, held by the main process; its path and the checkpoint to go on from, or "",
    the same on every process."""
    run = None
    path = checkpoint = ""
    if is_main_process():
        run = RunFolder.open(
            args.output_dir, args.name, config_of(args), args.resume_from_checkpoint, program=PROGRAM
        )
        path = str(run.path)
        checkpoint = str(run.checkpoint or "")
    return run, Path(broadcast_text(path)), broadcast_text(checkpoint)


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
    state = None
    if checkpoint:
        changes = run.changes if run else {}
        state = load_checkpoint(args, Path(checkpoint), method, optimizer, changes)
    step = state["step"] if state else 0
    monitor = Monitor(accelerator, run, Every(args.logging_steps, args.max_steps), step, layout.global_batch)
    # before the many images of the benchmark are read: these weights may be wrong
    if state is None and args.init_from:
        monitor.say_all(load_weights(method, args.init_from))
    benchmark = build_benchmark(args, source, run is not None)
    data = data_facts(source, benchmark) if run is not None else []
    if state:
        monitor.say_all(tell_changed_data(checkpoint, state.get("data"), data, args.changed_data))
    bad_images = BadImageWatch(args.max_bad_fraction, run)
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
        batches=BatchReader(
            build_loader(args, source, layout, step, places),
            layout.micro_batches,
            places=places,
            bad_images=bad_images,
            timeout=args.dataloader_timeout,
            count_waiting=monitor.waited_for_data,
        ),
        bad_images=bad_images,
        monitor=monitor,
        health=health,
        knn=build_knn_evaluation(args, method, benchmark, monitor),
        files=RunFiles(
            run,
            source,
            method,
            optimizer,
            benchmark=benchmark,
            encoder_input=EncoderInput(evaluation_size(args), args.image_mean, args.image_std, in_own_scale),
            card=build_card_facts(args),
            every=Every(args.save_steps, args.max_steps),
            save_total_limit=args.save_total_limit,
            say=monitor.say,
        ),
        run=run,
        output_dir=output_dir,
        course={"data": facts_as_json(data), **course(args.seed, layout.global_batch, reading)},
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


def load_checkpoint(
    args: DINOv2Arguments, checkpoint: Path, method: SelfDistillation, optimizer: AdamW, changes: Mapping
) -> dict:
    """Bring method and optimizer to the state of a checkpoint; returns the rest of the state.
    changes: the options that are not as they were, name -> (old, new)."""
    return resume_from(
        checkpoint,
        init_from=args.init_from,
        max_steps=args.max_steps,
        method=method,
        optimizer=optimizer,
        changes=changes,
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


def begin_run(args: DINOv2Arguments, trainer: DistillationTrainer) -> None:
    """Start the trackers and change an old run's folder, once every process has its first batch: a
    process that cannot start must find the folder as it was."""
    trainer.accelerator.wait_for_everyone()
    if args.report_to:
        options = {key: str(value) for key, value in vars(args).items()}
        trainer.accelerator.init_trackers(args.name, config=options)
    if trainer.run is not None:
        trainer.run.begin()


def dry_run(args: DINOv2Arguments, source: Source, layout: BatchLayout) -> None:
    """Do everything that a run does before its first step, but for its folder, and print what it
    would be. Raises UserError where the run would."""
    method = build_method(args)
    checkpoint = check_folder(args.output_dir, args.name, args.resume_from_checkpoint, PROGRAM)
    optimizer = build_optimizer(args, method)
    build_schedules(args, layout.global_batch)
    state = None
    if checkpoint:
        changes = changed_keys(read_config(checkpoint.parent), config_of(replace(args, dry_run=False)))
        state = load_checkpoint(args, checkpoint, method, optimizer, changes)
    elif args.init_from:
        load_weights(method, args.init_from)
    benchmark = build_benchmark(args, source, is_main_process())
    if state and is_main_process():
        data = data_facts(source, benchmark)
        for line in tell_changed_data(str(checkpoint), state.get("data"), data, args.changed_data):
            say(line)
    draw_probes(source, evaluation_size(args), args.seed)
    if is_main_process():
        say(
            describe_run(
                arguments_to_yaml(args),
                source,
                layout,
                method,
                notes=range_notes(source, args.num_channels, args.image_mean, args.image_std),
                batch=next(iter(build_loader(args, source, layout, 0))),
                is_half_precision=args.bf16 or args.fp16,
            )
        )


if __name__ == "__main__":
    run_script(main)
