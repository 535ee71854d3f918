"""SigLIP pretraining: it takes images with captions and gives an image-text model that
`transformers.AutoModel` loads.

    accelerate launch pretrain/siglip.py --dataset "parquet:train.parquet?captions=text" \\
        --eval_dataset none --output_dir outputs/siglip
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from pretrain.run.image_args import SiglipArguments, check_run, read_options
from vision_core.start import look_first

if __name__ == "__main__":
    look_first(SiglipArguments, __doc__, partial(check_run, "siglip"))

import math
from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import normalizers, processors
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from pretrain.batches.image_draws import ImageDraws, Item
from pretrain.image_training import ImageParts, ImageTrainer, train_images
from pretrain.losses.sigmoid import sigmoid_loss
from pretrain.run.complete_model import load_model_and_processor, load_processor
from pretrain.run.feeding import feeding
from pretrain.run.image_sources import open_captioned_images, open_training_and_held_out
from vision_core.corpus_tokenizer import corpus_tokenizer
from vision_core.errors import UserError, run_script
from vision_core.images.source import ImageSource
from vision_core.randomness import numpy_generator, seed_of
from vision_core.runs.folder_checks import checkpoint_ahead

CORPUS_IMAGES = 2000  # a new tokenizer is trained on the captions of so many
TEXT_LENGTH = 48  # tokens of a text of a new model; longer ones are cut
PROCESSOR_PARTS = ("tokenizer", "image_processor")
START_BIAS = -10.0  # published, with a scale of 10: training starts at the share of pairs that match
START_SCALE = 10
LOADING = """\
```python
import torch
from transformers import AutoModel, AutoProcessor
from transformers.image_utils import load_image  # upright and in colour, as in training

folder = "path/to/this/folder"
processor = AutoProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()

texts = ["a red cup", "two green fish"]
image = load_image("image.jpg")
inputs = processor(text=texts, images=image, padding="max_length", truncation=True, return_tensors="pt")
with torch.no_grad():
    matches = model(**inputs).logits_per_image.sigmoid()
# [1, texts]: how sure the model is that each belongs to the image
```"""


def main() -> None:
    """Read the options, build the parts, train."""
    args = read_options("siglip", SiglipArguments, __doc__)
    source, held_out = open_training_and_held_out(
        args.dataset,
        args.eval_dataset,
        seed=args.seed,
        batch_size=args.per_device_train_batch_size,
        micro_batches=args.gradient_accumulation_steps,
        open_one=open_captioned_images,
    )
    if held_out is None:
        args.eval_dataset = None
    model, processor = build_model(args, source)
    parts = ImageParts(
        model=model,
        processor=processor,
        data=pairs_of(source, args.seed),
        held_out=pairs_of(held_out, args.seed) if held_out is not None else None,
        collate=partial(collate, processor, model.config.text_config.max_position_embeddings),
        trainer_type=SiglipTrainer,
    )
    card = card_texts(source)
    train_images("siglip", args, parts, dataset=args.dataset, init_from=args.init_from, card=card)


def card_texts(source: ImageSource) -> dict[str, Any]:
    """What the model card of every such run says."""
    return {
        "title": "siglip: images and texts in one space",
        "summary": "Trained on pairs of images and captions with SigLIP's sigmoid loss.",
        "tags": ("siglip", "image-text"),
        "pipeline_tag": "zero-shot-image-classification",
        "loading": feeding(LOADING, 3, source.pixel_options, source.pixel_options.scale is not None),
    }


def build_model(args: SiglipArguments, source: ImageSource) -> tuple[SiglipModel, Any]:
    """The model that is trained, and its processor: loaded, or small and new, its tokenizer trained
    on the captions."""
    if args.init_from:
        return load_model_and_processor(SiglipModel, AutoProcessor, args.init_from, PROCESSOR_PARTS)
    tokenizer = tokenizer_of_run(args, source)
    torch.manual_seed(seed_of(args.seed, "siglip"))
    model = SiglipModel(new_config(args, tokenizer))
    nn.init.constant_(model.logit_scale, math.log(START_SCALE))
    nn.init.constant_(model.logit_bias, START_BIAS)
    image_processor = SiglipImageProcessor(size={"height": args.image_size, "width": args.image_size})
    return model, SiglipProcessor(image_processor, tokenizer)


def new_config(args: SiglipArguments, tokenizer: PreTrainedTokenizerFast) -> SiglipConfig:
    """The shape of a new model: two towers of one width, that of texts half as deep."""
    both = {
        "hidden_size": args.hidden_size,
        "num_attention_heads": args.num_attention_heads,
        "intermediate_size": 2 * args.hidden_size,
    }
    text = {
        **both,
        "num_hidden_layers": max(args.num_hidden_layers // 2, 1),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LENGTH,
        "projection_size": args.hidden_size,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        **both,
        "num_hidden_layers": args.num_hidden_layers,
        "image_size": args.image_size,
        "patch_size": args.patch_size,
    }
    return SiglipConfig(text_config=text, vision_config=vision)


def tokenizer_of_run(args: SiglipArguments, source: ImageSource) -> Any:
    """The tokenizer of the checkpoint from which a run goes on, whose numbers its weights know; one
    trained on the captions for a new run."""
    checkpoint = checkpoint_ahead(args.output_dir, args.resume_from_checkpoint)
    if checkpoint:
        option = "--resume_from_checkpoint"
        return load_processor(AutoProcessor, str(checkpoint), PROCESSOR_PARTS, option).tokenizer
    return caption_tokenizer(first_captions(source))


def caption_tokenizer(captions: Iterator[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that treats texts as the released models do: lower case, an end behind every
    text, also where it is cut (the tower pools the last place), padding that is read."""
    tokenizer = corpus_tokenizer(captions, model_max_length=TEXT_LENGTH, model_input_names=["input_ids"])
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return tokenizer


def first_captions(source: ImageSource) -> Iterator[str]:
    """The captions of the first images, in the lower case that the tower reads."""
    for index in range(min(len(source), CORPUS_IMAGES)):
        for caption in source.annotations.captions(index):
            yield caption.lower()


def pairs_of(source: ImageSource, seed: int) -> ImageDraws:
    """The images of a source, each with a caption."""
    return ImageDraws(source, partial(pair, source, seed))


def pair(source: ImageSource, seed: int, image: Tensor, epoch: int, index: int) -> Item:
    """An image `[3, H, W]` and one of its captions, drawn anew in every epoch. Raises UserError for
    an image without any."""
    captions = source.annotations.captions(index)
    if not captions:
        raise UserError(f"{source.id_of(index)} has no caption; give it one or take it out of the data")
    chosen = int(numpy_generator("caption", seed, epoch, index).integers(len(captions)))
    return {"image": image, "text": captions[chosen].lower()}


def collate(processor: Any, length: int, items: list[Item]) -> dict[str, Tensor]:
    """A batch: `pixel_values` `[B, 3, S, S]` and `input_ids` `[B, length]`, filled up and without a
    mask, for padding is read as in the released models."""
    images = [item["image"] for item in items]
    is_picture = images[0].dtype == torch.uint8
    pixels = processor.image_processor(images, do_rescale=is_picture, return_tensors="pt")["pixel_values"]
    texts = [item["text"] for item in items]
    tokens = processor.tokenizer(
        texts,
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    return {"pixel_values": pixels, "input_ids": tokens["input_ids"]}


class SiglipTrainer(ImageTrainer):
    """ImageTrainer that compares every image with the texts of all processes."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The loss of a batch, a scalar; see `sigmoid_loss`."""
        outputs = model(**inputs)
        bare = self.accelerator.unwrap_model(model)
        return sigmoid_loss(outputs.image_embeds, outputs.text_embeds, bare.logit_scale, bare.logit_bias)


if __name__ == "__main__":
    run_script(main)
