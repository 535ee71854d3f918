"""Opens the images of a DINOv2 run, those that it trains on and those that judge it, from the
options of `pretrain/dinov2.py`."""

import torch

from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.evaluation.knn_benchmark import KnnBenchmark
from encoders.evaluation.same_classes import classes_problem
from encoders.preprocess import PUBLISHED_MARGIN, ImageTransform
from pretrain.run.args import DINOv2Arguments, evaluation_size
from pretrain.run.build import build_run_backbone
from pretrain.run.own_evaluation import HELD_OUT
from vision_core.images.held_out import SourcePart, hold_out
from vision_core.images.open_source import open_source
from vision_core.images.source import ImageSource, ImageStream
from vision_core.processes.distributed import print_once
from vision_core.randomness import seed_of
from vision_core.runs.data_facts import DataFacts, image_facts


def open_training_data(args: DINOv2Arguments, processes: int) -> tuple[ImageSource | ImageStream, str | None]:
    """The images that are trained on, and what the run is judged on.

    With eval_dataset=held_out the first are a `SourcePart` without those that judge the run. Where
    nothing can be held out, that is said, and the run is judged on None.
    """
    source = open_source(args.dataset, args.num_channels)
    if args.eval_dataset != HELD_OUT:
        return source, args.eval_dataset
    part = None
    if isinstance(source, ImageSource) and source.labels:
        part = hold_out(source, args.seed, args.knn_num_queries)
    a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    problem = _held_out_problem(source, part, max(a_step, args.knn_k))
    if problem is None:
        return part, HELD_OUT
    print_once([f"not judged      {problem}; name labelled images by --eval_dataset to see k-NN accuracy"])
    return source, None


def _held_out_problem(
    source: ImageSource | ImageStream, part: SourcePart | None, at_least: int
) -> str | None:
    """Why a run cannot be judged on a part of its own images, or None."""
    if not isinstance(source, ImageSource):
        return "a stream's labels are not known beforehand"
    if part is None:
        return "the images have no labels"
    if len(set(source.labels)) < 2:
        return "the images have one class alone"
    if not len(part.held_out):
        return "the images, or the files that hold them, are too few to hold some out"
    if len(part) < at_least:
        return f"with a tenth held out {len(part)} images would be left, fewer than a global batch or knn_k"
    return None


def build_benchmark(
    args: DINOv2Arguments, source: ImageSource | ImageStream, on_this_process: bool
) -> KnnBenchmark | None:
    """The k-NN benchmark of the run. Only the main process holds its images."""
    if args.eval_dataset is None:
        return None
    if args.eval_dataset == HELD_OUT:
        queries = source.held_out
    else:
        queries = open_source(args.eval_dataset, args.num_channels, source.pixel_options.scale)
    bank, origin = choose_bank(args, source, queries)
    num_queries = args.knn_num_queries
    if bank is queries and num_queries >= len(queries):
        num_queries = max(len(queries) // 2, 1)
    if not on_this_process:
        return None
    transform = ImageTransform(
        evaluation_size(args), tuple(args.image_mean), tuple(args.image_std), margin=PUBLISHED_MARGIN
    )
    return KnnBenchmark(
        bank,
        queries,
        bank_size=args.knn_bank_size,
        num_queries=num_queries,
        transform=transform,
        k=args.knn_k,
        seed=args.seed,
        progress=True,
        max_bad_fraction=args.max_bad_fraction,
        origin=origin,
    )


def choose_bank(
    args: DINOv2Arguments, source: ImageSource | ImageStream, queries: ImageSource
) -> tuple[ImageSource, str]:
    """The images whose classes are known to k-NN, and why they are not the training images, in
    words, or "".

    They are `queries` themselves, of which the benchmark then makes two parts, where the training
    images are the same images, or have no labels, or labels of other classes: sub-folders such as
    2021 and 2022 say nothing about cats and dogs.
    """
    if args.eval_bank_dataset is not None:
        bank = open_source(args.eval_bank_dataset, args.num_channels, source.pixel_options.scale)
        if same_images(bank, queries):
            return queries, "bank and queries are parts of the same images"
        return bank, ""
    problem = _problem_as_bank(source, queries)
    if problem is None:
        return source, ""
    return queries, f"the bank is a part of the evaluation images, because {problem}"


def _problem_as_bank(source: ImageSource | ImageStream, queries: ImageSource) -> str | None:
    """Why the training images cannot be the bank for `queries`, or None."""
    if not isinstance(source, ImageSource) or source.labels is None:
        return "the training images have no labels"
    problem = classes_problem(source, queries) if queries.labels is not None else None
    if problem is None and same_images(source, queries):
        problem = "they are the training images too"
    return problem


def same_images(one: ImageSource | ImageStream, other: ImageSource) -> bool:
    """Whether two sources are the same files; what else they share is found by its content."""
    return isinstance(one, ImageSource) and len(one) == len(other) and one.fingerprint == other.fingerprint


def data_facts(source: ImageSource | ImageStream, benchmark: KnnBenchmark | None) -> list[DataFacts]:
    """Facts of the images that are trained on, and of those that judge where they are others."""
    training = image_facts("dataset", source)
    facts = [training]
    for judging in benchmark.data if benchmark else ():
        if judging.content != training.content:
            facts.append(judging)
    return facts


def untrained_accuracy(args: DINOv2Arguments, benchmark: KnnBenchmark) -> dict[str, float]:
    """k-NN of the same architecture before training, LayerScale 1, the better of CLS and patch
    mean."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(args.seed, "untrained"))
        encoder = TransformersEncoder(build_run_backbone(args, 1.0), benchmark.transform)
        return {"untrained": max(benchmark.evaluate(encoder).values())}
