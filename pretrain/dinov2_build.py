"""From the arguments of `pretrain/dinov2.py` to the parts of a run; below this file nobody sees an arguments object."""

from pathlib import Path

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from encoders.evaluation.knn_benchmark import KnnBenchmark
from encoders.preprocess import PUBLISHED_MARGIN, ImageTransform
from encoders.transformers_encoder import TransformersEncoder
from pretrain.backbone import Backbone, build_backbone, position_grid_size
from pretrain.dinov2_args import DINOv2Arguments, backbone_shape, image_size
from pretrain.heads import ProjectionHead
from pretrain.initial_weights import load_backbone_weights
from pretrain.multicrop import MultiCrop, Poses
from pretrain.param_groups import parameter_groups
from pretrain.schedules import cosine_schedule, frozen, linear_warmup, scaled_learning_rate
from pretrain.self_distillation import SelfDistillation
from pretrain.stream_places import StreamPlaces
from pretrain.training_data import BatchLayout, StepMasks, make_loader
from pretrain.training_state import load_heads_and_centers
from vision_core.errors import UserError
from vision_core.images.sources import ImageSource, ImageStream, open_source
from vision_core.randomness import seed_of


def check_trackers(names: list[str]) -> None:
    """Raises UserError for a tracker that accelerate does not know, or would leave out in silence because its package is not installed."""
    available = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in names:
        if name != "all" and name not in available:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            problem = (
                "is not installed; install its package" if name in LOGGER_TYPE_TO_CLASS else f"is no tracker; accelerate knows {known}"
            )
            raise UserError(f"--report_to {name} {problem}, or leave it out")


def build_method(args: DINOv2Arguments) -> SelfDistillation:
    """The method object, initialised from the seed alone."""
    torch.manual_seed(seed_of(args.seed, "initialisation"))
    backbone = build_run_backbone(args, args.layerscale_value)
    width = backbone.config.hidden_size
    dino_head = ProjectionHead(
        width, args.num_prototypes, args.head_hidden_dim, args.head_bottleneck_dim, train_weight_g=args.train_weight_g
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
        recompute=args.gradient_checkpointing,
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
    groups = parameter_groups(method.student["backbone"], heads, args.layerwise_decay, args.patch_embed_lr_mult)
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
        "teacher_temp": linear_warmup(args.warmup_teacher_temp, args.teacher_temp, args.warmup_teacher_temp_steps, steps),
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
    masks = StepMasks(grid, layout.global_batch, args.seed, args.mask_probability, tuple(args.mask_ratio), exact)
    return make_loader(
        source, build_multicrop(args, source), masks, layout, args.seed, first_step, args.max_steps, args.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(), places=places,
    )  # fmt: skip


def build_benchmark(args: DINOv2Arguments, source: ImageSource | ImageStream, on_this_process: bool) -> KnnBenchmark | None:
    """The k-NN benchmark of the run; images are held by the main process alone."""
    if args.eval_dataset is None:
        return None
    learnt_scale = source.pixel_options.scale
    queries = open_source(args.eval_dataset, args.num_channels, learnt_scale)
    bank = queries
    if args.eval_bank_dataset is not None:
        bank = open_source(args.eval_bank_dataset, args.num_channels, learnt_scale)
    elif isinstance(source, ImageSource) and source.labels is not None:
        bank = source
    if not on_this_process:
        return None
    return KnnBenchmark(
        bank,
        queries,
        bank_size=args.knn_bank_size,
        num_queries=args.knn_num_queries,
        transform=ImageTransform(evaluation_size(args), tuple(args.image_mean), tuple(args.image_std), margin=PUBLISHED_MARGIN),
        k=args.knn_k,
        seed=args.seed,
        progress=True,
    )


def evaluation_size(args: DINOv2Arguments) -> tuple[int, int]:
    """The size at which the run's encoder is judged and its image processor crops."""
    return image_size(args.eval_image_size or args.global_crop_size)


def untrained_accuracy(args: DINOv2Arguments, benchmark: KnnBenchmark) -> dict[str, float]:
    """k-NN of the same architecture before training, LayerScale 1, the better of CLS and patch mean."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(args.seed, "untrained"))
        encoder = TransformersEncoder(build_run_backbone(args, 1.0), benchmark.transform)
        return {"untrained": max(benchmark.evaluate(encoder).values())}


def load_weights(method: SelfDistillation, source: str) -> list[str]:
    """`--init_from`: the backbone for student and teacher, and the heads where the folder has ones that fit; lines that say so."""
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
