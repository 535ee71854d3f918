"""One stage of training a fused vision-language model, from joining the processes to the published
folder.

`train_stage` is what the scripts `recipes/sva_align.py` and `recipes/sva_sft.py` call. The order of
its steps keeps the promises of docs/architecture.md: a mistake is told before anything is made, and
a run that goes on changes its folder only once the first batch is there.

    what trains, at which rates     fusion/training/plan.py
    one optimizer step              fusion/training/trainer.py, VlmTrainer.compute_loss
    how a checkpoint gets visible   vision_core/trainer/saving.py, SavingTrainer._write_checkpoint
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from fusion.conversations.batches import ConversationCollator
from fusion.conversations.mixtures import ConversationDataset
from fusion.conversations.stream_data import Source
from fusion.map_cache import MapCache
from fusion.training.cache_of_a_run import open_filled_cache
from fusion.training.card import write_stage_card
from fusion.training.data import build_training_data, facts_of_rows, open_alike
from fusion.training.models import check_model_folder, load_model, merge_adapter
from fusion.training.options import DataOptions, MemoryOptions, Stage
from fusion.training.plan import StagePlan, apply_plan
from fusion.training.small_default import corpus, write_small_default
from fusion.training.trainer import VlmTrainer
from fusion.training.zero import fetch_layers_as_one, join_deepspeed, name_a_single_process
from vision_core.printable import say
from vision_core.processes.distributed import is_main_process, print_once, share_cores, world_size
from vision_core.processes.launchers import is_first_launched, launchers_above
from vision_core.processes.stopping import StopRequest
from vision_core.runs.checkpoint_fit import refuse_other_start
from vision_core.runs.folder_checks import FolderAhead, checkpoint_ahead, config_in
from vision_core.runs.run_folder import RunFolder
from vision_core.trainer.options import TrainerOptions
from vision_core.trainer.preview import introduction, preview
from vision_core.trainer.resume import look_at_start
from vision_core.trainer.run_trainer import look_at_run, open_run, training_arguments
from vision_core.trainer.zero_checkpoint import refuse_other_layout

# Weights that train. In bf16 small steps would be rounded away; mixed precision makes its own copies.
TRAINED_DTYPE = torch.float32
CACHE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS_OF_A_DRY_RUN = 64  # whose length a dry run looks at


def train_stage(
    stage: Stage,
    init_from: str | None,
    plan: StagePlan,
    data: DataOptions,
    memory: MemoryOptions,
    training: TrainerOptions,
) -> None:
    """Train what `plan` says of a fused model on `data`, and publish the model in the run's folder.

    init_from: the folder of the fused model, or None for small stand-ins that are made here.

    Raises UserError for whatever is wrong, and Stopped once the run was told to stop and has saved
    its last step.
    """
    share_cores()
    training = replace(training, learning_rate=plan.learning_rate)
    if init_from is None:
        refuse_forgotten_start(training)
    else:
        check_model_folder(init_from)
    with tempfile.TemporaryDirectory() as aside:
        model_folder = init_from
        if model_folder is None:
            # before ZeRO-3 takes over how models are made, and while a signal still ends the
            # program at once: there is nothing yet to save
            model_folder = f"{aside}/model"
            make_small_model(Path(model_folder), data.conversations, training)
        # before signals are remembered: a launcher's signal ends a process that waits for others to
        # join, one of which has failed
        settings = join_processes(training, memory, has_held_out=bool(data.held_out))
        run = StageRun(stage, init_from, model_folder, plan, data, training, settings)
        with StopRequest(launchers_above(), training.grace_seconds, getting_ready=True) as stop:
            if training.dry_run:
                run.show_dry_run(aside=f"{aside}/run")
            else:
                run.train_and_publish(stop)


def refuse_forgotten_start(training: TrainerOptions) -> None:
    """Raises UserError where a run that began from a model is to go on without --init_from: before
    small stand-ins learn for minutes."""
    checkpoint = checkpoint_ahead(training.output_dir, training.resume_from_checkpoint)
    began_from = config_in(checkpoint.parent).get("init_from") if checkpoint else None
    if began_from is not None:
        refuse_other_start(None, {"init_from": (began_from, None)})


def make_small_model(folder: Path, conversations: Sequence[str], training: TrainerOptions) -> None:
    """Write small stand-ins for published models, fused. A dry run leaves them untaught, with the
    same words and sizes."""
    if is_first_launched():
        learning = "" if training.dry_run else ", and learn from drawn scenes first"
        say(f"no --init_from: small stand-ins are made{learning}")
    write_small_default(
        folder, corpus(conversations), training.seed, stand_ins=True, learn=not training.dry_run
    )


def join_processes(training: TrainerOptions, memory: MemoryOptions, has_held_out: bool) -> TrainingArguments:
    """The Trainer's settings. Making them joins the processes, and prepares ZeRO-3, so it comes
    before the model."""
    if memory.zero_config is not None:
        name_a_single_process()
    settings = training_arguments(
        training,
        has_eval=has_held_out,
        label_names=["labels"],
        activation_checkpointing=memory.activation_checkpointing,
        deepspeed=memory.zero_config,
    )
    if memory.zero_config is not None:
        join_deepspeed()
    return settings


@dataclass(frozen=True)
class StageRun:
    """A stage whose processes have joined.

    Attributes:
        init_from: the model's folder as the user named it, or None.
        model_folder: the same, or the folder of the small stand-ins.
        settings: the Trainer's. Its `deepspeed` is the config for DeepSpeed, or None.
    """

    stage: Stage
    init_from: str | None
    model_folder: str
    plan: StagePlan
    data: DataOptions
    training: TrainerOptions
    settings: TrainingArguments

    def train_and_publish(self, stop: StopRequest) -> None:
        """All steps, from the start or from a checkpoint; then the published model."""
        sources, held_out = open_alike(self.data)
        folder, path, checkpoint = self.open_folder()
        self.settings.output_dir = path
        print_once(self.header(path, checkpoint))
        files = facts_of_rows(sources, held_out) if folder else []
        facts = look_at_start(folder, files, self.init_from, self.training.changed_data)
        trainer = self.build_trainer(sources, held_out, folder, self.filled_cache(sources, held_out))
        trainer.facts = facts
        print_once(introduction(trainer))
        trainer.train_until_told(stop, checkpoint)
        self.publish(trainer)

    def show_dry_run(self, aside: str) -> None:
        """Do all that a run does before its first step, except for its folder and its feature cache;
        then say what the run would be.

        aside: a folder that is thrown away.
        """
        folder, checkpoint = look_at_run(
            self.training,
            self.stage.name,
            program=self.stage.program,
            check=self.check_checkpoint,
            config_yaml=self.stage.config_yaml,
        )
        sources, held_out = open_alike(self.data)
        self.settings.output_dir = aside
        files = facts_of_rows(sources, held_out) if folder else []
        look_at_start(folder, files, self.init_from, self.training.changed_data)
        trainer = self.build_trainer(sources, held_out, folder)
        print_once([*preview(trainer, checkpoint), self.longest_row(trainer.train_dataset)])

    def open_folder(self) -> tuple[RunFolder | None, str, str]:
        """The run's folder, on the main process; its path, and the checkpoint to go on from or ""."""
        return open_run(
            self.training,
            self.stage.name,
            program=self.stage.program,
            check=self.check_checkpoint,
            config_yaml=self.stage.config_yaml,
        )

    def check_checkpoint(self, checkpoint: Path) -> None:
        """Raises UserError where this run could not take up the optimizer's states of
        `checkpoint`."""
        refuse_other_layout(checkpoint, self.settings.deepspeed, world_size())

    def header(self, folder: str, checkpoint: str) -> list[str]:
        """What the run is by its options, told before a model is loaded and features are computed
        for hours."""
        lines = [
            f"run folder       {folder}",
            f"model            {self.init_from or 'small stand-ins'}",
            f"conversations    {', '.join(self.data.conversations)}",
            f"held out         {', '.join(self.data.held_out) or 'nothing'}",
        ]
        if checkpoint:
            lines.append(f"goes on from     {checkpoint}")
        return lines

    def filled_cache(self, sources: Sequence[Source], held_out: Sequence[Source]) -> MapCache | None:
        """The cache of the frozen encoders' features with every image of the run in it, or None for
        a run without one."""
        if not self.data.feature_cache:
            return None
        return open_filled_cache(
            Path(self.data.feature_cache),
            CACHE_DTYPES[self.data.feature_cache_dtype],
            self.model_folder,
            self.settings,
            [*sources, *held_out],
        )

    def build_trainer(
        self,
        sources: Sequence[Source],
        held_out: Sequence[Source],
        folder: RunFolder | FolderAhead | None = None,
        cache: MapCache | None = None,
    ) -> VlmTrainer:
        """The model, of which the plan says what trains, its data, and the Trainer of the two."""
        model, processor = load_model(self.model_folder, TRAINED_DTYPE)
        if is_deepspeed_zero3_enabled():
            fetch_layers_as_one(model)
        data = self.data
        seed = self.training.seed
        trained_model = apply_plan(model, self.plan, seed)
        dataset, order = build_training_data(
            sources,
            data,
            processor,
            seed=seed,
            samples_of_a_step=self.samples_of_a_step(),
            max_steps=self.training.max_steps,
            cache=cache,
        )
        measured = (
            ConversationDataset(held_out, processor, data.max_length, seed, cache) if held_out else None
        )
        return VlmTrainer(
            trained_model,
            self.settings,
            train_dataset=dataset,
            eval_dataset=measured,
            data_collator=ConversationCollator(processor, data.packing, cache),
            processing_class=processor,
            own_rates=self.plan.own_rates(),
            sampler=order,
            run=folder,
            keep=self.training.save_total_limit,
        )

    def samples_of_a_step(self) -> int:
        """The conversations of one optimizer step, over all processes and accumulated batches."""
        settings = self.settings
        return settings.train_batch_size * settings.gradient_accumulation_steps * world_size()

    def longest_row(self, rows: Dataset) -> str:
        """A line about the longest of the first rows, in tokens."""
        count = min(len(rows), ROWS_OF_A_DRY_RUN)
        longest = max(len(rows[number]["input_ids"]) for number in range(count))
        return (
            f"longest          {longest:,} tokens, of the first {count:,} rows; "
            f"--max_length is {self.data.max_length:,}"
        )

    def publish(self, trainer: VlmTrainer) -> None:
        """The trained model with all its weights, its processor and its card, in the run's
        folder."""
        folder = Path(self.settings.output_dir)
        has_adapter = self.plan.language_model == "lora"
        with trainer.publishing() as aside:
            trainer.save_model(str(aside / "adapter" if has_adapter else aside))
            if is_main_process():
                if has_adapter:
                    unset_hf_deepspeed_config()  # the merged model is made with all its weights here
                    merge_adapter(self.model_folder, aside / "adapter", aside)
                write_stage_card(folder, self.stage, self.plan, self.data, trainer)
        if is_main_process():
            trainer.run.finish()
            say(f"saved {folder}")
