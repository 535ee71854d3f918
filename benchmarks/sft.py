"""What each lever of fine-tuning is worth: samples and tokens per second, use of the machine and
peak memory, beside a plain variant.

    python benchmarks/sft.py

The plain variant pads every batch to its longest sample, computes all logits, runs the encoders on
every image and the aggregator as its formula is written. Each row of the table changes one thing,
the last ones all together. The variants take turns, each in a process of its own, so that noise of
the machine meets all alike. A turn is one pass over the same samples with forward, backward and
AdamW.

Samples: the parts of LLaVA-1.5's 665k mixture in their published shares (Liu et al. 2023, table 7).
Their lengths are not; those assumed are in MIXTURE. All lengths, an image's 576 tokens included,
are multiplied by (grid / 24)^2.
"""

import argparse
import ctypes
import multiprocessing
import statistics
import sys
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from tqdm import tqdm

from encoders.adapters.transformers_encoder import build_transformers
from encoders.preprocess import ImageTransform
from fusion import FusionProcessor, FusionVlmForConditionalGeneration, assemble_vlm, fuse_encoders
from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.conversations.batches import BLANK, ConversationCollator, image_inputs
from fusion.labels import LABEL_IGNORED
from fusion.map_cache import MapCache
from fusion.tiny import tiny_language_model
from fusion.training.trainer import GroupedByLength
from vision_core.randomness import numpy_generator

# part of the mixture: (thousands of samples, median of text tokens, share of them that is learnt,
# has an image)
MIXTURE = {
    "LLaVA": (158, 250, 0.6, True), "ShareGPT": (40, 1100, 0.6, False), "VQAv2": (83, 130, 0.15, True), "GQA": (72, 170, 0.15, True),
    "OKVQA": (9, 60, 0.1, True), "OCRVQA": (80, 100, 0.2, True), "A-OKVQA": (66, 110, 0.1, True), "TextCaps": (22, 50, 0.4, True),
    "RefCOCO": (48, 250, 0.4, True), "VG": (86, 350, 0.4, True),
}  # fmt: skip
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
SIDE, PATCH, VOCABULARY = 112, 14, 32_000


def make_model(device: str) -> tuple[FusionVlmForConditionalGeneration, FusionProcessor]:
    """Two ViTs of 22 M parameters, frozen, and a language model of 30 M with 20 M in its
    embeddings."""
    vit = {
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536, "image_size": SIDE, "patch_size": PATCH,
    }  # fmt: skip
    encoders = [
        build_transformers(vit | {"model_type": kind}, ImageTransform((SIDE, SIDE)), dtype=torch.float32)
        for kind in ("dinov2", "siglip_vision_model")
    ]
    vision, _ = fuse_encoders(
        encoders, hidden_size=320, connector_options={"width": 256, "num_heads": 4}, grid=SIDE // PATCH
    )
    sizes = {
        "hidden_size": 320,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 5,
        "head_dim": 64,
        "num_key_value_heads": 5,
    }
    language_model, tokenizer = tiny_language_model("qwen3", **sizes)
    language_model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    model, processor = assemble_vlm(vision, language_model, tokenizer, num_sva_layers=3, sva_stride=2)
    model.requires_grad_(True)
    for encoder in model.vision_model.encoders:
        encoder.freeze()
    return model.to(device).train(), processor


def draw_samples(count: int, processor: FusionProcessor, seed: int = 0) -> list[dict]:
    """Of each sample its ids and labels, and its image."""
    rng = numpy_generator("sft benchmark", seed)
    shares = [thousands for thousands, *_ in MIXTURE.values()]
    kinds = rng.choice(len(MIXTURE), count, p=[share / sum(shares) for share in shares])
    scale = (processor.image_processor.grid / 24) ** 2
    samples = []
    for kind in kinds.tolist():
        _, median, learnt, has_image = list(MIXTURE.values())[kind]
        length = max(int(scale * min(median * rng.lognormal(0.0, 0.7), 2048)), 6)
        ids = rng.integers(300, VOCABULARY, length).tolist()
        image_tokens = (
            [processor.image_token_id] * processor.image_processor.num_tokens(SIDE, SIDE) if has_image else []
        )
        prompt = len(image_tokens) + max(int((1 - learnt) * length), 1)
        tokens = image_tokens + ids
        image = torch.from_numpy(rng.integers(0, 255, (3, SIDE, SIDE), dtype="uint8")) if has_image else None
        samples.append(
            {"input_ids": tokens, "labels": [LABEL_IGNORED] * prompt + tokens[prompt:], "image": image}
        )
    return samples


def make_batches(
    samples: list[dict], levers: set[str], size: int, processor: FusionProcessor, cache: MapCache | None
) -> list[dict]:
    """All samples once, in batches."""
    order = range(len(samples))
    if "groups" in levers:
        order = GroupedByLength(
            [len(sample["input_ids"]) for sample in samples],
            size,
            partial(numpy_generator, "sft benchmark order"),
        )
    items = []
    for number in order:
        item = {name: value for name, value in samples[number].items() if name != "image"}
        image = samples[number]["image"]
        items.append(item if image is None else item | image_inputs([image], processor, cache))
    collator = ConversationCollator(processor, "packing" in levers, cache)
    return [collator(items[start : start + size]) for start in range(0, len(items), size)]


def serve(levers: set[str], count: int, size: int, device: str, turns: Connection) -> None:
    """A process of one variant: a pass for every message, answered with its seconds and its
    peak."""
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
            images = [sample["image"] for sample in samples if sample["image"] is not None]
            cache.fill([*images, BLANK], model.vision_model, processor.image_processor)
        batches = make_batches(samples, levers, size, processor, cache)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-5)
    while turns.recv():
        reset_peak(device)
        started = time.perf_counter()
        for batch in batches:
            step(model, optimizer, on_device(batch, device), "learnt" in levers)
        if device == "cuda":
            torch.cuda.synchronize()
        turns.send((time.perf_counter() - started, peak_bytes(device)))


def step(
    model: FusionVlmForConditionalGeneration,
    optimizer: torch.optim.Optimizer,
    batch: dict,
    supervised_only: bool,
) -> None:
    """Forward, backward, update; on an accelerator in bfloat16."""
    device = model.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss = model(
            **batch, supervised_only=supervised_only, **({} if supervised_only else {"use_cache": False})
        ).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def on_device(batch: dict, device: str) -> dict:
    return {
        name: [each.to(device) for each in value] if isinstance(value, list) else value.to(device)
        for name, value in batch.items()
    }


def reset_peak(device: str) -> None:
    """The peak is counted from here on."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL("libc.so.6").malloc_trim(
        0
    )  # what the allocator keeps for later would hide part of the next peak
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """The most memory that this process has held since."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


def useful_flops(model: FusionVlmForConditionalGeneration, samples: list[dict], cached: bool) -> float:
    """Of one pass without padding, products alone: 6 per parameter and token where it trains, 2
    where it is frozen; the head at learnt positions.

    The aggregator counts as its fast path computes it; encoders whose features are cached do not
    count.
    """
    tokens = sum(len(sample["input_ids"]) for sample in samples)
    learnt = sum(label != LABEL_IGNORED for sample in samples for label in sample["labels"])
    images = sum(sample["image"] is not None for sample in samples)
    head = model.get_output_embeddings().weight.numel()
    layers = sum(each.numel() for each in model.get_decoder().layers.parameters())
    encoders = sum(each.numel() for encoder in model.vision_model.encoders for each in encoder.parameters())
    places = model.config.vision_config.grid**2
    looks = sum(
        each.numel()
        for each in [*model.vision_model.connector.parameters(), *model.vision_sampler_layers.parameters()]
    )
    return 6.0 * (layers * tokens + head * learnt + looks * images * places) + (
        0.0 if cached else 2.0 * encoders * images * places
    )


def matmul_rate(device: str) -> float:
    """Operations per second of a large product."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    one, other = (
        torch.randn(2048, 2048, device=device, dtype=dtype),
        torch.randn(2048, 2048, device=device, dtype=dtype),
    )
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2.0 * 2048**3 / statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max_samples", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    context, pipes = multiprocessing.get_context("spawn"), {}
    for name, levers in LEVERS.items():
        pipes[name], other = context.Pipe()
        context.Process(
            target=serve, args=(levers, args.samples, args.batch_size, args.device, other), daemon=True
        ).start()
    done: dict[str, list[tuple[float, int]]] = {name: [] for name in LEVERS}
    for turn in tqdm(range(args.turns + 1), desc="turns"):
        for name, pipe in pipes.items():
            pipe.send(True)
            result = pipe.recv()
            if turn:  # the first one warms up
                done[name].append(result)
    for pipe in pipes.values():
        pipe.send(False)
    model, processor = make_model(args.device)
    samples = draw_samples(args.samples, processor)
    tokens, rate = sum(len(sample["input_ids"]) for sample in samples), matmul_rate(args.device)
    print(
        f"{args.samples} samples of {tokens} tokens on {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    plain = statistics.median(seconds for seconds, _ in done["plain"])
    for name, results in done.items():
        seconds, peak = (statistics.median(each[part] for each in results) for part in (0, 1))
        flops = useful_flops(model, samples, "cache" in LEVERS[name])
        print(
            f"{name:18s} {args.samples / seconds:6.2f} samples/s {tokens / seconds:7.0f} tokens/s {plain / seconds:5.2f} x plain "
            f"MFU {100 * flops / seconds / rate:5.1f} % of a product's {rate / 1e9:.0f} GFLOP/s {peak / 2**20:6.0f} MiB"
        )


if __name__ == "__main__":
    main()
