"""Run transformers' Trainer in a run's folder, with its options, metrics, progress bar,
checkpoints, stops and resumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import PrinterCallback, SchedulerType, TrainerCallback, TrainingArguments

from vision_core.errors import Stopped, UserError
from vision_core.processes.data_workers import end_data_workers, leave_signals_to_parent
from vision_core.processes.distributed import broadcast_text, is_main_process, print_once, wait_for_all
from vision_core.processes.fail_together import fail_together
from vision_core.processes.stopping import StopRequest
from vision_core.progress import say_above, show_loss, step_bar
from vision_core.runs.checkpoint_fit import refuse_fewer_steps
from vision_core.runs.checkpoints import checkpoint_step
from vision_core.runs.folder_checks import FolderAhead, look_ahead
from vision_core.runs.run_folder import RunFolder, how_to_go_on
from vision_core.trainer.options import TrainerOptions, config_of
from vision_core.trainer.resume import (
    changed_course,
    load_optimizer,
    load_scheduler,
    names_of_states,
    read_facts,
    refuse_other_weights,
    take_over_rates,
    taken_up,
    write_facts,
)
from vision_core.trainer.saving import SavingTrainer
from vision_core.trainer.stops import (
    EvaluationBrokenOff,
    StopWhenTold,
    WatchTimes,
    put_back_random_states,
    random_states,
)

# what TrainingArguments takes as it is; the others decide about folders
PASSED_ON = [
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "warmup_steps",
    "lr_scheduler_type",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "fp16",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "dataloader_num_workers",
    "seed",
]


def training_arguments(options: TrainerOptions, has_eval: bool, **more: Any) -> TrainingArguments:
    """For the Trainer; making them joins the processes. has_eval: there is held-out data. more:
    further ones, as TrainingArguments has them.

    Raises UserError for a precision that is not possible.
    """
    if options.fp16 and options.bf16:
        raise UserError("--fp16 and --bf16 are two kinds of mixed precision; leave out one of them")
    if options.fp16 and not torch.cuda.is_available():
        raise UserError("--fp16 needs a GPU; leave it out, or use --bf16 true")
    settings = TrainingArguments(
        output_dir="outputs",  # replaced by the run's folder once the processes can agree on one
        eval_strategy="steps" if has_eval else "no",
        per_device_eval_batch_size=options.per_device_train_batch_size,
        optim="adamw_torch",
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,  # `Progress` shows it
        **{name: getattr(options, name) for name in PASSED_ON},
        **more,
    )
    _ = settings.device  # joins the processes
    fail_together()
    return settings


def open_run(
    options: TrainerOptions,
    name: str,
    program: str = "",
    check: Callable[[Path], None] | None = None,
    config_yaml: str = "",
) -> tuple[RunFolder | None, str, str]:
    """The run's folder, held by the main process; its path and the checkpoint to go on from, or "",
    the same on every process.

    program: the script, `pretrain/mae.py`, which alone resumes the run. check: of the checkpoint,
    before the folder is changed. config_yaml: what config.yaml says, by default that of `options`.
    """
    run = None
    if is_main_process():
        resume = options.resume_from_checkpoint
        config = config_yaml or config_of(options)
        run = RunFolder.open(options.output_dir, name, config, resume, program=program, check=check)
    path = broadcast_text(str(run.path) if run else "")
    return run, path, broadcast_text(str(run.checkpoint or "") if run else "")


def look_at_run(
    options: TrainerOptions,
    name: str,
    program: str = "",
    check: Callable[[Path], None] | None = None,
    config_yaml: str = "",
) -> tuple[FolderAhead | None, str]:
    """Look, for a dry run, at the folder that its run would take: the folder as it is, on the main
    process, and the checkpoint to go on from, on every process.

    The arguments are those of `open_run`. Nothing is changed. Raises UserError where `open_run`
    would.
    """
    ahead = None
    if is_main_process():
        config = config_yaml or config_of(options)
        ahead = look_ahead(options.output_dir, name, config, options.resume_from_checkpoint, program)
        if check is not None and ahead.checkpoint is not None:
            check(ahead.checkpoint)
    return ahead, broadcast_text(str(ahead.checkpoint or "") if ahead else "")


class RunTrainer(SavingTrainer):
    """Trainer that writes into a run's folder.

    sampler: the order of the training samples; by default the Trainer's, a new permutation for
    every epoch.
    run: on the main process, the folder that gets the metrics; of a dry run, what it knows of it.
    keep: whole checkpoints that stay, None for all. facts: of the run, for its checkpoints
    (`look_at_start` in `resume.py`).
    """

    def __init__(
        self,
        *args: Any,
        sampler: Sampler | None = None,
        facts: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = sampler
        self.facts = dict(facts or {})
        self._has_begun = False
        self._told: StopWhenTold | None = None
        self._step_end: tuple[Any, ...] = ()  # what a step that is broken off has changed, as it was

    def train_until_told(self, stop: StopRequest, checkpoint: str) -> None:
        """All steps from `checkpoint`, or from the start where it is "". Leaves by SystemExit, its
        last step saved, once told to stop."""
        if checkpoint:
            self.look_at(Path(checkpoint))
        # DeepSpeed's engine counts micro-batches itself, also in its checkpoints
        self._told = told = StopWhenTold(
            stop, self.args.gradient_accumulation_steps > 1 and not self.is_deepspeed_enabled
        )
        progress = Progress()
        self.remove_callback(PrinterCallback)
        self.add_callback(TellEpoch())
        self.add_callback(TellSteps())
        self.add_callback(WatchTimes(stop))  # a step's time is measured before the processes agree on it
        self.add_callback(told)
        self.add_callback(progress)
        try:
            with closing(progress):
                self.train(resume_from_checkpoint=checkpoint or None)
                self._begin()  # a run that has had all its steps has taken no batch
        finally:
            end_data_workers()
        if told.stopped:
            folder = self.args.output_dir
            step = self.state.global_step
            line = (
                f"told to stop: step {step} of {self.state.max_steps} is saved; "
                f"{how_to_go_on(folder)}{stop.time_taken}"
            )
            print_once([line])
            raise Stopped(stop.exit_status, line)

    def rehearse_resume(self, checkpoint: str, steps: int) -> None:
        """For a dry run: what a start of `steps` asks of `checkpoint`, "" for none. Raises
        UserError where it would.

        DeepSpeed loads weights and states while it makes its engine, so there they are looked at as
        far as headers and small files go.
        """
        if not checkpoint:
            return
        folder = Path(checkpoint)
        self.look_at(folder)
        refuse_fewer_steps(folder, checkpoint_step(folder), steps, self._option_of_steps)
        if not self.is_deepspeed_enabled:
            self._load_from_checkpoint(checkpoint)
            self.create_optimizer()
            load_optimizer(
                folder, self.optimizer, self.model, read_facts(folder).get("optimizer", []), self.changes
            )

    @property
    def _option_of_steps(self) -> str:
        """The option that says how long the run is."""
        return "max_steps" if self.args.max_steps > 0 else "num_train_epochs"

    @property
    def changes(self) -> Mapping[str, tuple[Any, Any]]:
        """The options that a resumed run changes, known to the main process alone."""
        return self.run.changes if self.run is not None else {}

    def look_at(self, checkpoint: Path) -> None:
        """Hold a checkpoint against this run, as far as headers and small files go. Raises
        UserError, on the main process, where it is another's."""
        if is_main_process():
            facts = read_facts(checkpoint)
            with taken_up(str(checkpoint), self.changes):
                self.refuse_other_model(checkpoint)
            for line in changed_course(facts, self.args.seed, self.samples_of_a_step()):
                print_once([line])
        wait_for_all()

    def refuse_other_model(self, checkpoint: Path) -> None:
        """Raises UserError."""
        refuse_other_weights(checkpoint, self.model, self.changes)

    def samples_of_a_step(self) -> int:
        """Over all processes and accumulated batches."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def write_beside(self, folder: Path) -> None:
        """What a resume asks of a checkpoint and the Trainer does not write, before `folder` is
        sealed."""
        own = {"seed": self.args.seed, "samples of a step": self.samples_of_a_step()}
        names = names_of_states(self.model, self.optimizer)
        write_facts(folder, {**self.facts, **own, "optimizer": names})

    def rate_of(self, name: str) -> float:
        """The highest learning rate of the parameter of this name, where it trains."""
        return self.args.learning_rate

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of a batch that is not trained on."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return (self.compute_loss(model, self._prepare_inputs(inputs)).detach().mean(), None, None)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's, with the step of a scheduler that goes by the loss. Where the evaluation
        was broken off because the run was told to stop, {}, no line in the log and no such step: a
        resumed run evaluates again."""
        try:
            return super()._evaluate(*args, **kwargs)
        except EvaluationBrokenOff:
            return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The Trainer's, which asks for it under a schedule that goes by the loss; no evaluation
        that was broken off is the best."""
        return bool(metrics) and super()._determine_best_metric(metrics, trial)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """The Trainer's own; a warm-up that was given in steps must end within the run, one given
        as a share leaves a run of one step its rate."""
        refuse_fewer_steps(
            "the checkpoint", self.state.global_step, num_training_steps, self._option_of_steps
        )
        check_warmup(self.args.warmup_steps, num_training_steps)
        if self.args.get_warmup_steps(num_training_steps) >= num_training_steps:
            self.args.warmup_steps = (
                0  # transformers rounds a share up, and the only step would have the rate 0
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The checkpoint's states, by the names of parameters, under this run's rates, which the
        Trainer would take from the checkpoint."""
        scheduler = getattr(
            self.lr_scheduler, "scheduler", self.lr_scheduler
        )  # accelerate may have put its own around it
        rates = list(getattr(scheduler, "base_lrs", ()))
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            names = read_facts(checkpoint).get("optimizer", [])
            load_optimizer(Path(checkpoint), self.optimizer, self.model, names, self.changes)
            load_scheduler(Path(checkpoint), self.lr_scheduler, len(self.optimizer.param_groups))
        if checkpoint is not None and isinstance(scheduler, LambdaLR):
            follow_schedule(scheduler, rates)
        elif checkpoint is not None and not self.is_deepspeed_enabled:
            schedule = SchedulerType(self.args.lr_scheduler_type).value
            take_over_rates(Path(checkpoint), self.optimizer, self.model, schedule, self.changes)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with taken_up(resume_from_checkpoint, self.changes):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """DeepSpeed loads its states in here."""
        with taken_up(resume_from_checkpoint, self.changes):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of a step; once the first of them are there, the run begins."""
        batches = super().get_batch_samples(*args, **kwargs)
        self._begin()
        return batches

    def _begin(self) -> None:
        """The run's folder is changed only now, when every process has its model, its data and the
        checkpoint's states."""
        if self._has_begun:
            return
        self._has_begun = True
        if self.eval_dataset is not None:
            _ = self.eval_dataset[0]  # or what is wrong with held-out data would be found after many steps
        wait_for_all()
        if self._told is not None:
            self._told.stop.training_begins()
        if self.run is not None:
            self.run.begin()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer calls it after every step, and at the end of an epoch or of what was done of
        it.

        So a step that was broken off is saved with what the last whole step and its evaluation
        left.
        """
        if self._told is not None and self._told.broke_off:
            states, self.current_flos, self._tr_loss = self._step_end
            put_back_random_states(states)
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._told is not None and self._told.stop.breaks_steps:
            self._step_end = random_states(), self.current_flos, self._tr_loss.clone()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """To metrics.jsonl too. Raises UserError, on all processes alike, for a loss that is no
        number."""
        super().log(logs, start_time)
        if self.run is not None:
            self.run.append_metrics({"step": self.state.global_step, **logs})
        if not math.isfinite(logs.get("loss", 0.0)):
            raise UserError(
                f"the loss is {logs['loss']} at step {self.state.global_step}; resume from the last "
                "checkpoint with a smaller learning rate, "
                "or without bf16"
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer takes one step more where a run is resumed that has had all of
        `max_steps`."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Data workers leave signals to this process, which needs them until it has saved."""
        loader = super()._get_dataloader(*args, **kwargs)
        inner = getattr(
            loader, "base_dataloader", loader
        )  # accelerate's wrapper hands attributes on, and does not take them
        inner.worker_init_fn = partial(start_worker, inner.worker_init_fn)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Resuming with weights that are not the run's would be no resuming."""
        tied = set(getattr(self.model, "all_tied_weights_keys", {}))
        wrong = sorted([*(set(load_result.missing_keys) - tied), *load_result.unexpected_keys])
        if wrong:
            raise UserError(
                f"the checkpoint is of another model: {len(wrong)} tensors are missing or too many, first {wrong[:3]}"
            )

    def write_model(self, folder: str, state_dict: dict[str, torch.Tensor] | None) -> None:
        """ZeRO-3 gathers tied weights once for each of their names; they are saved once, as by all
        others."""
        if state_dict is not None:
            tied = getattr(self.model, "all_tied_weights_keys", {})
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in tied}
        super().write_model(folder, state_dict)


def follow_schedule(scheduler: LambdaLR, rates: Sequence[float]) -> None:
    """Give the optimizer's groups the rates that `scheduler` has for its step, with `rates` at
    their highest.

    A state that was loaded has those of the run that saved it: the first step of a finished run
    that goes on would have the rate 0, and a smaller --learning_rate would be none.
    """
    scheduler.base_lrs = list(rates)
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    for group, rate, factor in zip(scheduler.optimizer.param_groups, rates, factors, strict=True):
        group["initial_lr"] = rate
        group["lr"] = rate * factor
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


def check_warmup(warmup_steps: float, steps: int) -> None:
    """Raises UserError for a warm-up in steps, not in a share of them, that does not end before the
    last of `steps`."""
    if warmup_steps >= max(steps, 1):
        raise UserError(
            f"--warmup_steps {warmup_steps:g} is not below the run's {steps} steps; train longer, or for a "
            "short trial add --warmup_steps 0"
        )


def start_worker(then: Callable[[int], None] | None, number: int) -> None:
    """In data worker `number`, before what the Trainer does there."""
    leave_signals_to_parent()
    if then is not None:
        then(number)


class TellEpoch(TrainerCallback):
    """The sampler learns its epoch. The Trainer tells it too, but in a resumed run of several
    processes its word does not get through accelerate's wrappers, and the rest of a later epoch
    would be that of the first.
    """

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        batches = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        sampler = getattr(batches, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(int(state.epoch or 0))


class TellSteps(TrainerCallback):
    """The last step's loss is logged, however short the run; and a resumed run logs, measures and
    saves as often as it now says.

    The Trainer takes these numbers from the checkpoint, and logs at multiples of `logging_steps`
    alone.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True


class Progress(TrainerCallback):
    """A bar for the steps, and a line above it for what was measured; on the main process."""

    SHOWN: Sequence[str] = ("loss", "eval_loss", "learning_rate", "grad_norm")

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar = step_bar(state.max_steps, state.global_step, "training")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if self.bar is not None and "loss" in logs:
            show_loss(self.bar, logs["loss"])
        measured = [f"{name.replace('_', ' ')} {logs[name]:.4g}" for name in self.SHOWN if name in logs]
        if self.bar is not None and measured:
            say_above(f"step {state.global_step}: {', '.join(measured)}")

    def close(self) -> None:
        """Before anything else is said."""
        if self.bar is not None:
            self.bar.close()
