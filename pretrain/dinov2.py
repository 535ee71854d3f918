"""DINOv2 pretraining: unlabelled images in, a vision encoder out that `transformers.AutoModel` loads.

accelerate launch pretrain/dinov2.py [CONFIG.yaml] [--dataset ... --output_dir ...]; `--help` names every option, docs/pretraining.md explains.
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import os

from pretrain.dinov2_args import PROGRAM, DINOv2Arguments, check_start, config_of
from vision_core.launchers import launchers_above
from vision_core.start import look_first

LAUNCHERS = launchers_above()  # now: one that dies during the imports must not leave an orphan that trains on

if __name__ == "__main__":
    look_first(DINOv2Arguments, __doc__, check_start)

# Before torch loads OpenMP: threads that wait must sleep, for on a CPU the data workers need the cores that they would spin on.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Literal

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import ProjectConfiguration

from encoders.transformers_encoder import TransformersEncoder
from pretrain.dinov2_build import (
    build_benchmark,
    build_loader,
    build_method,
    build_multicrop,
    build_optimizer,
    build_schedules,
    check_trackers,
    data_facts,
    evaluation_size,
    load_weights,
    open_training_data,
    untrained_accuracy,
)
from pretrain.dry_run import dry_run
from pretrain.health import CHECKS_PER_RUN, MEANINGS, HealthWatch, draw_probes, health_figures
from pretrain.introduction import introduction
from pretrain.loss_scale import LossScaler
from pretrain.monitor import Monitor, knn_line, peak_memory_gib
from pretrain.own_evaluation import keep_evaluation_of_resumed_run
from pretrain.param_groups import apply_schedules, clip_per_module
from pretrain.run_files import RunFiles
from pretrain.stream_places import StreamPlaces
from pretrain.training_data import BadImageWatch, BatchLayout, data_workers_watched, time_limit
from pretrain.training_state import changed_course, course, resume_from
from vision_core.arguments import parse_arguments
from vision_core.checkpoint_fit import state_of_start
from vision_core.data_facts import facts_as_json, tell_changed_data
from vision_core.distributed import broadcast_text, gather_objects, mean_over_processes, print_once, refuse_unequal, set_cpu_threads
from vision_core.errors import Stopped, UserError, run_script
from vision_core.fail_together import fail_together
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.sources import ImageSource
from vision_core.randomness import seed_of
from vision_core.run_folder import RunFolder, how_to_go_on
from vision_core.stopping import StopRequest

MAX_SKIPPED_IN_A_ROW = 3


def main() -> None:
    """Build everything, train, evaluate, publish."""
    started = time.perf_counter()
    args = parse_arguments(DINOv2Arguments, description=__doc__)
    keep_evaluation_of_resumed_run(args)
    check_start(args)
    check_trackers(args.report_to)
    set_cpu_threads(args.num_cpu_threads)
    accelerator = Accelerator(
        # float16 is cast and scaled in the loop, the same on every device
        mixed_precision="no" if args.mixed_precision == "fp16" else args.mixed_precision,
        log_with=args.report_to or None,
        project_dir=args.output_dir or "outputs",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=1))],
    )
    fail_together()
    layout = BatchLayout(
        args.per_device_train_batch_size, args.gradient_accumulation_steps, accelerator.num_processes, accelerator.process_index
    )
    source = open_training_data(args, accelerator.num_processes)
    if isinstance(source, ImageSource):
        layout.check(len(source))
        refuse_unequal({args.dataset: len(source)})
    if args.dry_run:
        dry_run(args, source, layout)
        return
    run = None
    if accelerator.is_main_process:
        run = RunFolder.open(args.output_dir, args.name, config_of(args), args.resume_from_checkpoint, program=PROGRAM)
    output_dir = Path(broadcast_text(str(run.path) if run else ""))
    checkpoint = broadcast_text(str(run.checkpoint or "") if run else "")
    accelerator.project_configuration = ProjectConfiguration(str(output_dir))  # where trackers write
    with StopRequest(LAUNCHERS, args.grace_seconds, getting_ready=True) as stop:
        trainer = Trainer(args, accelerator, source, layout, run, output_dir)
        trainer.start(checkpoint)
        with trainer.monitor.progress(), data_workers_watched(source, layout, args.seed, lambda: trainer.step):
            trainer.train(stop, trainer.begin(stop))
        if trainer.step < args.max_steps:
            raise Stopped(stop.exit_status, trainer.leave(stop))
        trainer.finish(time.perf_counter() - started)


class Trainer:
    """One run: what it is made of, the loop, and what the loop calls."""

    def __init__(self, args, accelerator, source, layout: BatchLayout, run: RunFolder | None, output_dir: Path) -> None:
        self.args, self.accelerator, self.source, self.layout = args, accelerator, source, layout
        self.run, self.output_dir = run, output_dir
        if run is not None:
            print_once(introduction(args, source, layout, output_dir, run.step, accelerator.device.type))
        self.method = build_method(args)
        self.method.to(accelerator.device)
        self.optimizer = build_optimizer(args, self.method)
        self.scaler = LossScaler(accelerator.device.type, enabled=args.mixed_precision == "fp16")
        self.schedules = build_schedules(args, layout.global_batch)
        self.benchmark, self.references = None, {}
        self.model, self.step, self.knn, self.latest = None, 0, {}, {}

    def start(self, checkpoint: str) -> None:
        """Take up a checkpoint or initial weights, and get everything ready for the first step."""
        args = self.args
        changes = self.run.changes if self.run else {}
        state = None
        if checkpoint:
            state = resume_from(Path(checkpoint), args.init_from, args.max_steps, self.method, self.optimizer, changes)
        self.step = state["step"] if state else 0
        self.monitor = Monitor(self.accelerator, self.run, args.max_steps, self.step, args.logging_steps, self.layout.global_batch)
        if state is None and args.init_from:  # before the many images of the benchmark: these weights may be wrong
            for line in load_weights(self.method, args.init_from):
                self.monitor.say(line)
        self.benchmark = build_benchmark(args, self.source, self.run is not None)
        self.data = data_facts(self.source, self.benchmark) if self.run is not None else []
        self.start_state = (state or {}).get("init_from") or state_of_start(args.init_from)
        for line in tell_changed_data(checkpoint, state.get("data"), self.data, args.changed_data) if state else ():
            self.monitor.say(line)
        self.bad_images = BadImageWatch(args.max_bad_fraction, self.run)
        self.places = StreamPlaces(self.source.description, self.layout, args.dataloader_num_workers, self.step)
        self.health_steps = args.health_steps or max(args.max_steps // CHECKS_PER_RUN, 1)
        self.probes = draw_probes(
            self.source, evaluation_size(args), args.seed, note=partial(self.monitor.name_unreadable, "health probes")
        )
        self.in_own_scale = args.num_channels != 3 or self.probes.is_floating_point()  # else pictures of 0 to 255
        self.health = HealthWatch(args.num_prototypes, quiet_steps=max(args.warmup_steps, args.max_steps // 20))
        self.files = RunFiles(args, self.run, self.source, self.method, self.optimizer, self.benchmark, self.in_own_scale, self.monitor.say)
        if state:
            self.take_up(state)
        self.model = self.accelerator.prepare(self.method)
        self.greet()

    def take_up(self, state: dict) -> None:
        """Go on as `state_dict` left off; what makes the course another one is said."""
        for line in changed_course(state, *self.course_options()):
            self.monitor.say(line)
        self.health.load_state_dict(state["health"])
        self.knn = state["knn"]
        self.monitor.load_state_dict(state["monitor"])
        self.bad_images.load_state_dict(state["bad_images"])
        if not isinstance(self.source, ImageSource):
            for line in self.places.load_state_dict(state.get("stream")):
                self.monitor.say(line)
        self.scaler.load(state.get("loss_scaler"))

    def state_dict(self, places: list[dict | None]) -> dict:
        """What a checkpoint holds beside tensors. places: of all processes' readers."""
        return {
            "step": self.step,
            "monitor": self.monitor.state_dict(),
            "bad_images": self.bad_images.state_dict(),
            "stream": places,
            "health": self.health.state_dict(),
            "knn": self.knn,
            "loss_scaler": self.scaler.state_dict(),
            "data": facts_as_json(self.data),
            "init_from": self.start_state,
            **course(*self.course_options()),
        }

    def course_options(self) -> tuple[int, int, str]:
        """The seed, the global batch and how images are read: with other ones a resumed run is another run."""
        return self.args.seed, self.layout.global_batch, pixel_options_text(self.source.pixel_options)

    def begin(self, stop: StopRequest) -> Iterator[dict]:
        """The batches from this step on, the first of which has been read. Only then, on all processes, does an old
        run's folder change.

        Until then `stop` ends the program at once.
        """
        args = self.args
        batches = iter(build_loader(args, self.source, self.layout, self.step, self.places))
        for _ in range(self.places.ahead):
            self.wait_for(batches)
        with time_limit(args.dataloader_timeout):
            first = [next(batches)] if self.step < args.max_steps else []
        self.accelerator.wait_for_everyone()  # a process that cannot start must find the folder as it was
        if args.report_to:
            self.accelerator.init_trackers(args.name, config={key: str(value) for key, value in vars(args).items()})
        stop.training_begins()
        if self.run is not None:
            self.run.begin()
        return chain(first, batches)

    def train(self, stop: StopRequest, batches: Iterator[dict]) -> None:
        """The loop: load, step, judge, save; until the last step or until told to stop."""
        args = self.args
        skipped_in_a_row, stopped = 0, False
        while self.step < args.max_steps and not stopped:
            began, places = time.monotonic(), self.places.mark()
            micro_batches = [self.next_batch(batches) for _ in range(args.gradient_accumulation_steps)]
            outcome = self.training_step(micro_batches, stop)
            if outcome == "broken off":
                self.places.go_back(places)
                self.bad_images.forget(micro_batches)
                self.save(needed=True)
                return
            stop.step_took(time.monotonic() - began)
            self.step += 1
            skipped_in_a_row = 0 if outcome == "taken" else skipped_in_a_row + (outcome == "skipped")
            if skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
                self.save(needed=True)
                raise UserError(
                    f"loss or gradients were not finite for {skipped_in_a_row} steps in a row, the last is step {self.step}; the weights "
                    "saved are those before them. Lower learning_rate, or resume from a checkpoint with a smaller one"
                )
            last = self.step == args.max_steps
            stopped = stop.agreed_at_step_end(can_break_off=len(micro_batches) > 1)
            if last or self.step % self.health_steps == 0:
                self.check_health()
            # whoever told us to stop waits half a minute, and k-NN may take longer
            if args.eval_dataset is not None and (last or (self.step % args.eval_steps == 0 and not stopped)):
                self.judge(None if last else stop)
                stopped = stop.agreed()
            if self.step % args.logging_steps == 0:
                self.bad_images.report()
            if last or stopped or self.step % args.save_steps == 0:
                with stop.save_watched(self.monitor.say):
                    self.save(needed=last or stopped)

    def training_step(self, micro_batches: list[dict], stop: StopRequest) -> Literal["taken", "skipped", "rescaled", "broken off"]:
        """Forward, backward, clip, and, where loss and gradients are finite on every process, update.

        "rescaled": the gradients overflowed in float16, and the next step has a smaller loss scale. "broken off": `stop` leaves no time
        for the micro-batches that are left and a save; everything that a checkpoint holds is as before the step.
        """
        at = {name: float(values[self.step]) for name, values in self.schedules.items()}
        apply_schedules(self.optimizer, at["learning_rate"], at["last_layer_learning_rate"], at["weight_decay"])
        torch.manual_seed(seed_of(self.args.seed, "step", self.step, self.accelerator.process_index))
        totals: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(micro_batches):
            if number and stop.breaks_off():
                self.method.discard_centers()
                self.optimizer.zero_grad(set_to_none=True)
                return "broken off"
            is_last = number == len(micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                with torch.autocast(self.accelerator.device.type, torch.float16, enabled=self.scaler.is_enabled()):
                    losses = self.model(**self.on_device(batch), teacher_temp=at["teacher_temp"])
                self.scaler.scale(losses["loss"] / len(micro_batches)).backward()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / len(micro_batches)
        own_loss, totals = totals["loss"], mean_over_processes(totals)
        self.scaler.unscale_(self.optimizer)
        norms = clip_per_module(dict(self.method.student.items()), self.args.max_grad_norm)
        # the same on every process: the losses are means over all of them, and so are the gradients
        taken = bool(torch.stack([totals["loss"], *norms.values()]).isfinite().all())
        rescaled = not taken and self.scaler.can_fall(totals["loss"])
        if taken:
            self.scaler.step(self.optimizer)
            self.method.update_teacher(at["ema_momentum"])
            self.method.update_centers()
        else:
            self.method.discard_centers()
        self.scaler.update()
        if rescaled:
            self.monitor.tell_rescaled(self.step + 1, self.scaler.figures(), self.scaler.get_scale())
        elif not taken:
            self.monitor.report_skipped(self.step + 1, own_loss, [name for batch in micro_batches for name in batch["ids"]])
        self.optimizer.zero_grad(set_to_none=True)
        if taken:
            self.latest = totals | {f"{name}_grad_norm": norm for name, norm in norms.items()}
            self.monitor.step_done(self.step + 1, self.latest, at | self.scaler.figures())
        return "taken" if taken else "rescaled" if rescaled else "skipped"

    def next_batch(self, batches) -> dict:
        """The next micro-batch; unreadable images among its draws are named and counted."""
        before = time.perf_counter()
        batch = self.wait_for(batches)
        self.monitor.waited_for_data(time.perf_counter() - before)
        self.bad_images.look_at(batch)
        return batch

    def wait_for(self, batches) -> dict:
        """The next micro-batch of a loader, of which a stream's place is kept."""
        with time_limit(self.args.dataloader_timeout):
            batch = next(batches)
        self.places.look_at(batch)
        return batch

    def on_device(self, batch: dict) -> dict:
        """The tensors of a batch that the method takes."""
        names = ("global_crops", "local_crops", "masks", "mask_indices", "mask_weights")
        move = {"device": self.accelerator.device, "non_blocking": True}
        return {name: None if batch[name] is None else batch[name].to(**move) for name in names}

    def judge(self, stop: StopRequest | None) -> None:
        """k-NN of the teacher's backbone; broken off, and nowhere recorded, once `stop` has a signal."""
        encoder = TransformersEncoder(self.method.teacher["backbone"], self.benchmark.transform) if self.run is not None else None
        found = self.benchmark.evaluate(encoder, lambda: stop is not None and stop.signal is not None) if encoder else {}
        if found:
            self.knn = found
            self.monitor.log(self.step, {f"knn_{name}": value for name, value in self.knn.items()})
            self.monitor.say(knn_line(self.step, self.knn))
        self.accelerator.wait_for_everyone()

    def check_health(self) -> None:
        """Figures of the teacher on the probe images; an alarm is said when it begins, and ends the run where the user wants that."""
        args = self.args
        figures = health_figures(
            self.method, self.probes, args.image_mean, args.image_std, float(self.schedules["teacher_temp"][self.step - 1])
        )
        dino_loss = sum(float(value) for name, value in self.latest.items() if name in ("dino_global_loss", "dino_local_loss"))
        figures["dino_loss"] = dino_loss / args.dino_loss_weight if args.dino_loss_weight else float("nan")
        figures["gradient_norm"] = float(self.latest.get("backbone_grad_norm", float("nan")))
        alarms = self.health.look_at(self.step, figures)
        self.monitor.log(self.step, {f"health_{name}": value for name, value in figures.items()} | ({"alarms": alarms} if alarms else {}))
        for name in alarms:
            self.monitor.say(f"health, step {self.step}: {MEANINGS[name](figures)} (docs/health.md)")
        if alarms and args.stop_when_sick:
            raise UserError(f"step {self.step}: stopped by stop_when_sick: {MEANINGS[alarms[0]](figures)}")

    def save(self, needed: bool) -> None:
        """A checkpoint, and the run's root refreshed from it; `needed`: the run ends where it cannot be written."""
        self.bad_images.report()
        places = gather_objects(self.places.state_dict())
        self.files.save(self.state_dict(places), self.references, needed)

    def greet(self) -> None:
        """What the crops are, how large the backbone is, and what it has to beat."""
        if self.run is None:
            return
        parameters = sum(parameter.numel() for parameter in self.method.student["backbone"].parameters())
        self.monitor.say(f"crops           {build_multicrop(self.args, self.source).describe(self.in_own_scale)}")
        self.monitor.say(f"parameters      {parameters / 1e6:.1f} M of the backbone")
        if self.benchmark:
            self.references = self.benchmark.evaluate_baselines() | untrained_accuracy(self.args, self.benchmark)
            self.monitor.say(f"k-NN            {self.benchmark.description}")
            self.monitor.name_unreadable("k-NN", self.benchmark.bad)
            self.monitor.say("to beat         " + ", ".join(f"{name} {value:.1f} %" for name, value in self.references.items()))

    def leave(self, stop: StopRequest) -> str:
        """The last words of a run that was told to stop; its last step is saved."""
        line = f"told to stop: step {self.step} of {self.args.max_steps} is saved; {how_to_go_on(self.output_dir)}{stop.time_taken}"
        self.monitor.say(line)
        self.end()
        return line

    def finish(self, seconds: float) -> None:
        """The encoder of a run that had no step left, figures, and the last words."""
        if self.run is not None:
            self.files.publish_newest(self.step, self.references, self.knn)
            figures = self.files.publish_figures(self.references)
            self.monitor.say(
                f"done in {seconds / 60:.1f} min, peak memory {peak_memory_gib():.1f} GiB; the encoder is {self.output_dir}: "
                f'AutoModel.from_pretrained("{self.output_dir}"); pictures in {figures}'
            )
            self.run.finish()
        self.end()

    def end(self) -> None:
        """Close what the run holds."""
        if self.run is not None:
            self.run.close()
        self.accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
