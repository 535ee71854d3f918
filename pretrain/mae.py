"""MAE pretraining: unlabelled images in, a masked autoencoder out whose encoder `transformers.AutoModel` loads.

accelerate launch pretrain/mae.py --dataset folder:photos --eval_dataset none --output_dir outputs/mae
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_core.launchers import launchers_above

LAUNCHERS = launchers_above()  # now: one that dies during the imports must not leave an orphan that trains on

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V
from transformers import AutoImageProcessor, ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from encoders.preprocess import normalise
from pretrain.image_training import DrawnImages, ImageTrainer, Item, check_widths, first_line, load_whole, open_images, train_images
from pretrain.mae_weights import initialise_mae
from pretrain.multicrop import random_resized_crop
from vision_core.arguments import option, parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.hub import hub_or_cache
from vision_core.randomness import seed_of
from vision_core.run_trainer import TrainerOptions

CROP_SCALE = (0.2, 1.0)  # published: shares of the area
BICUBIC = 3  # Pillow's number; the crops are resized by it too
LOADING = """\
```python
import torch
from transformers import AutoImageProcessor, AutoModel
from transformers.image_utils import load_image  # upright and in colour, as in training

folder = "path/to/this/folder"
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder, mask_ratio=0.0).eval()  # nothing is hidden

inputs = processor(load_image("image.jpg"), return_tensors="pt")
in_order = torch.arange(model.embeddings.patch_embeddings.num_patches)[None].float()  # without it the patches come in a random order
with torch.no_grad():
    tokens = model(**inputs, noise=in_order).last_hidden_state  # [1, tokens, width]: the CLS token first, then the patches row by row
```"""


@dataclass
class MaeArguments(TrainerOptions):
    """MAE; the defaults are a small model on the embedded scenes for a machine with 2 CPU cores."""

    dataset: str = option("scenes?count=20000", "images; docs/data.md", "data")
    eval_dataset: str | None = option("scenes?count=500&split=held_out", "images whose loss is measured in between, or none", "data")
    init_from: str | None = option(None, "a ViTMAEForPreTraining to go on from; default: a new small one", "model")
    image_size: int = option(64, "pixels of a side, of a new model", "model")
    patch_size: int = option(8, "pixels of a side of a patch, of a new model", "model")
    hidden_size: int = option(128, "width of a new model; the decoder has half of it", "model")
    num_hidden_layers: int = option(4, "layers of a new model; the decoder has half of them", "model")
    num_attention_heads: int = option(4, "of a new model", "model")
    mask_ratio: float = option(0.75, "share of the patches that are hidden, of a new model", "model")
    per_device_train_batch_size: int = option(64, "images per process and step", "optimisation")
    max_steps: int = option(1500, "steps", "optimisation")
    learning_rate: float = option(1e-3, "at its highest; published: 1.5e-4 * images of a step / 256", "optimisation")
    warmup_steps: float = option(0.05, "steps, or below 1 their share; published: 40 of 800 epochs", "optimisation")
    weight_decay: float = option(0.05, "of matrices; published: 0.05", "optimisation")

    def __post_init__(self) -> None:
        check_widths(self.hidden_size, self.num_attention_heads, self.image_size, self.patch_size)
        if self.hidden_size % 8 or self.hidden_size // 2 % self.num_attention_heads:
            raise UserError(
                f"--hidden_size {self.hidden_size} must be a multiple of 8 for the positions of encoder and decoder, and its half, the decoder's width, "
                f"of --num_attention_heads {self.num_attention_heads}"
            )
        patches = (self.image_size // self.patch_size) ** 2
        seen = int(patches * (1 - self.mask_ratio)) if 0 < self.mask_ratio < 1 else 0
        if not 0 < seen < patches:
            raise UserError(f"--mask_ratio {self.mask_ratio} must hide some of the {patches} patches and not all; published: 0.75")


def main() -> None:
    """Read the options, train."""
    args = parse_arguments(MaeArguments, description=__doc__)
    model, processor = start(args)
    sources = (open_images(text) if text else None for text in (args.dataset, args.eval_dataset))
    side = model.config.image_size
    make = partial(masked_crop, side, (side // model.config.patch_size) ** 2, args.seed)
    train_images(
        "mae",
        args,
        LAUNCHERS,
        model,
        processor,
        *(source and DrawnImages(source, make) for source in sources),
        collate=partial(collate, processor.image_mean, processor.image_std),
        trainer_type=MaeTrainer,
        adam_betas=(0.9, 0.95),  # published
        card={
            "title": "mae: a masked autoencoder",
            "summary": "Trained without labels to tell the pixels of hidden patches from those that are seen.",
            "tags": ("mae", "self-supervised"),
            "loading": LOADING,
        },
    )


def start(args: MaeArguments) -> tuple[ViTMAEForPreTraining, ViTImageProcessor]:
    """The model that is trained, and its image processor: loaded, or small and new."""
    if args.init_from:
        with nullcontext() if Path(args.init_from).exists() else hub_or_cache(f"--init_from {args.init_from}"):
            return load_whole(ViTMAEForPreTraining, args.init_from), load_processor(args.init_from)
    config = ViTMAEConfig(
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        intermediate_size=4 * args.hidden_size,
        decoder_hidden_size=args.hidden_size // 2,
        decoder_num_hidden_layers=max(args.num_hidden_layers // 2, 1),
        decoder_num_attention_heads=args.num_attention_heads,
        decoder_intermediate_size=2 * args.hidden_size,
        image_size=args.image_size,
        patch_size=args.patch_size,
        mask_ratio=args.mask_ratio,
        norm_pix_loss=True,  # published: targets are the patches' pixels less their mean, over their deviation
    )
    torch.manual_seed(seed_of(args.seed, "mae"))
    model = ViTMAEForPreTraining(config)
    initialise_mae(model)
    return model, ViTImageProcessor(
        size={"height": args.image_size, "width": args.image_size},
        resample=BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def load_processor(name: str) -> Any:
    """Raises UserError where there is none."""
    try:
        return AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--init_from {name} has no image processor ({first_line(error)}); add its preprocessor_config.json") from None


def masked_crop(side: int, num_patches: int, seed: int, image: Tensor, epoch: int, index: int) -> Item:
    """A random crop of an image `[3, H, W]`, half of the time mirrored, as view `[3, side, side]`; noise `[num_patches]`: the highest are hidden."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("mae", seed, epoch, index))
        view = random_resized_crop(image, (side, side), CROP_SCALE)
        view = V.horizontal_flip(view) if torch.rand(()) < 0.5 else view
        return {"view": view, "noise": torch.rand(num_patches)}


def collate(mean: list[float], std: list[float], items: list[Item]) -> dict[str, Tensor]:
    """`pixel_values` `[B, 3, S, S]`; `noise` `[B, N]`."""
    views, noise = (torch.stack([item[name] for item in items]) for name in ("view", "noise"))
    return {"pixel_values": normalise(views, mean, std), "noise": noise}


class MaeTrainer(ImageTrainer):
    """The mean over the hidden patches."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        """Scalar."""
        return model(**inputs).loss


if __name__ == "__main__":
    run_script(main)
