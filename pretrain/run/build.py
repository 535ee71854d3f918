"""From the arguments of `pretrain/dinov2.py` to the parts of a run; below this file nobody sees an
arguments object."""

from pathlib import Path

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.evaluation.knn_benchmark import KnnBenchmark
from encoders.evaluation.same_classes import classes_problem
from encoders.preprocess import PUBLISHED_MARGIN, ImageTransform
from pretrain.backbone import Backbone, build_backbone, position_grid_size
from pretrain.batches.crops import StepMasks, make_loader
from pretrain.batches.multicrop import MultiCrop, Poses
from pretrain.batches.order import BatchLayout
from pretrain.batches.stream_places import StreamPlaces
from pretrain.heads import ProjectionHead
from pretrain.initial_weights import load_backbone_weights
from pretrain.param_groups import parameter_groups
from pretrain.run.args import DINOv2Arguments, backbone_shape, image_size
from pretrain.run.own_evaluation import HELD_OUT
from pretrain.run.training_state import load_heads_and_centers
from pretrain.schedules import cosine_schedule, frozen, linear_warmup, scaled_learning_rate
from pretrain.self_distillation import SelfDistillation
from vision_core.errors import UserError
from vision_core.images.held_out import SourcePart, hold_out
from vision_core.images.open_source import open_source
from vision_core.images.source import ImageSource, ImageStream
from vision_core.processes.distributed import print_once
from vision_core.randomness import seed_of
from vision_core.runs.data_facts import DataFacts, image_facts


def check_trackers(names: list[str]) -> None:
    """Raises UserError for a tracker that accelerate does not know, or would leave out in silence
    because its package is not installed."""
    available = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in names:
        if name != "all" and name not in available:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            problem = (
                "is not installed; install its package"
                if name in LOGGER_TYPE_TO_CLASS
                else f"is no tracker; accelerate knows {known}"
            )
            raise UserError(f"--report_to {name} {problem}, or leave it out")


def build_method(args: DINOv2Arguments) -> SelfDistillation:
    """The method object, initialised from the seed alone."""
    torch.manual_seed(seed_of(args.seed, "initialisation"))
    backbone = build_run_backbone(args, args.layerscale_value)
    width = backbone.config.hidden_size
    dino_head = ProjectionHead(
        width,
        args.num_prototypes,
        args.head_hidden_dim,
        args.head_bottleneck_dim,
        train_weight_g=args.train_weight_g,
    )
    ibot_head = None
    if args.separate_ibot_head and args.ibot_loss_weight:
        ibot_head = ProjectionHead(
            width,
            args.ibot_num_prototypes or args.num_prototypes,
            args.head_hidden_dim,
            args.ibot_bottleneck_dim,
            train_weight_g=args.train_weight_g,
        )
    return SelfDistillation(
        backbone,
        dino_head,
        ibot_head,
        centering=args.centering,
        center_momentum=args.center_momentum,
        center_reduction=args.center_reduction,
        student_temp=args.student_temp,
        dino_loss_weight=args.dino_loss_weight,
        ibot_loss_weight=args.ibot_loss_weight,
        ibot_weighting=args.ibot_weighting,
        koleo_loss_weight=args.koleo_loss_weight,
        koleo_gather=args.koleo_gather,
        koleo_precision=args.koleo_precision,
        drop_path_rate=args.drop_path_rate,
        recompute=args.activation_checkpointing,
    )


def build_run_backbone(args: DINOv2Arguments, layerscale_value: float) -> Backbone:
    """A fresh backbone of the run's shape."""
    return build_backbone(
        *backbone_shape(args),
        patch_size=args.patch_size,
        image_size=position_grid_size(*image_size(args.global_crop_size), args.patch_size),
        num_channels=args.num_channels,
        num_register_tokens=args.num_register_tokens,
        use_swiglu_ffn=args.ffn == "swiglu",
        layerscale_value=layerscale_value,
        initializer_range=args.initializer_range,
        register_init_std=args.register_init_std,
        position_offset=args.position_offset,
    )


def build_optimizer(args: DINOv2Arguments, method: SelfDistillation) -> torch.optim.AdamW:
    """AdamW over the student; learning rate and weight decay are set at every step."""
    heads = [module for name, module in method.student.items() if name != "backbone"]
    groups = parameter_groups(
        method.student["backbone"], heads, args.layerwise_decay, args.patch_embed_lr_mult
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=(args.adam_beta1, args.adam_beta2), foreach=True)


def build_schedules(args: DINOv2Arguments, global_batch: int) -> dict:
    """The value of everything that changes with the step, `[max_steps]` each."""
    steps = args.max_steps
    peak = scaled_learning_rate(args.learning_rate, global_batch, args.lr_scaling)
    learning_rate = cosine_schedule(peak, args.min_learning_rate, steps, args.warmup_steps)
    return {
        "learning_rate": learning_rate,
        "last_layer_learning_rate": frozen(learning_rate, args.freeze_last_layer_steps),
        "weight_decay": cosine_schedule(args.weight_decay, args.weight_decay_end, steps),
        "ema_momentum": cosine_schedule(args.ema_momentum, args.ema_momentum_end, steps),
        "teacher_temp": linear_warmup(
            args.warmup_teacher_temp, args.teacher_temp, args.warmup_teacher_temp_steps, steps
        ),
    }


def build_multicrop(args: DINOv2Arguments, source: ImageSource | ImageStream) -> MultiCrop:
    """The run's crops of the images of `source`."""
    return MultiCrop(
        image_size(args.global_crop_size),
        image_size(args.local_crop_size),
        args.num_local_crops,
        tuple(args.global_crop_scale),
        tuple(args.local_crop_scale),
        args.blur,
        args.colour_strength,
        args.grayscale_probability,
        args.image_mean,
        args.image_std,
        poses=Poses(args.horizontal_flip_probability, args.vertical_flip_probability, args.quarter_turns),
        solarize_probability=args.solarize_probability,
        band_jitter_strength=args.band_jitter_strength,
        channel_drop_probability=args.channel_drop_probability,
        stain_strength=args.stain_strength,
        known_range=source.pixel_options.scale is not None,
    )


def build_loader(
    args: DINOv2Arguments,
    source: ImageSource | ImageStream,
    layout: BatchLayout,
    first_step: int,
    places: StreamPlaces | None = None,
) -> DataLoader:
    """Batches from `first_step` to the end; of a stream from `places`."""
    height, width = image_size(args.global_crop_size)
    grid = (height // args.patch_size, width // args.patch_size)
    exact = args.mask_count == "exact"
    masks = StepMasks(
        grid, layout.global_batch, args.seed, args.mask_probability, tuple(args.mask_ratio), exact
    )
    return make_loader(
        source, build_multicrop(args, source), masks, layout, args.seed, first_step, args.max_steps, args.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(), places=places,
    )  # fmt: skip


def open_training_data(args: DINOv2Arguments, processes: int) -> ImageSource | ImageStream:
    """The images that are trained on. With eval_dataset=held_out they are a `SourcePart` without
    those that judge the run.

    Where nothing can be held out, that is said, and `args.eval_dataset` becomes None.
    """
    source = open_source(args.dataset, args.num_channels)
    if args.eval_dataset != HELD_OUT:
        return source
    at_least = max(
        args.per_device_train_batch_size * args.gradient_accumulation_steps * processes, args.knn_k
    )
    part = (
        hold_out(source, args.seed, args.knn_num_queries)
        if isinstance(source, ImageSource) and source.labels
        else None
    )
    problem = _held_out_problem(source, part, at_least)
    if problem is None:
        return part
    print_once([f"not judged      {problem}; name labelled images by --eval_dataset to see k-NN accuracy"])
    args.eval_dataset = None
    return source


def _held_out_problem(
    source: ImageSource | ImageStream, part: SourcePart | None, at_least: int
) -> str | None:
    """Why a run cannot be judged on a part of its own images, or None."""
    if part is None:
        return (
            "the images have no labels"
            if isinstance(source, ImageSource)
            else "a stream's labels are not known beforehand"
        )
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
    """The k-NN benchmark of the run; images are held by the main process alone."""
    if args.eval_dataset is None:
        return None
    learnt_scale = source.pixel_options.scale
    is_held_out = args.eval_dataset == HELD_OUT
    queries = (
        source.held_out if is_held_out else open_source(args.eval_dataset, args.num_channels, learnt_scale)
    )
    bank, origin = choose_bank(args, source, queries)
    num_queries = args.knn_num_queries
    if bank is queries and num_queries >= len(queries):
        num_queries = max(len(queries) // 2, 1)
    if not on_this_process:
        return None
    return KnnBenchmark(
        bank,
        queries,
        bank_size=args.knn_bank_size,
        num_queries=num_queries,
        transform=ImageTransform(
            evaluation_size(args), tuple(args.image_mean), tuple(args.image_std), margin=PUBLISHED_MARGIN
        ),
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
        return (
            (queries, "bank and queries are parts of the same images")
            if same_images(bank, queries)
            else (bank, "")
        )
    is_labelled = isinstance(source, ImageSource) and source.labels is not None
    problem = "the training images have no labels" if not is_labelled else None
    if is_labelled and queries.labels is not None:
        problem = classes_problem(source, queries)
    if problem is None and same_images(source, queries):
        problem = "they are the training images too"
    return (
        (source, "")
        if problem is None
        else (queries, f"the bank is a part of the evaluation images, because {problem}")
    )


def same_images(one: ImageSource | ImageStream, other: ImageSource) -> bool:
    """Whether two sources are the same files; what else they share is found by its content."""
    return isinstance(one, ImageSource) and len(one) == len(other) and one.fingerprint == other.fingerprint


def data_facts(source: ImageSource | ImageStream, benchmark: KnnBenchmark | None) -> list[DataFacts]:
    """Of the images that are trained on and of those that judge, where they are others."""
    training = image_facts("dataset", source)
    judging = benchmark.data if benchmark else []
    return [training, *(facts for facts in judging if facts.content != training.content)]


def evaluation_size(args: DINOv2Arguments) -> tuple[int, int]:
    """The size at which the run's encoder is judged and its image processor crops."""
    return image_size(args.eval_image_size or args.global_crop_size)


def untrained_accuracy(args: DINOv2Arguments, benchmark: KnnBenchmark) -> dict[str, float]:
    """k-NN of the same architecture before training, LayerScale 1, the better of CLS and patch
    mean."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(args.seed, "untrained"))
        encoder = TransformersEncoder(build_run_backbone(args, 1.0), benchmark.transform)
        return {"untrained": max(benchmark.evaluate(encoder).values())}


def load_weights(method: SelfDistillation, source: str) -> list[str]:
    """`--init_from`: the backbone for student and teacher, and the heads where the folder has ones
    that fit; lines that say so."""
    lines = load_backbone_weights(method.student["backbone"], source)
    heads = Path(source) / "heads.safetensors"
    if heads.is_file():
        try:
            load_heads_and_centers(method, load_file(heads))
            for name, head in method.teacher.items():
                method.student[name].load_state_dict(head.state_dict())
            lines.append("heads loaded too")
        except RuntimeError as error:
            lines.append(f"heads start afresh: {error}")
    method.teacher.load_state_dict(method.student.state_dict())
    return lines
