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

from pretrain.run.args import PROGRAM, DINOv2Arguments, check_start, config_of, evaluation_size
from vision_core.start import look_first

if __name__ == "__main__":
    look_first(DINOv2Arguments, __doc__, check_start)

# Before torch loads OpenMP: threads that wait must sleep, for on a CPU the data workers need the
# cores that they would spin on.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import time
from datetime import timedelta

from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import ProjectConfiguration

from pretrain.batches.order import BatchLayout
from pretrain.distillation_training import DistillationTrainer
from pretrain.run.build import (
    build_loader,
    build_method,
    build_optimizer,
    build_schedules,
    check_trackers,
    load_weights,
)
from pretrain.run.build_evaluation import build_benchmark, data_facts, open_training_data
from pretrain.run.build_trainer import Source, build_trainer, load_checkpoint
from pretrain.run.data_workers import data_workers_watched
from pretrain.run.dry_run import describe_run
from pretrain.run.health import draw_probes
from pretrain.run.own_evaluation import keep_evaluation_of_resumed_run
from vision_core.arguments import arguments_to_yaml, parse_arguments
from vision_core.errors import Stopped, run_script
from vision_core.images.ranges import range_notes
from vision_core.images.source import ImageSource
from vision_core.printable import say
from vision_core.processes.distributed import (
    broadcast_text,
    is_main_process,
    refuse_unequal,
    set_cpu_threads,
)
from vision_core.processes.fail_together import fail_together
from vision_core.processes.launchers import launchers_above
from vision_core.processes.stopping import StopRequest
from vision_core.runs.data_facts import tell_changed_data
from vision_core.runs.folder_checks import look_ahead
from vision_core.runs.run_folder import RunFolder


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
    with StopRequest(launchers_above(), args.grace_seconds, getting_ready=True) as stop:
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
            begin_run(args, trainer, stop)
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


def begin_run(args: DINOv2Arguments, trainer: DistillationTrainer, stop: StopRequest) -> None:
    """Start the trackers and change an old run's folder, once every process has its first batch: a
    process that cannot start must find the folder as it was.

    Until here a signal ends the program at once; from here on `stop` remembers it.
    """
    trainer.accelerator.wait_for_everyone()
    if args.report_to:
        options = {key: str(value) for key, value in vars(args).items()}
        trainer.accelerator.init_trackers(args.name, config=options)
    stop.training_begins()
    if trainer.run is not None:
        trainer.run.begin()


def dry_run(args: DINOv2Arguments, source: Source, layout: BatchLayout) -> None:
    """Do everything that a run does before its first step, but for its folder, and print what it
    would be. Raises UserError where the run would."""
    method = build_method(args)
    config = config_of(args)
    folder = look_ahead(args.output_dir, args.name, config, args.resume_from_checkpoint, PROGRAM)
    checkpoint = folder.checkpoint
    optimizer = build_optimizer(args, method)
    build_schedules(args, layout.global_batch)
    state = None
    if checkpoint:
        state = load_checkpoint(args, str(checkpoint), method, optimizer, folder.changes)
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
