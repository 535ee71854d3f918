"""SigLIP pretraining: images with captions in, an image-text model out that
`transformers.AutoModel` loads.

accelerate launch pretrain/siglip.py --dataset "parquet:train.parquet?captions=text" --eval_dataset
none --output_dir outputs/siglip
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from pretrain.run.image_args import SiglipArguments, check_run
from vision_core.processes.launchers import launchers_above
from vision_core.start import look_first

LAUNCHERS = launchers_above()  # now: one that dies during the imports must not leave an orphan that trains on

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

from pretrain.image_training import (
    DrawnImages,
    ImageTrainer,
    Item,
    load_whole,
    open_images,
    open_parts,
    train_images,
)
from pretrain.losses.sigmoid import sigmoid_loss
from pretrain.run.feeding import feeding
from pretrain.run.own_evaluation import keep_evaluation_of_resumed_run
from vision_core.arguments import parse_arguments
from vision_core.corpus_tokenizer import corpus_tokenizer
from vision_core.errors import UserError, first_line, run_script
from vision_core.hub import hub_or_cache
from vision_core.images.pixel_options import Scale
from vision_core.images.source import ImageSource
from vision_core.randomness import numpy_generator, seed_of
from vision_core.runs.folder_checks import checkpoint_ahead

CORPUS_IMAGES = 2000  # whose captions a new tokenizer is trained on
TEXT_LENGTH = 48  # tokens of a text of a new model; longer ones are cut
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
    matches = model(**inputs).logits_per_image.sigmoid()  # [1, texts]: how sure the model is that each belongs to the image
```"""


def main() -> None:
    """Read the options, train."""
    args = parse_arguments(SiglipArguments, description=__doc__)
    keep_evaluation_of_resumed_run(args)
    check_run("siglip", args)
    source, held_out = open_parts(args, captioned)
    model, processor = start(args, source)
    train_images(
        "siglip",
        args,
        LAUNCHERS,
        model,
        processor,
        *(each and DrawnImages(each, partial(pair, each, args.seed)) for each in (source, held_out)),
        collate=partial(collate, processor, model.config.text_config.max_position_embeddings),
        trainer_type=SiglipTrainer,
        adam_betas=(0.9, 0.95),  # published
        card={
            "title": "siglip: images and texts in one space",
            "summary": "Trained on pairs of images and captions with SigLIP's sigmoid loss.",
            "tags": ("siglip", "image-text"),
            "pipeline_tag": "zero-shot-image-classification",
            "loading": feeding(LOADING, 3, source.pixel_options, source.pixel_options.scale is not None),
        },
    )


def captioned(text: str, auto_scale: Scale | None = None) -> ImageSource:
    """Images with captions, `auto_scale` as in `open_source`. Raises UserError for images
    without."""
    source = open_images(text, auto_scale)
    if "captions" not in source.knows:
        raise UserError(
            f"{text} has no captions; name the column or the file that holds them, captions=... (docs/data.md)"
        )
    return source


def start(args: SiglipArguments, source: ImageSource) -> tuple[SiglipModel, Any]:
    """The model that is trained, and its processor: loaded, or small and new, its tokenizer trained
    on the captions."""
    if args.init_from:
        with hub_or_cache(args.init_from, f"--init_from {args.init_from}"):
            return load_whole(SiglipModel, args.init_from), load_processor(args.init_from)
    tokenizer = tokenizer_of_run(args, source)
    tower = {
        "hidden_size": args.hidden_size,
        "num_attention_heads": args.num_attention_heads,
        "intermediate_size": 2 * args.hidden_size,
    }
    text = tower | {
        "num_hidden_layers": max(args.num_hidden_layers // 2, 1),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LENGTH,
        "projection_size": args.hidden_size,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    vision = tower | {
        "num_hidden_layers": args.num_hidden_layers,
        "image_size": args.image_size,
        "patch_size": args.patch_size,
    }
    torch.manual_seed(seed_of(args.seed, "siglip"))
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    nn.init.constant_(
        model.logit_scale, math.log(10)
    )  # published: 10 and -10, so that training starts at the share of pairs that match
    nn.init.constant_(model.logit_bias, -10.0)
    image_processor = SiglipImageProcessor(size={"height": args.image_size, "width": args.image_size})
    return model, SiglipProcessor(image_processor, tokenizer)


def tokenizer_of_run(args: SiglipArguments, source: ImageSource) -> Any:
    """That of the checkpoint from which a run goes on, whose numbers its weights know; trained on
    the captions for a new run."""
    checkpoint = checkpoint_ahead(args.output_dir, args.resume_from_checkpoint)
    if checkpoint is None:
        return caption_tokenizer(captions_of(source))
    return load_processor(str(checkpoint), "--resume_from_checkpoint").tokenizer


def load_processor(name: str, option: str = "--init_from") -> Any:
    """For images and texts. Raises UserError, which names `option`, where one of them is
    missing."""
    try:
        processor = AutoProcessor.from_pretrained(name.removeprefix("hf:"), trust_remote_code=False)
        _ = processor.tokenizer, processor.image_processor
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{option} {name} has no processor of images and texts ({first_line(error)}); add its files"
        ) from None
    return processor


def caption_tokenizer(captions: Iterator[str]) -> PreTrainedTokenizerFast:
    """As the released models have it: lower case, an end behind every text, also where it is cut
    (the tower pools the last place), padding that is read."""
    tokenizer = corpus_tokenizer(captions, model_max_length=TEXT_LENGTH, model_input_names=["input_ids"])
    end, number = tokenizer.eos_token, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, number)]
    )
    return tokenizer


def captions_of(source: ImageSource) -> Iterator[str]:
    """Of the first images, in the lower case that the tower reads."""
    for index in range(min(len(source), CORPUS_IMAGES)):
        yield from (caption.lower() for caption in source.annotations.captions(index))


def pair(source: ImageSource, seed: int, image: Tensor, epoch: int, index: int) -> Item:
    """An image `[3, H, W]` and one of its captions, drawn anew in every epoch. Raises UserError for
    an image without any."""
    captions = source.annotations.captions(index)
    if not captions:
        raise UserError(f"{source.id_of(index)} has no caption; give it one or take it out of the data")
    chosen = int(numpy_generator("caption", seed, epoch, index).integers(len(captions)))
    return {"image": image, "text": captions[chosen].lower()}


def collate(processor: Any, length: int, items: list[Item]) -> dict[str, Tensor]:
    """`pixel_values` `[B, 3, S, S]`; `input_ids` `[B, length]`, filled up and without a mask, for
    padding is read as in the released models."""
    images = [item["image"] for item in items]
    pixels = processor.image_processor(
        images, do_rescale=images[0].dtype == torch.uint8, return_tensors="pt"
    )["pixel_values"]
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
    """Every image with the texts of all processes."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """Scalar; see `sigmoid_loss`."""
        outputs = model(**inputs)
        bare = self.accelerator.unwrap_model(model)
        return sigmoid_loss(outputs.image_embeds, outputs.text_embeds, bare.logit_scale, bare.logit_bias)


if __name__ == "__main__":
    run_script(main)
