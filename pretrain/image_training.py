"""What SigLIP and MAE share: image data in an exact order, the Trainer, the published folder. DINOv2, with its teacher and crops, has a loop of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedConfig, PreTrainedModel

from encoders.transformers_encoder import read_config
from pretrain.image_args import program_of
from pretrain.own_evaluation import HELD_OUT
from vision_core.checkpoint_fit import cure_of, misfit_of_configs, refuse_misfit
from vision_core.data_facts import DataFacts, image_facts
from vision_core.distributed import is_main_process, print_once, refuse_unequal, world_size
from vision_core.errors import UserError, first_line
from vision_core.folder_kinds import refuse_folder
from vision_core.images.decode import UnreadableImage
from vision_core.images.held_out import hold_out
from vision_core.images.one_kind import OneKind
from vision_core.images.pixel_options import Scale, pixel_options_text
from vision_core.images.ranges import range_notes
from vision_core.images.sources import ImageSource, open_source
from vision_core.launchers import is_first_launched
from vision_core.model_card import write_model_card
from vision_core.printable import say
from vision_core.randomness import numpy_generator
from vision_core.run_facts import batch_text, data_licence, made_with, millions, run_again
from vision_core.run_preview import introduction, preview
from vision_core.run_trainer import RunTrainer, look_at_run, open_run, training_arguments
from vision_core.stopping import StopRequest
from vision_core.trainer_options import TrainerOptions
from vision_core.trainer_resume import look_at_start

Item = dict[str, Any]
SHOWN = ("init_from", "learning_rate", "weight_decay", "warmup_steps", "bf16", "fp16", "seed")
MOST_HELD_OUT = 500  # images whose loss is measured in between


class DrawnImages(Dataset):
    """The images of `source`, once for every draw. Draw number `epoch * len(source) + index` is `make(image, epoch, index)`, so what is random in it can
    be a function of epoch and index. Images: `[3, H, W]`, uint8, or float32 of 0..1 with `?scale=`.

    Raises UserError, which names the image, for one that cannot be read, or is of another kind than those before it.
    """

    def __init__(self, source: ImageSource, make: Callable[[Tensor, int, int], Item]) -> None:
        self.source, self.make, self.kind = source, make, OneKind()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: int) -> Item:
        epoch, index = divmod(draw, len(self.source))
        try:
            record = self.source[index]
        except UnreadableImage as error:
            raise UserError(f"{self.source.id_of(index)} cannot be read ({error}); mend it or take it out of the data") from None
        self.kind.look_at(record.image, record.id)
        return self.make(record.image, epoch, index)


class Draws(Sampler[int]):
    """The draws of an epoch in an order that is a function of (seed, epoch)."""

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images, self.seed, self.epoch = num_images, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """By the Trainer, before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[int]:
        order = numpy_generator("draws", self.seed, self.epoch).permutation(self.num_images)
        return iter((self.epoch * self.num_images + order).tolist())


class ImageTrainer(RunTrainer):
    """RunTrainer for models whose loss is the mean over a batch of images."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # else accumulated batches would be summed

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices alone, as published: neither biases and norms nor SigLIP's temperature."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """By the library's reader: it writes a model under the names of released checkpoints, which for ViTMAE are not those of its modules."""
        cure = cure_of(resume_from_checkpoint, self.changes)
        saved = load_whole(type(self.model), resume_from_checkpoint, "--resume_from_checkpoint", self.model.config, cure)
        theirs = read_config(resume_from_checkpoint).to_dict()
        refuse_misfit(resume_from_checkpoint, misfit_of_configs(theirs, self.model.config.to_dict()), self.changes)
        self.model.load_state_dict(saved.state_dict())

    def refuse_other_model(self, checkpoint: Path) -> None:
        """Looked at when the weights are loaded, under the names of released checkpoints."""


def open_images(text: str, auto_scale: Scale | None = None) -> ImageSource:
    """The images of a source text, `auto_scale` as in `open_source`. Raises UserError for a stream, whose length and order nobody knows."""
    source = open_source(text, auto_scale=auto_scale)
    if not isinstance(source, ImageSource):
        raise UserError(f"{text} is a stream; give images that can be read in any order, a folder or parquet: (docs/data.md)")
    return source


def open_parts(options: Any, open_one: Callable[..., ImageSource] = open_images) -> tuple[ImageSource, ImageSource | None]:
    """The images that are trained on and those whose loss is measured in between, of options with `dataset` and `eval_dataset`.

    With eval_dataset=held_out the second are a part of the first, which is not trained on. Where that part would not fill a batch, this is
    said, and `options.eval_dataset` becomes None. open_one: from a text, and what its `?scale=auto` stands for, to images.
    """
    source = open_one(options.dataset)
    if options.eval_dataset != HELD_OUT:
        return source, open_one(options.eval_dataset, source.pixel_options.scale) if options.eval_dataset else None
    part = hold_out(source, options.seed, MOST_HELD_OUT)
    a_batch = options.per_device_train_batch_size * int(os.environ.get("WORLD_SIZE", 1))
    if len(part.held_out) >= a_batch and len(part) >= a_batch * options.gradient_accumulation_steps:
        return part, part.held_out
    if is_first_launched():
        share = "a tenth" if len(source) // 10 < a_batch else "what can be held out in whole files"
        say(f"no held-out loss: {share} of {len(source):,} images does not fill a batch of {a_batch}; name others by --eval_dataset")
    options.eval_dataset = None
    return source, None


def load_whole(
    model_class: type[PreTrainedModel],
    name: str,
    option: str = "--init_from",
    config: PreTrainedConfig | None = None,
    cure: str = "give a whole checkpoint",
) -> PreTrainedModel:
    """A model from a folder, or inside `hub_or_cache` from the Hub, in float32.

    config: what it must be, to the last weight; by default whatever the checkpoint says. cure: of weights that do not fit.

    Raises UserError, which names `option`, for a model of another kind, for missing weights, or for what cannot be read.
    """
    name = name.removeprefix("hf:")
    wanted = model_class.config_class.model_type
    if os.path.isdir(name):
        refuse_folder(name, f"a whole {wanted} of transformers", ("encoder", "model", "unknown"))
    theirs = read_config(name)
    if theirs.model_type != wanted:
        raise UserError(f"{option} {name} is a {theirs.model_type}; give a {wanted}")
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, report = model_class.from_pretrained(name, config=config or theirs, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{option} {name} cannot be loaded ({first_line(error)}); give a whole {wanted}") from None
    others = {key: f"{key}, which is {list(theirs)} there and {list(ours)} here" for key, theirs, ours in report["mismatched_keys"]}
    missing = sorted([*report["missing_keys"], *others])
    if missing:
        first = others.get(missing[0], missing[0])
        raise UserError(f"{option} {name} lacks {len(missing)} weights of a {wanted} of this size, such as {first}; {cure}")
    if config and report["unexpected_keys"]:
        raise UserError(f"{option} {name} has more weights than the run's model, such as {min(report['unexpected_keys'])}; {cure}")
    return model


def check_enough(data: DrawnImages, held_out: DrawnImages | None, options: TrainerOptions, processes: int) -> None:
    """Raises UserError for data that does not fill a step, or one look at held-out images: a batch that is not full is left out."""
    together = options.per_device_train_batch_size * processes
    for name, images, needed in (("dataset", data, together * options.gradient_accumulation_steps), ("eval_dataset", held_out, together)):
        if images is not None and len(images) < needed:
            fits = len(images) * options.per_device_train_batch_size // needed
            cure = f"lower --per_device_train_batch_size to {fits} at most" if fits else "give more images, or start fewer processes"
            raise UserError(f"--{name} has {len(images)} images, fewer than a step's {needed}; {cure}")


def train_images(
    name: str,
    options: TrainerOptions,
    launchers: list[tuple[int, str]],
    model: PreTrainedModel,
    processor: Any,
    data: DrawnImages,
    held_out: DrawnImages | None,
    collate: Callable[[list[Item]], dict[str, Tensor]],
    trainer_type: type[ImageTrainer],
    adam_betas: tuple[float, float],
    card: Mapping[str, Any],
) -> None:
    """Train `model`; at the end the run's folder holds its weights, `processor` and a card. card: title, summary and more of `write_model_card`."""
    program = program_of(name)
    # before signals are remembered: a launcher's ends a process that waits for others to join, one of which has failed
    settings = training_arguments(
        options, has_eval=held_out is not None, dataloader_drop_last=True, adam_beta1=adam_betas[0], adam_beta2=adam_betas[1]
    )
    with StopRequest(launchers, options.grace_seconds, getting_ready=True) as stop, tempfile.TemporaryDirectory() as aside:
        refuse_unequal({"the training data": len(data), "the held-out data": len(held_out or ())})
        check_enough(data, held_out, options, settings.world_size)
        processor = fitted_processor(processor, data.source)
        for note in range_notes(data.source, 3, *normalisation(processor)):
            print_once(f"note: {note}")
        if options.dry_run:
            folder, (run, checkpoint) = aside, look_at_run(options, name, program)
        else:
            run, folder, checkpoint = open_run(options, name, program)
        settings.output_dir = folder
        facts = look_at_start(run, facts_of_images(data, held_out) if run else [], options.init_from, options.changed_data)
        trainer = trainer_type(
            model,
            settings,
            train_dataset=data,
            eval_dataset=held_out,
            data_collator=collate,
            processing_class=processor,
            sampler=Draws(len(data), options.seed),
            run=run,
            keep=options.save_total_limit,
            facts=facts,
        )
        if options.dry_run:
            print_once(preview(trainer, checkpoint))
            return
        print_once([f"run folder       {folder}", f"images           {data.source.description}", *introduction(trainer)])
        trainer.train_until_told(stop, checkpoint)
        with trainer.publishing() as new:
            trainer.save_model(str(new))
            if is_main_process():
                write_card(Path(folder), program, options, data.source, trainer, card)
    if is_main_process():
        run.finish()
        say(f"saved {folder}")


def facts_of_images(data: DrawnImages, held_out: DrawnImages | None) -> list[DataFacts]:
    """Of the images that are trained on, and of those that are held out where they are no part of them."""
    training = image_facts("dataset", data.source)
    judging = [image_facts("eval_dataset", held_out.source)] if held_out else []
    return [training, *(facts for facts in judging if facts.content != training.content)]


def fitted_processor(processor: Any, source: ImageSource) -> Any:
    """`processor`, which divides by 255 only where the images of `source` are pictures of 0 to 255: `?scale=` has made them 0..1.

    It is set both ways, for a processor of `--init_from` may come from data of the other kind. `pixel_options` is how files were read.
    """
    images = getattr(processor, "image_processor", processor)
    images.do_rescale = source.pixel_options.scale is None
    images.pixel_options = pixel_options_text(source.pixel_options)
    return processor


def normalisation(processor: Any) -> tuple[list[float], list[float]]:
    """Mean and std of an image processor, alone or beside a tokenizer."""
    images = getattr(processor, "image_processor", processor)
    return images.image_mean, images.image_std


def write_card(
    folder: Path, program: str, options: TrainerOptions, source: ImageSource, trainer: ImageTrainer, card: Mapping[str, Any]
) -> None:
    """README.md of the run's folder, with the last losses of the log."""
    figures = {"loss": "training loss, at the end", "eval_loss": "loss of held-out images"}
    log = trainer.state.log_history
    last = {key: next((line[key] for line in reversed(log) if key in line), None) for key in figures}
    write_model_card(
        folder / "README.md",
        training_command=run_again(program, folder, "accelerate launch"),
        data=f"{source.description}. Source: `{options.dataset}`.\n\n{data_licence([options.dataset])}",
        results=[{"figure": figures[key], "value": f"{value:.4f}"} for key, value in last.items() if value is not None],
        settings=facts(options, trainer) | {key: getattr(options, key) for key in SHOWN},
        note=f"{seen(options, trainer, len(source))} A loss is no judgement of features; recipes/evaluate_encoder.py judges them. "
        "What the model makes of other images is not known, and nothing was done about biases in the data.",
        **card,
    )


def facts(options: TrainerOptions, trainer: ImageTrainer) -> dict[str, str]:
    """What a reader compares first: size, images, batch, steps, and with what it was made."""
    config = getattr(trainer.model.config, "vision_config", trainer.model.config)
    return {
        "parameters": millions([trainer.model]),
        "image sizes": f"{config.image_size} x {config.image_size} in patches of {config.patch_size}",
        "images": batch_text(options.per_device_train_batch_size, options.gradient_accumulation_steps),
        "steps": f"{trainer.state.global_step:,}",
        **made_with(),
    }


def seen(options: TrainerOptions, trainer: ImageTrainer, num_images: int) -> str:
    """How much the model has seen."""
    step = trainer.state.global_step
    drawn = step * options.per_device_train_batch_size * options.gradient_accumulation_steps * world_size()
    return f"It was trained for {step:,} steps and has seen {drawn:,} images, {drawn / num_images:.1f} passes over {num_images:,}."
