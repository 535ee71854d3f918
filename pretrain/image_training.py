"""Trains SigLIP and MAE on transformers' Trainer, and publishes the folder. DINOv2, with its teacher
and crops, has a loop of its own in `distillation_training.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from encoders.adapters.transformers_encoder import read_config
from pretrain.batches.image_draws import EpochOrder, ImageDraws, Item
from pretrain.run.complete_model import fit_processor, load_complete_model, normalisation_of
from pretrain.run.image_args import program_of
from pretrain.run.image_card import write_image_card
from vision_core.errors import UserError
from vision_core.images.ranges import range_notes
from vision_core.printable import say
from vision_core.processes.distributed import is_main_process, print_once, refuse_unequal
from vision_core.processes.launchers import launchers_above
from vision_core.processes.stopping import StopRequest
from vision_core.runs.checkpoint_fit import cure_of, misfit_of_configs, refuse_misfit
from vision_core.runs.data_facts import DataFacts, image_facts
from vision_core.runs.folder_checks import FolderAhead
from vision_core.runs.run_folder import RunFolder
from vision_core.trainer.options import TrainerOptions
from vision_core.trainer.preview import introduction, preview
from vision_core.trainer.resume import look_at_start
from vision_core.trainer.run_trainer import RunTrainer, look_at_run, open_run, training_arguments

ADAM_BETAS = (0.9, 0.95)  # published for both


class ImageTrainer(RunTrainer):
    """RunTrainer for models whose loss is the mean over a batch of images."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # else accumulated batches would be summed

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices alone are decayed, as published; biases, norms and SigLIP's temperature are
        not."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load by the library's reader: it writes a model under the names of released checkpoints,
        which for ViTMAE are not those of its modules."""
        cure = cure_of(resume_from_checkpoint, self.changes)
        own_config = self.model.config
        saved = load_complete_model(
            type(self.model), resume_from_checkpoint, "--resume_from_checkpoint", config=own_config, cure=cure
        )
        saved_config = read_config(resume_from_checkpoint)
        misfit = misfit_of_configs(saved_config.to_dict(), own_config.to_dict())
        refuse_misfit(resume_from_checkpoint, misfit, self.changes)
        self.model.load_state_dict(saved.state_dict())

    def refuse_other_model(self, checkpoint: Path) -> None:
        """The model is compared when its weights are loaded, under the names of released
        checkpoints."""


@dataclass(frozen=True)
class ImageParts:
    """What a script builds and `train_images` trains.

    held_out: images whose loss is measured in between. collate: makes a batch of items.
    """

    model: PreTrainedModel
    processor: Any
    data: ImageDraws
    held_out: ImageDraws | None
    collate: Callable[[list[Item]], dict[str, Tensor]]
    trainer_type: type[ImageTrainer]


def train_images(
    name: str,
    options: TrainerOptions,
    parts: ImageParts,
    *,
    dataset: str,
    init_from: str | None,
    card: Mapping[str, Any],
) -> None:
    """Train a model; at the end the run's folder holds its weights, its processor and a card.

    name: `siglip` or `mae`. options: of the Trainer. dataset, init_from: as the user named them.
    card: title, summary and more of `write_model_card`.
    """
    # before signals are remembered: a launcher's ends a process that waits for others to join, one
    # of which has failed
    arguments = trainer_arguments(options, has_eval=parts.held_out is not None)
    with (
        StopRequest(launchers_above(), options.grace_seconds, getting_ready=True) as stop,
        tempfile.TemporaryDirectory() as aside,
    ):
        check_data(parts.data, parts.held_out, options, arguments.world_size)
        processor = fit_processor(parts.processor, parts.data.source)
        tell_unusual_ranges(parts.data, processor)
        if options.dry_run:
            ahead, checkpoint = look_at_run(options, name, program_of(name))
            arguments.output_dir = aside
            trainer = build_trainer(parts, arguments, options, run=ahead, init_from=init_from)
            print_once(preview(trainer, checkpoint))
            return
        run, folder, checkpoint = open_run(options, name, program_of(name))
        arguments.output_dir = folder
        trainer = build_trainer(parts, arguments, options, run=run, init_from=init_from)
        source = parts.data.source
        print_once([f"run folder       {folder}", f"images           {source.description}"])
        print_once(introduction(trainer))
        trainer.train_until_told(stop, checkpoint)
        with trainer.publishing() as new:
            trainer.save_model(str(new))
            if is_main_process():
                write_image_card(
                    Path(folder),
                    name,
                    options,
                    trainer,
                    dataset=dataset,
                    source=source,
                    init_from=init_from,
                    texts=card,
                )
    if is_main_process():
        run.finish()
        say(f"saved {folder}")


def trainer_arguments(options: TrainerOptions, has_eval: bool) -> TrainingArguments:
    """transformers' arguments; making them joins the processes."""
    return training_arguments(
        options,
        has_eval=has_eval,
        dataloader_drop_last=True,
        adam_beta1=ADAM_BETAS[0],
        adam_beta2=ADAM_BETAS[1],
    )


def build_trainer(
    parts: ImageParts,
    arguments: TrainingArguments,
    options: TrainerOptions,
    run: RunFolder | FolderAhead | None,
    init_from: str | None,
) -> ImageTrainer:
    """The trainer of a run. run: on the main process, its folder, or what a dry run knows of it."""
    data_facts = facts_of_images(parts.data, parts.held_out) if run else []
    facts = look_at_start(run, data_facts, init_from, options.changed_data)
    return parts.trainer_type(
        parts.model,
        arguments,
        train_dataset=parts.data,
        eval_dataset=parts.held_out,
        data_collator=parts.collate,
        processing_class=parts.processor,
        sampler=EpochOrder(len(parts.data), options.seed),
        run=run,
        keep=options.save_total_limit,
        facts=facts,
    )


def check_data(
    data: ImageDraws, held_out: ImageDraws | None, options: TrainerOptions, processes: int
) -> None:
    """Raises UserError for data that differs between the processes, or does not fill a step, or one
    look at held-out images: a batch that is not full is left out."""
    num_held_out = len(held_out) if held_out is not None else 0
    refuse_unequal({"the training data": len(data), "the held-out data": num_held_out})
    batch_size = options.per_device_train_batch_size
    a_batch = batch_size * processes
    check_enough("dataset", len(data), a_batch * options.gradient_accumulation_steps, batch_size)
    if held_out is not None:
        check_enough("eval_dataset", num_held_out, a_batch, batch_size)


def check_enough(option: str, num_images: int, needed: int, batch_size: int) -> None:
    """Raises UserError for fewer images than are needed. batch_size: of one process."""
    if num_images >= needed:
        return
    fits = num_images * batch_size // needed
    cure = "give more images, or start fewer processes"
    if fits:
        cure = f"lower --per_device_train_batch_size to {fits} at most"
    raise UserError(f"--{option} has {num_images} images, fewer than a step's {needed}; {cure}")


def tell_unusual_ranges(data: ImageDraws, processor: Any) -> None:
    """Say what is unusual about the values of the images."""
    mean, std = normalisation_of(processor)
    for note in range_notes(data.source, 3, mean, std):
        print_once([f"note: {note}"])


def facts_of_images(data: ImageDraws, held_out: ImageDraws | None) -> list[DataFacts]:
    """Facts of the images that are trained on, and of the held-out ones where they are others."""
    training = image_facts("dataset", data.source)
    if held_out is None:
        return [training]
    judging = image_facts("eval_dataset", held_out.source)
    return [training] if judging.content == training.content else [training, judging]
