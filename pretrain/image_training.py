"""What SigLIP and MAE share: image data in an exact order, the Trainer, the published folder. DINOv2, with its teacher and crops, has a loop of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel

from vision_core.distributed import is_main_process
from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.sources import ImageSource, open_source
from vision_core.model_card import write_model_card
from vision_core.randomness import numpy_generator
from vision_core.run_trainer import RunTrainer, TrainerOptions, open_run, training_arguments
from vision_core.stopping import StopRequest

Item = dict[str, Any]
SHOWN = ("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "weight_decay", "warmup_steps", "bf16", "seed")


class DrawnImages(Dataset):
    """The images of `source`, once for every draw. Draw number `epoch * len(source) + index` is `make(image, epoch, index)`, so what is random in it can
    be a function of epoch and index. Images: uint8 `[3, H, W]`.

    Raises UserError, which names the image, for one that cannot be read.
    """

    def __init__(self, source: ImageSource, make: Callable[[Tensor, int, int], Item]) -> None:
        self.source, self.make = source, make

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: int) -> Item:
        epoch, index = divmod(draw, len(self.source))
        try:
            return self.make(self.source[index].image, epoch, index)
        except UnreadableImage as error:
            raise UserError(f"{self.source.id_of(index)} cannot be read ({error}); mend it or take it out of the data") from None


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


def open_images(text: str) -> ImageSource:
    """The images of a source text. Raises UserError for a stream, whose length and order nobody knows."""
    source = open_source(text)
    if not isinstance(source, ImageSource):
        raise UserError(f"{text} is a stream; give images that can be read in any order, a folder or parquet: (docs/data.md)")
    return source


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
    with StopRequest(launchers) as stop:
        settings = training_arguments(
            options, has_eval=held_out is not None, dataloader_drop_last=True, adam_beta1=adam_betas[0], adam_beta2=adam_betas[1]
        )
        batch = options.per_device_train_batch_size * options.gradient_accumulation_steps * settings.world_size
        if len(data) < batch:
            raise UserError(f"there are {len(data)} images, fewer than a step's {batch}; lower --per_device_train_batch_size")
        run, folder, checkpoint = open_run(options, name)
        settings.output_dir = folder
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
        )
        trainer.train_until_told(stop, checkpoint)
        trainer.save_model(folder)
    if is_main_process():
        (Path(folder) / "training_args.bin").unlink()  # a pickle, which nobody needs to load the model
        write_card(Path(folder), name, options, data.source.description, trainer.state.log_history, card)
        print(f"saved {folder}")


def write_card(
    folder: Path, name: str, options: TrainerOptions, data: str, log: Sequence[Mapping[str, Any]], card: Mapping[str, Any]
) -> None:
    """README.md of the run's folder, with the last losses of `log`."""
    figures = {"loss": "training loss, at the end", "eval_loss": "loss of held-out images"}
    last = {key: next((line[key] for line in reversed(log) if key in line), None) for key in figures}
    write_model_card(
        folder / "README.md",
        training_command=f"accelerate launch pretrain/{name}.py config.yaml",
        data=data,
        results=[{"figure": figures[key], "value": f"{value:.4f}"} for key, value in last.items() if value is not None],
        settings={key: getattr(options, key) for key in SHOWN},
        note="A loss is no judgement of features; recipes/evaluate_encoder.py judges them.",
        **card,
    )
