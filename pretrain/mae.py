"""MAE pretraining: it takes unlabelled images and gives a masked autoencoder whose encoder
`transformers.AutoModel` loads.

    accelerate launch pretrain/mae.py --dataset folder:photos --eval_dataset none --output_dir outputs/mae
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from pretrain.run.image_args import MaeArguments, check_run, read_options
from vision_core.start import look_first

if __name__ == "__main__":
    look_first(MaeArguments, __doc__, partial(check_run, "mae"))

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from encoders.mae_weights import initialise_mae
from encoders.preprocess import normalise
from pretrain.batches.image_draws import ImageDraws, Item
from pretrain.batches.multicrop import PUBLISHED_POSES, Poses, random_view
from pretrain.image_training import ImageParts, ImageTrainer, train_images
from pretrain.run.complete_model import load_model_and_processor
from pretrain.run.feeding import feeding
from pretrain.run.image_sources import open_training_and_held_out
from vision_core.errors import run_script
from vision_core.images.source import ImageSource
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
# without noise in order the patches come in a random order
in_order = torch.arange(model.embeddings.patch_embeddings.num_patches)[None].float()
with torch.no_grad():
    tokens = model(**inputs, noise=in_order).last_hidden_state
# [1, tokens, width]: the CLS token first, then the patches row by row
```"""


def main() -> None:
    """Read the options, build the parts, train."""
    args = read_options("mae", MaeArguments, __doc__)
    model, processor = build_model(args)
    source, held_out = open_training_and_held_out(
        args.dataset,
        args.eval_dataset,
        seed=args.seed,
        batch_size=args.per_device_train_batch_size,
        micro_batches=args.gradient_accumulation_steps,
    )
    if held_out is None:
        args.eval_dataset = None
    poses = Poses(args.horizontal_flip_probability, args.vertical_flip_probability, args.quarter_turns)
    parts = ImageParts(
        model=model,
        processor=processor,
        data=masked_crops_of(source, model.config, args.seed, poses),
        held_out=masked_crops_of(held_out, model.config, args.seed, poses) if held_out is not None else None,
        collate=partial(collate, processor.image_mean, processor.image_std),
        trainer_type=MaeTrainer,
    )
    card = card_texts(source)
    train_images("mae", args, parts, dataset=args.dataset, init_from=args.init_from, card=card)


def card_texts(source: ImageSource) -> dict[str, Any]:
    """What the model card of every such run says."""
    return {
        "title": "mae: a masked autoencoder",
        "summary": "Trained without labels to tell the pixels of hidden patches from those that are seen.",
        "tags": ("mae", "self-supervised"),
        "loading": feeding(LOADING, 3, source.pixel_options, source.pixel_options.scale is not None),
    }


def build_model(args: MaeArguments) -> tuple[ViTMAEForPreTraining, ViTImageProcessor]:
    """The model that is trained, and its image processor: loaded, or small and new."""
    if args.init_from:
        return load_model_and_processor(ViTMAEForPreTraining, AutoImageProcessor, args.init_from)
    torch.manual_seed(seed_of(args.seed, "mae"))
    model = ViTMAEForPreTraining(new_config(args))
    initialise_mae(model)
    processor = ViTImageProcessor(
        size={"height": args.image_size, "width": args.image_size},
        resample=BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    return model, processor


def new_config(args: MaeArguments) -> ViTMAEConfig:
    """The shape of a new model; the decoder has half of the encoder's width and layers."""
    return ViTMAEConfig(
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
        norm_pix_loss=True,  # published: targets are a patch's pixels less their mean, over their deviation
    )


def masked_crops_of(source: ImageSource, config: ViTMAEConfig, seed: int, poses: Poses) -> ImageDraws:
    """The images of a source as crops for a model of this shape."""
    num_patches = (config.image_size // config.patch_size) ** 2
    make = partial(masked_crop, config.image_size, num_patches, seed, poses=poses)
    return ImageDraws(source, make)


def masked_crop(
    side: int,
    num_patches: int,
    seed: int,
    image: Tensor,
    epoch: int,
    index: int,
    poses: Poses = PUBLISHED_POSES,
) -> Item:
    """A random crop of an image `[3, H, W]`, flipped and turned by `poses`: view `[3, side, side]`
    and noise `[N]`. The patches with the highest noise are hidden."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("mae", seed, epoch, index))
        view = random_view(image, (side, side), CROP_SCALE, poses)
        return {"view": view, "noise": torch.rand(num_patches)}


def collate(mean: list[float], std: list[float], items: list[Item]) -> dict[str, Tensor]:
    """A batch: `pixel_values` `[B, 3, S, S]` and `noise` `[B, N]`."""
    views = torch.stack([item["view"] for item in items])
    noise = torch.stack([item["noise"] for item in items])
    return {"pixel_values": normalise(views, mean, std), "noise": noise}


class MaeTrainer(ImageTrainer):
    """ImageTrainer whose loss is the mean over the hidden patches."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The loss of a batch, a scalar."""
        return model(**inputs).loss


if __name__ == "__main__":
    run_script(main)
