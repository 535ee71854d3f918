"""Builds the parts of a DINOv2 run from the options of `pretrain/dinov2.py`. No module below this
one sees an arguments object."""

from pathlib import Path

import numpy as np
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from pretrain.backbone import Backbone, build_backbone, position_grid_size
from pretrain.batches.crops import StepMasks, make_loader
from pretrain.batches.multicrop import MultiCrop, Poses
from pretrain.batches.order import BatchLayout
from pretrain.batches.stream_places import StreamPlaces
from pretrain.heads import ProjectionHead
from pretrain.initial_weights import load_backbone_weights
from pretrain.param_groups import parameter_groups
from pretrain.run.args import PROGRAM, DINOv2Arguments, backbone_shape, evaluation_size, image_size
from pretrain.run.card import CardFacts
from pretrain.run.training_state import load_heads_and_centers
from pretrain.schedules import cosine_schedule, frozen, linear_warmup, scaled_learning_rate
from pretrain.self_distillation import SelfDistillation
from vision_core.errors import UserError
from vision_core.images.source import ImageSource, ImageStream
from vision_core.randomness import seed_of

# What tells two recipes apart; config.yaml beside the card has every option.
DINOV2_CARD_SETTINGS = (
    "backbone", "patch_size", "num_register_tokens", "num_local_crops", "blur", "mask_count",
    "num_prototypes", "separate_ibot_head", "centering", "ibot_weighting", "koleo_precision",
    "train_weight_g", "learning_rate", "warmup_steps", "ema_momentum", "drop_path_rate", "bf16", "fp16",
    "seed",
)  # fmt: skip


def check_trackers(names: list[str]) -> None:
    """Raises UserError for a tracker that accelerate does not know, or would leave out in silence
    because its package is not installed."""
    available = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in names:
        if name == "all" or name in available:
            continue
        if name in LOGGER_TYPE_TO_CLASS:
            problem = "is not installed; install its package"
        else:
            problem = f"is not a tracker; accelerate knows {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
        raise UserError(f"--report_to {name} {problem}, or leave it out")


def build_method(args: DINOv2Arguments) -> SelfDistillation:
    """Student, teacher, heads and losses, initialised from the seed alone."""
    torch.manual_seed(seed_of(args.seed, "initialisation"))
    backbone = build_run_backbone(args, args.layerscale_value)
    dino_head = build_head(args, args.num_prototypes, args.head_bottleneck_dim)
    ibot_head = None
    if args.separate_ibot_head and args.ibot_loss_weight:
        num_prototypes = args.ibot_num_prototypes or args.num_prototypes
        ibot_head = build_head(args, num_prototypes, args.ibot_bottleneck_dim)
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
    width, layers, heads = backbone_shape(args)
    return build_backbone(
        width,
        layers,
        heads,
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


def build_head(args: DINOv2Arguments, num_prototypes: int, bottleneck_dim: int) -> ProjectionHead:
    """A fresh head on the run's backbone."""
    width, _, _ = backbone_shape(args)
    return ProjectionHead(
        width,
        num_prototypes,
        args.head_hidden_dim,
        bottleneck_dim,
        train_weight_g=args.train_weight_g,
    )


def build_optimizer(args: DINOv2Arguments, method: SelfDistillation) -> torch.optim.AdamW:
    """AdamW over the student; learning rate and weight decay are set at every step."""
    backbone = method.student["backbone"]
    heads = [module for name, module in method.student.items() if name != "backbone"]
    groups = parameter_groups(backbone, heads, args.layerwise_decay, args.patch_embed_lr_mult)
    return torch.optim.AdamW(groups, lr=0.0, betas=(args.adam_beta1, args.adam_beta2), foreach=True)


def build_schedules(args: DINOv2Arguments, global_batch: int) -> dict[str, np.ndarray]:
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
        global_crop_scale=tuple(args.global_crop_scale),
        local_crop_scale=tuple(args.local_crop_scale),
        blur=args.blur,
        colour_strength=args.colour_strength,
        grayscale_probability=args.grayscale_probability,
        mean=args.image_mean,
        std=args.image_std,
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
    masks = StepMasks(
        (height // args.patch_size, width // args.patch_size),
        layout.global_batch,
        args.seed,
        probability=args.mask_probability,
        ratio=tuple(args.mask_ratio),
        exact=args.mask_count == "exact",
    )
    return make_loader(
        source,
        build_multicrop(args, source),
        masks,
        layout,
        seed=args.seed,
        first_step=first_step,
        last_step=args.max_steps,
        num_workers=args.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(),
        places=places,
    )


def build_card_facts(args: DINOv2Arguments) -> CardFacts:
    """What the options say on the run's model card."""
    sizes = [f"global crops {_size_text(args.global_crop_size)}"]
    if args.num_local_crops:
        sizes.append(f"local crops {_size_text(args.local_crop_size)}")
    sizes.append(f"evaluated at {_size_text(evaluation_size(args))}")
    return CardFacts(
        program=PROGRAM,
        name=args.name,
        max_steps=args.max_steps,
        dataset=args.dataset,
        eval_dataset=args.eval_dataset,
        num_channels=args.num_channels,
        image_sizes=", ".join(sizes),
        batch_size=args.per_device_train_batch_size,
        micro_batches=args.gradient_accumulation_steps,
        settings={name: getattr(args, name) for name in DINOV2_CARD_SETTINGS},
    )


def load_weights(method: SelfDistillation, source: str) -> list[str]:
    """Take the weights of `--init_from`: the backbone for student and teacher, and the heads where
    the folder has ones that fit. Returns lines that say so."""
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


def _size_text(size: tuple[int, ...] | list[int]) -> str:
    """`[side]` or `[height, width]` as "height x width"."""
    height, width = image_size(size)
    return f"{height} x {width}"
