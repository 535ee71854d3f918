"""The model card of a pretraining run."""

from pathlib import Path

from encoders.evaluation.knn_benchmark import KnnBenchmark
from pretrain.dinov2_args import DINOv2Arguments
from vision_core.images.pixel_options import PixelOptions, pixel_options_text
from vision_core.images.sources import ImageSource, ImageStream
from vision_core.model_card import LOADING_SNIPPET, write_model_card

FEEDING = """\
The encoder was trained on files read by this project, as `{where}` with {num_channels} channels. Judge it on images that are read with the same
options; the image processor normalises what they give.

```python
import torch
from transformers import AutoImageProcessor, AutoModel
from vision_core.images.sources import open_source  # of vision-encoder-fusion: reads files as training did

folder = "path/to/this/folder"
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()

images = open_source("{where}", num_channels={num_channels})
inputs = processor(images[0].image, input_data_format="channels_first", return_tensors="pt")
with torch.no_grad():
    tokens = model(**inputs).last_hidden_state  # [1, tokens, width]: the CLS token first, the patches last
```"""
# What tells two recipes apart; config.yaml beside the card has every option.
SHOWN_SETTINGS = (
    "backbone", "patch_size", "num_register_tokens", "global_crop_size", "local_crop_size", "num_local_crops", "blur", "mask_count",
    "num_prototypes", "separate_ibot_head", "centering", "ibot_weighting", "koleo_precision", "train_weight_g", "learning_rate",
    "ema_momentum", "drop_path_rate", "mixed_precision", "seed",
)  # fmt: skip


def write_card(
    path: Path,
    args: DINOv2Arguments,
    step: int,
    source: ImageSource | ImageStream,
    results: dict[str, float],
    benchmark: KnnBenchmark | None,
) -> None:
    """README.md of the run's folder after `step` steps; `results` are k-NN accuracies in percent."""
    rows = [{"features": name, "k-NN top-1, %": f"{value:.1f}"} for name, value in results.items()]
    write_model_card(
        path,
        title=f"{args.name}: a DINOv2 vision encoder",
        summary=f"Pretrained without labels by DINOv2 self-distillation (DINO, iBOT, KoLeo) for {step} of {args.max_steps} steps.",
        training_command="accelerate launch pretrain/dinov2.py --config config.yaml",
        data=f"{source.description}. Source: `{args.dataset}`.",
        results=rows,
        settings={name: getattr(args, name) for name in SHOWN_SETTINGS},
        note="The numbers are k-NN on frozen features" + (f": {benchmark.description}." if benchmark else ", and none was measured."),
        tags=("dinov2", "self-supervised"),
        loading=feeding(args.num_channels, source.pixel_options),
    )


def feeding(num_channels: int, options: PixelOptions) -> str:
    """How a reader gives the encoder the pixels that it was trained on."""
    reading = pixel_options_text(options)
    if num_channels == 3 and not reading:
        return LOADING_SNIPPET
    return FEEDING.format(where=f"folder:path/to/images{'?' if reading else ''}{reading}", num_channels=num_channels)
