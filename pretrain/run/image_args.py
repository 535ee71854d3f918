"""The options of `pretrain/siglip.py` and `pretrain/mae.py`, and the checks that need no data.
Imports nothing heavy."""

from dataclasses import dataclass
from typing import TypeVar

from pretrain.run.own_evaluation import BY_DATASET, chosen_evaluation, keep_evaluation_of_resumed_run
from vision_core.arguments import option, parse_arguments
from vision_core.errors import UserError
from vision_core.trainer.options import TrainerOptions, check_output

HELD_OUT_SCENES = "scenes?count=500&split=held_out"
EVAL_DATASET_HELP = (
    "images whose loss is measured in between; auto: held-out scenes where dataset is scenes, otherwise "
    "held_out; held_out: a tenth of dataset, which is then not trained on; or none"
)


@dataclass
class SiglipArguments(TrainerOptions):
    """SigLIP; the defaults are a small model on the captions of the embedded scenes for a machine
    with 2 CPU cores."""

    dataset: str = option("scenes?count=20000", "images with captions; docs/data.md", "data")
    eval_dataset: str | None = option(BY_DATASET, EVAL_DATASET_HELP, "data")
    init_from: str | None = option(
        None, "a SigLIP of transformers to go on from, with its processor; default: a new small one", "model"
    )
    image_size: int = option(64, "pixels of a side, of a new model", "model")
    patch_size: int = option(8, "pixels of a side of a patch, of a new model", "model")
    hidden_size: int = option(128, "width of both towers of a new model", "model")
    num_hidden_layers: int = option(
        4, "layers of the vision tower of a new model; the text tower has half of them", "model"
    )
    num_attention_heads: int = option(4, "of both towers of a new model", "model")
    per_device_train_batch_size: int = option(64, "pairs per process and step", "optimisation")
    max_steps: int = option(1500, "steps", "optimisation")
    learning_rate: float = option(1e-3, "at its highest; published: 1e-3", "optimisation")
    weight_decay: float = option(1e-4, "of matrices; published: 1e-4", "optimisation")

    def __post_init__(self) -> None:
        self.eval_dataset = chosen_evaluation(self.eval_dataset, self.dataset, HELD_OUT_SCENES)
        check_widths(self.hidden_size, self.num_attention_heads, self.image_size, self.patch_size)


@dataclass
class MaeArguments(TrainerOptions):
    """MAE; the defaults are a small model on the embedded scenes for a machine with 2 CPU cores."""

    dataset: str = option("scenes?count=20000", "images; docs/data.md", "data")
    eval_dataset: str | None = option(BY_DATASET, EVAL_DATASET_HELP, "data")
    init_from: str | None = option(
        None, "a ViTMAEForPreTraining to go on from; default: a new small one", "model"
    )
    image_size: int = option(64, "pixels of a side, of a new model", "model")
    patch_size: int = option(8, "pixels of a side of a patch, of a new model", "model")
    hidden_size: int = option(128, "width of a new model; the decoder has half of it", "model")
    num_hidden_layers: int = option(4, "layers of a new model; the decoder has half of them", "model")
    num_attention_heads: int = option(4, "of a new model", "model")
    mask_ratio: float = option(0.75, "share of the patches that are hidden, of a new model", "model")
    horizontal_flip_probability: float = option(
        0.5, "share of the crops that are mirrored; published 0.5", "crops"
    )
    vertical_flip_probability: float = option(
        0.0, "share of the crops that are turned upside down by a mirror; published 0", "crops"
    )
    quarter_turns: bool = option(
        False, "crops are turned by 0, 90, 180 or 270 degrees, each as likely", "crops"
    )
    per_device_train_batch_size: int = option(64, "images per process and step", "optimisation")
    max_steps: int = option(1500, "steps", "optimisation")
    learning_rate: float = option(
        1e-3, "at its highest; published: 1.5e-4 * images of a step / 256", "optimisation"
    )
    warmup_steps: float = option(
        0.05, "steps, or below 1 their share; published: 40 of 800 epochs", "optimisation"
    )
    weight_decay: float = option(0.05, "of matrices; published: 0.05", "optimisation")

    def __post_init__(self) -> None:
        self.eval_dataset = chosen_evaluation(self.eval_dataset, self.dataset, HELD_OUT_SCENES)
        check_widths(self.hidden_size, self.num_attention_heads, self.image_size, self.patch_size)
        check_decoder(self.hidden_size, self.num_attention_heads)
        check_mask_ratio(self.mask_ratio, (self.image_size // self.patch_size) ** 2)
        for name in ("horizontal_flip_probability", "vertical_flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)} must lie between 0 and 1")


ImageArguments = TypeVar("ImageArguments", SiglipArguments, MaeArguments)


def program_of(name: str) -> str:
    """The script of `siglip` or `mae`."""
    return f"pretrain/{name}.py"


def read_options(name: str, arguments_type: type[ImageArguments], description: str) -> ImageArguments:
    """The options of the run of this name, as its command and the run that it resumes give them.
    Raises UserError for a folder that the run could not use."""
    args = parse_arguments(arguments_type, description=description)
    keep_evaluation_of_resumed_run(args)
    check_run(name, args)
    return args


def check_run(name: str, args: TrainerOptions) -> None:
    """Refuse an output folder that the run of this name could not use. Raises UserError."""
    check_output(name, program_of(name), args)


def check_widths(hidden_size: int, num_attention_heads: int, image_size: int, patch_size: int) -> None:
    """Raises UserError for a new model that cannot be built."""
    if min(hidden_size, num_attention_heads, image_size, patch_size) < 1:
        raise UserError("--hidden_size, --num_attention_heads, --image_size and --patch_size must be above 0")
    if image_size % patch_size:
        raise UserError(f"--image_size {image_size} is not a multiple of --patch_size {patch_size}")
    if hidden_size % num_attention_heads:
        raise UserError(
            f"--hidden_size {hidden_size} is not a multiple of --num_attention_heads {num_attention_heads}"
        )


def check_decoder(hidden_size: int, num_attention_heads: int) -> None:
    """Raises UserError for a width of which MAE's positions or its decoder cannot be made."""
    if hidden_size % 8 or hidden_size // 2 % num_attention_heads:
        raise UserError(
            f"--hidden_size {hidden_size} must be a multiple of 8 for the positions of encoder and decoder, "
            f"and its half, the decoder's width, of --num_attention_heads {num_attention_heads}"
        )


def check_mask_ratio(mask_ratio: float, num_patches: int) -> None:
    """Raises UserError where none or all of the patches would be hidden."""
    seen = int(num_patches * (1 - mask_ratio)) if 0 < mask_ratio < 1 else 0
    if not 0 < seen < num_patches:
        raise UserError(
            f"--mask_ratio {mask_ratio} must hide some of the {num_patches} patches and not all; "
            "published: 0.75"
        )
