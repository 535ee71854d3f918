"""MAE pretraining: unlabelled images in, a masked autoencoder out whose encoder
`transformers.AutoModel` loads.

accelerate launch pretrain/mae.py --dataset folder:photos --eval_dataset none --output_dir
outputs/mae
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from pretrain.run.image_args import MaeArguments, check_run
from vision_core.processes.launchers import launchers_above
from vision_core.start import look_first

LAUNCHERS = launchers_above()  # now: one that dies during the imports must not leave an orphan that trains on

if __name__ == "__main__":
    look_first(MaeArguments, __doc__, partial(check_run, "mae"))

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from encoders.mae_weights import initialise_mae
from encoders.preprocess import normalise
from pretrain.batches.multicrop import PUBLISHED_POSES, Poses, random_view
from pretrain.image_training import DrawnImages, ImageTrainer, Item, load_whole, open_parts, train_images
from pretrain.run.feeding import feeding
from pretrain.run.own_evaluation import keep_evaluation_of_resumed_run
from vision_core.arguments import parse_arguments
from vision_core.errors import UserError, first_line, run_script
from vision_core.hub import hub_or_cache
from vision_core.randomness import seed_of

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


def main() -> None:
    """Read the options, train."""
    args = parse_arguments(MaeArguments, description=__doc__)
    keep_evaluation_of_resumed_run(args)
    check_run("mae", args)
    model, processor = start(args)
    source, held_out = open_parts(args)
    side = model.config.image_size
    poses = Poses(args.horizontal_flip_probability, args.vertical_flip_probability, args.quarter_turns)
    make = partial(masked_crop, side, (side // model.config.patch_size) ** 2, args.seed, poses=poses)
    train_images(
        "mae",
        args,
        LAUNCHERS,
        model,
        processor,
        *(each and DrawnImages(each, make) for each in (source, held_out)),
        collate=partial(collate, processor.image_mean, processor.image_std),
        trainer_type=MaeTrainer,
        adam_betas=(0.9, 0.95),  # published
        card={
            "title": "mae: a masked autoencoder",
            "summary": "Trained without labels to tell the pixels of hidden patches from those that are seen.",
            "tags": ("mae", "self-supervised"),
            "loading": feeding(LOADING, 3, source.pixel_options, source.pixel_options.scale is not None),
        },
    )


def start(args: MaeArguments) -> tuple[ViTMAEForPreTraining, ViTImageProcessor]:
    """The model that is trained, and its image processor: loaded, or small and new."""
    if args.init_from:
        with hub_or_cache(args.init_from, f"--init_from {args.init_from}"):
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
        return AutoImageProcessor.from_pretrained(name.removeprefix("hf:"), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--init_from {name} has no image processor ({first_line(error)}); add its preprocessor_config.json"
        ) from None


def masked_crop(
    side: int,
    num_patches: int,
    seed: int,
    image: Tensor,
    epoch: int,
    index: int,
    poses: Poses = PUBLISHED_POSES,
) -> Item:
    """A random crop of an image `[3, H, W]`, flipped and turned as `poses` has it, as view `[3,
    side, side]`; noise `[num_patches]`: the highest are hidden."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("mae", seed, epoch, index))
        view = random_view(image, (side, side), CROP_SCALE, poses)
        return {"view": view, "noise": torch.rand(num_patches)}


def collate(mean: list[float], std: list[float], items: list[Item]) -> dict[str, Tensor]:
    """`pixel_values` `[B, 3, S, S]`; `noise` `[B, N]`."""
    views, noise = (torch.stack([item[name] for item in items]) for name in ("view", "noise"))
    return {"pixel_values": normalise(views, mean, std), "noise": noise}


class MaeTrainer(ImageTrainer):
    """The mean over the hidden patches."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """Scalar."""
        return model(**inputs).loss


if __name__ == "__main__":
    run_script(main)
