"""What extraction costs beside the model: features of images in memory through the cache, against
the bare model on the same pixels, in turns.

    python benchmarks/extraction_overhead.py
"""

import sys
import tempfile
import time
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from transformers import Dinov2Config, Dinov2Model

from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.evaluation.feature_cache import cached_features
from encoders.evaluation.features import vector_features
from encoders.preprocess import ImageTransform
from vision_core.images.source import ImageRecord, ImageSource

IMAGES = 256
SIDE = 224  # pixels
BATCH = 32
TURNS = 3


class InMemory(ImageSource):
    """Random images, already of the right size."""

    description = fingerprint = "images in memory"

    def __init__(self) -> None:
        self.images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> ImageRecord:
        return ImageRecord(self.id_of(index), self.images[index])

    def id_of(self, index: int) -> str:
        return str(index)


def vit_small() -> Dinov2Model:
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=SIDE, patch_size=16
    )
    return Dinov2Model(config).eval()


def seconds_of_model(model: Dinov2Model, pixels: torch.Tensor) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        for batch in pixels.split(BATCH):
            model(batch)
    return time.perf_counter() - start


def seconds_of_extraction(encoder: TransformersEncoder, source: ImageSource) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cached_features(encoder, source, vector_features, "vectors", Path(folder), batch_size=BATCH)
        return time.perf_counter() - start


def main() -> None:
    torch.manual_seed(0)
    model = vit_small()
    source = InMemory()
    encoder = TransformersEncoder(model, ImageTransform((SIDE, SIDE))).freeze()
    pixels = encoder.transform.pixels(source.images)
    model_seconds = []
    extraction_seconds = []
    for _ in range(TURNS):
        model_seconds.append(seconds_of_model(model, pixels))
        extraction_seconds.append(seconds_of_extraction(encoder, source))
    bare = min(model_seconds)
    extraction = min(extraction_seconds)
    print(
        f"ViT-S/16, {IMAGES} images of {SIDE} x {SIDE} pixels, batches of {BATCH}, "
        f"{torch.get_num_threads()} threads, best of {TURNS} turns"
    )
    print(
        f"bare model {bare:.2f} s, extraction into the cache {extraction:.2f} s: "
        f"{100 * (extraction / bare - 1):+.1f} %"
    )


if __name__ == "__main__":
    main()
