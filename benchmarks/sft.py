"""What each way to speed fine-tuning up is worth: samples and tokens per second, use of the machine
and peak memory, beside a plain variant.

    python benchmarks/sft.py

The plain variant pads every batch to its longest sample, computes all logits, runs the encoders on
every image and the aggregator as its formula is written. Each row of the table changes one thing,
the last rows all of them. The variants take turns, each in a process of its own, so that noise of
the machine meets all alike. A turn is one pass over the same samples with forward, backward and
AdamW.

The samples are the parts of LLaVA-1.5's 665k mixture in their published shares (Liu et al. 2023,
table 7). Their lengths are not published; MIXTURE has those assumed here. All lengths, an image's
576 tokens included, are multiplied by (grid / 24)^2.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.side_by_side import answer_turns, medians, product_rate, take_turns
from encoders.adapters.transformers_encoder import build_transformers
from encoders.preprocess import ImageTransform
from fusion import (
    FusedVisionModel,
    FusionProcessor,
    FusionVlmForConditionalGeneration,
    assemble_vlm,
    fuse_encoders,
)
from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.conversations.batches import BLANK, ConversationCollator, image_inputs
from fusion.labels import LABEL_IGNORED
from fusion.map_cache import MapCache
from fusion.tiny import tiny_language_model
from fusion.training.trainer import GroupedByLength
from vision_core.randomness import numpy_generator


class Part(NamedTuple):
    """A part of the mixture."""

    thousands: int  # of samples
    median: int  # of text tokens
    learnt: float  # share of the text tokens
    has_image: bool


MIXTURE = {
    "LLaVA": Part(158, 250, 0.6, True),
    "ShareGPT": Part(40, 1100, 0.6, False),
    "VQAv2": Part(83, 130, 0.15, True),
    "GQA": Part(72, 170, 0.15, True),
    "OKVQA": Part(9, 60, 0.1, True),
    "OCRVQA": Part(80, 100, 0.2, True),
    "A-OKVQA": Part(66, 110, 0.1, True),
    "TextCaps": Part(22, 50, 0.4, True),
    "RefCOCO": Part(48, 250, 0.4, True),
    "VG": Part(86, 350, 0.4, True),
}
# name of a variant: the levers that it pulls
LEVERS = {
    "plain": set(),
    "fast aggregator": {"fast"},
    "loss where learnt": {"learnt"},
    "packing": {"packing"},
    "length groups": {"groups"},
    "cached features": {"cache"},
    "all": {"fast", "learnt", "packing", "groups", "cache"},
    "all, not cached": {"fast", "learnt", "packing", "groups"},
    "all, checkpointed": {"fast", "learnt", "packing", "groups", "cache", "checkpointing"},
}
SIDE = 112
PATCH = 14
VOCABULARY = 32_000
VIT = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "image_size": SIDE,
    "patch_size": PATCH,
}
LANGUAGE_MODEL = {
    "hidden_size": 320,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 5,
    "head_dim": 64,
    "num_key_value_heads": 5,
}


@dataclass
class Sample:
    """A conversation as tokens, with its image or none."""

    input_ids: list[int]
    labels: list[int]
    image: torch.Tensor | None


def make_model(device: str) -> tuple[FusionVlmForConditionalGeneration, FusionProcessor]:
    """Two frozen ViTs of 22 M parameters, and a language model of 30 M with 20 M in its
    embeddings."""
    vision = make_vision_model()
    language_model, tokenizer = tiny_language_model("qwen3", **LANGUAGE_MODEL)
    language_model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    model, processor = assemble_vlm(vision, language_model, tokenizer, num_sva_layers=3, sva_stride=2)
    model.requires_grad_(True)
    for encoder in model.vision_model.encoders:
        encoder.freeze()
    return model.to(device).train(), processor


def make_vision_model() -> FusedVisionModel:
    encoders = []
    for model_type in ("dinov2", "siglip_vision_model"):
        config = VIT | {"model_type": model_type}
        encoders.append(build_transformers(config, ImageTransform((SIDE, SIDE)), dtype=torch.float32))
    options = {"width": 256, "num_heads": 4}
    vision, _ = fuse_encoders(encoders, hidden_size=320, connector_options=options, grid=SIDE // PATCH)
    return vision


def draw_samples(count: int, processor: FusionProcessor, seed: int = 0) -> list[Sample]:
    """Draw samples of the mixture, with random tokens and images."""
    rng = numpy_generator("sft benchmark", seed)
    parts = list(MIXTURE.values())
    shares = [part.thousands for part in parts]
    kinds = rng.choice(len(parts), count, p=[share / sum(shares) for share in shares])
    scale = (processor.image_processor.grid / 24) ** 2
    samples = []
    for kind in kinds.tolist():
        part = parts[kind]
        length = max(int(scale * min(part.median * rng.lognormal(0.0, 0.7), 2048)), 6)
        text_ids = rng.integers(300, VOCABULARY, length).tolist()
        image = None
        image_ids = []
        if part.has_image:
            image = torch.from_numpy(rng.integers(0, 255, (3, SIDE, SIDE), dtype="uint8"))
            image_ids = [processor.image_token_id] * processor.image_processor.num_tokens(SIDE, SIDE)
        prompt = len(image_ids) + max(int((1 - part.learnt) * length), 1)
        input_ids = image_ids + text_ids
        labels = [LABEL_IGNORED] * prompt + input_ids[prompt:]
        samples.append(Sample(input_ids, labels, image))
    return samples


def make_batches(
    samples: list[Sample], levers: set[str], size: int, processor: FusionProcessor, cache: MapCache | None
) -> list[dict]:
    """All samples once, in batches."""
    order = range(len(samples))
    if "groups" in levers:
        lengths = [len(sample.input_ids) for sample in samples]
        order = GroupedByLength(lengths, size, partial(numpy_generator, "sft benchmark order"))
    items = []
    for number in order:
        sample = samples[number]
        item: dict[str, Any] = {"input_ids": sample.input_ids, "labels": sample.labels}
        if sample.image is not None:
            item |= image_inputs([sample.image], processor, cache)
        items.append(item)
    collator = ConversationCollator(processor, "packing" in levers, cache)
    return [collator(items[start : start + size]) for start in range(0, len(items), size)]


def serve(levers: set[str], count: int, size: int, device: str, connection: Connection) -> None:
    """The process of one variant: a pass over all samples for every message."""
    torch.manual_seed(0)
    model, processor = make_model(device)
    samples = draw_samples(count, processor)
    if "fast" not in levers:
        model.vision_model.connector.attention_path = "plain"
        for layer in model.vision_sampler_layers:
            layer.forward = partial(VisionCrossAttentionLayer.forward, layer, attention_path="plain")
    if "checkpointing" in levers:
        model.activation_checkpointing_enable()
    with tempfile.TemporaryDirectory() as folder:
        cache = None
        if "cache" in levers:
            cache = MapCache(Path(folder), model.vision_model, processor.image_processor, torch.float32)
            images = [sample.image for sample in samples if sample.image is not None]
            cache.fill([*images, BLANK], model.vision_model, processor.image_processor)
        batches = make_batches(samples, levers, size, processor, cache)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    one_pass = partial(train_once, model, optimizer, batches, "learnt" in levers)
    answer_turns(connection, device, one_pass, from_zero=True)


def train_once(
    model: FusionVlmForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    batches: list[dict],
    supervised_only: bool,
) -> None:
    """Forward, backward and update on every batch; on an accelerator in bfloat16."""
    device = model.device.type
    options = {"supervised_only": True} if supervised_only else {"use_cache": False}
    for batch in batches:
        inputs = on_device(batch, device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(**inputs, **options).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def on_device(batch: dict, device: str) -> dict:
    moved = {}
    for name, value in batch.items():
        is_list = isinstance(value, list)
        moved[name] = [each.to(device) for each in value] if is_list else value.to(device)
    return moved


def useful_flops(model: FusionVlmForConditionalGeneration, samples: list[Sample], cached: bool) -> float:
    """Operations of the products of one pass without padding: 6 for each parameter and token where
    it trains, 2 where it is frozen; the head counts at learnt positions.

    The aggregator counts as its fast path computes it; encoders whose features are cached do not
    count.
    """
    tokens = count_tokens(samples)
    learnt = sum(len(sample.labels) - sample.labels.count(LABEL_IGNORED) for sample in samples)
    images = sum(sample.image is not None for sample in samples)
    head = model.get_output_embeddings().weight.numel()
    layers = count_parameters(model.get_decoder().layers)
    looks = count_parameters(model.vision_model.connector) + count_parameters(model.vision_sampler_layers)
    encoders = count_parameters(model.vision_model.encoders)
    places = images * model.config.vision_config.grid**2
    trained = 6.0 * (layers * tokens + head * learnt + looks * places)
    return trained if cached else trained + 2.0 * encoders * places


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_tokens(samples: list[Sample]) -> int:
    return sum(len(sample.input_ids) for sample in samples)


def machine_rate(device: str) -> float:
    """Operations per second of a large product."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left = torch.randn(2048, 2048, device=device, dtype=dtype)
    right = torch.randn(2048, 2048, device=device, dtype=dtype)
    return product_rate(left, right)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max_samples", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    count = args.max_samples
    variants = {}
    for name, levers in LEVERS.items():
        variants[name] = (levers, count, args.batch_size, args.device)
    results = take_turns(serve, variants, args.turns)
    model, processor = make_model(args.device)
    samples = draw_samples(count, processor)
    tokens = count_tokens(samples)
    rate = machine_rate(args.device)
    print(
        f"{count} samples of {tokens} tokens on {args.device}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    plain_seconds, _ = medians(results["plain"])
    for name, turns in results.items():
        seconds, peak = medians(turns)
        use = useful_flops(model, samples, "cache" in LEVERS[name]) / seconds / rate
        print(
            f"{name:18s} {count / seconds:6.2f} samples/s {tokens / seconds:7.0f} tokens/s "
            f"{plain_seconds / seconds:5.2f} x plain MFU {100 * use:5.1f} % of a product's "
            f"{rate / 1e9:.0f} GFLOP/s {peak / 2**20:6.0f} MiB"
        )


if __name__ == "__main__":
    main()
