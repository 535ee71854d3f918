"""Every option of `pretrain/dinov2.py`, and the checks that need no data. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pretrain.run.own_evaluation import BY_DATASET, chosen_evaluation
from vision_core.arguments import arguments_to_yaml, option
from vision_core.errors import UserError
from vision_core.processes.launchers import is_first_launched
from vision_core.runs.folder_checks import check_folder, check_program, end_if_all_is_done

# Hidden size, layers, heads: S, B, L and g as published (head size 64); the others are for small
# machines.
BACKBONE_SIZES = {
    "nano": (128, 4, 2),
    "micro": (192, 6, 3),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "giant": (1536, 40, 24),
}

HELD_OUT_SCENES = "scenes?size=64&split=held_out&count=2000"

PROGRAM = "pretrain/dinov2.py"
LONGEST_DEFAULT_WARMUP = 50  # steps

# Options by what their numbers may be.
LOW_AND_HIGH_SHARES = ("global_crop_scale", "local_crop_scale", "mask_ratio")
ABOVE_ZERO = (
    "max_steps", "logging_steps", "health_steps", "save_steps", "save_total_limit", "eval_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "patch_size", "num_channels",
    "num_prototypes", "head_hidden_dim", "head_bottleneck_dim", "knn_k", "knn_bank_size",
    "knn_num_queries", "initializer_range", "register_init_std", "student_temp", "teacher_temp",
    "warmup_teacher_temp", "learning_rate",
)  # fmt: skip
NOT_BELOW_ZERO = (
    "num_local_crops", "num_register_tokens", "dataloader_num_workers", "warmup_steps",
    "freeze_last_layer_steps", "warmup_teacher_temp_steps", "koleo_loss_weight", "ibot_loss_weight",
    "dino_loss_weight", "max_grad_norm", "layerscale_value", "weight_decay", "weight_decay_end",
    "dataloader_timeout", "band_jitter_strength", "stain_strength",
)  # fmt: skip
SHARES = (
    "mask_probability", "colour_strength", "grayscale_probability", "solarize_probability",
    "horizontal_flip_probability", "vertical_flip_probability", "channel_drop_probability",
    "drop_path_rate", "ema_momentum", "ema_momentum_end", "center_momentum", "max_bad_fraction",
)  # fmt: skip
END_WITHIN_THE_RUN = ("warmup_steps", "warmup_teacher_temp_steps", "freeze_last_layer_steps")


@dataclass
class DINOv2Arguments:
    """DINOv2 pretraining. The defaults are the main job on the embedded scenes for a machine with 2
    CPU cores."""

    # --- run
    output_dir: str | None = option(None, "folder of the run; default outputs/<name>-<n>", "run")
    name: str = option("dinov2", "name of the run, for the default folder and the trackers", "run")
    seed: int = option(0, "seed of every random draw", "run")
    max_steps: int = option(920, "optimizer steps", "run")
    logging_steps: int = option(10, "steps between two lines of metrics.jsonl", "run")
    save_steps: int = option(500, "steps between two checkpoints; the last step always saves", "run")
    save_total_limit: int = option(2, "checkpoints to keep", "run")
    report_to: list[str] = option([], "trackers of accelerate: tensorboard, wandb, ...", "run")
    resume_from_checkpoint: str | None = option(
        None,
        "auto: start, go on, or say that all is done; true: the newest complete checkpoint of output_dir; "
        "or the folder of one",
        "run",
    )
    changed_data: Literal["note", "refuse"] = option(
        "note",
        "what a run that goes on does about images added, removed or written anew since its checkpoint",
        "run",
    )
    init_from: str | None = option(
        None,
        "weights to start a new run from: a folder, hf:NAME, dinov2_pth:FILE (docs/pretraining.md)",
        "run",
    )
    grace_seconds: float = option(
        30.0,
        "how long the scheduler lets a run live after its signal: a step that leaves too little of it for a "
        "save is broken off",
        "run",
    )
    dry_run: bool = option(
        False, "resolve everything, draw one batch, print shapes and sizes, train nothing", "run"
    )
    bf16: bool = option(True, "mixed precision; neither this nor fp16 is float32", "run")
    fp16: bool = option(
        False, "mixed precision with a loss scale, on GPUs without bfloat16 (V100, T4)", "run"
    )
    health_steps: int | None = option(
        None,
        "steps between two looks at the run's health (docs/health.md); default: a twenty-fifth of max_steps",
        "run",
    )
    stop_when_sick: bool = option(False, "stop with an error at the first alarm of the run's health", "run")
    activation_checkpointing: bool = option(
        False, "recompute the student's layers in the backward pass: less memory", "run"
    )
    num_cpu_threads: int | None = option(
        None,
        "threads per process on a CPU; default: the cores shared among the processes (exact resume needs it fixed)",
        "run",
    )

    # --- data
    dataset: str = option(
        "scenes?size=64", "images: folder, list:, parquet:, hf:, wds:, scenes (see docs/data.md)", "data"
    )
    num_channels: int = option(3, "input channels; other than 3 reads multi-band TIFF and .npy", "data")
    image_mean: list[float] = option([0.485, 0.456, 0.406], "per channel, images scaled to 0..1", "data")
    image_std: list[float] = option([0.229, 0.224, 0.225], "per channel, images scaled to 0..1", "data")
    per_device_train_batch_size: int = option(64, "images per process and micro-batch", "data")
    gradient_accumulation_steps: int = option(
        1, "micro-batches per step; KoLeo and Sinkhorn see one micro-batch, centers move once a step", "data"
    )
    dataloader_num_workers: int = option(1, "processes that read and cut images", "data")
    dataloader_timeout: float = option(
        600.0, "seconds without a batch after which a data worker counts as hung; 0: for ever", "data"
    )
    max_bad_fraction: float = option(
        0.01, "stop when more than this share of the drawn images is unreadable", "data"
    )

    # --- backbone
    backbone: Literal["nano", "micro", "tiny", "small", "base", "large", "giant"] = option(
        "nano",
        "; ".join(
            f"{name} {width} x {layers}, {heads} heads"
            for name, (width, layers, heads) in BACKBONE_SIZES.items()
        ),
        "backbone",
    )
    hidden_size: int | None = option(None, "width, instead of the one of `backbone`", "backbone")
    num_hidden_layers: int | None = option(None, "layers, instead of those of `backbone`", "backbone")
    num_attention_heads: int | None = option(None, "heads, instead of those of `backbone`", "backbone")
    patch_size: int = option(8, "pixels of a side of a patch", "backbone")
    num_register_tokens: int = option(0, "register tokens", "backbone")
    position_offset: float = option(
        0.0,
        "of the resampling of positions for other crop sizes; published without registers 0.1, with them 0",
        "backbone",
    )
    register_init_std: float = option(
        0.02,
        "std of register tokens at the start; the published 1e-6 leaves them equal for thousands of steps",
        "backbone",
    )
    ffn: Literal["mlp", "swiglu"] = option("mlp", "feed-forward layer", "backbone")
    layerscale_value: float = option(1.0, "initial LayerScale; published 1e-5, short runs need 1", "backbone")
    initializer_range: float = option(
        0.08, "std of the linear layers at the start; published 0.02, narrow ones need more", "backbone"
    )
    drop_path_rate: float = option(0.0, "share of crops that skip a residual branch", "backbone")

    # --- crops and masks
    global_crop_size: list[int] = option(
        [48], "side, or height and width, of the 2 global crops", "crops and masks"
    )
    local_crop_size: list[int] = option(
        [32], "side, or height and width, of the local crops", "crops and masks"
    )
    num_local_crops: int = option(2, "local crops per image; published 8", "crops and masks")
    global_crop_scale: list[float] = option(
        [0.5, 1.0], "share of the image's area; published 0.32 to 1", "crops and masks"
    )
    local_crop_scale: list[float] = option(
        [0.25, 0.5], "share of the image's area; published 0.05 to 0.32", "crops and masks"
    )
    blur: Literal["official", "paper", "none"] = option(
        "none",
        "probability on global 1, global 2, local: official 0/0.9/0.5, paper 1/0.1/0.5, none for small images",
        "crops and masks",
    )
    colour_strength: float = option(
        1.0, "factor on the ranges of the colour jitter; published 1", "crops and masks"
    )
    grayscale_probability: float = option(
        1.0, "share of the crops without colours; published 0.2", "crops and masks"
    )
    solarize_probability: float | None = option(
        None,
        "share of the second global crops; default: 0.2, as published, for 3 channels, otherwise 0",
        "crops and masks",
    )
    horizontal_flip_probability: float = option(
        0.5, "share of the crops that are mirrored; published 0.5", "crops and masks"
    )
    vertical_flip_probability: float = option(
        0.0, "share of the crops that are mirrored upside down; published 0", "crops and masks"
    )
    quarter_turns: bool = option(
        False, "crops are turned by 0, 90, 180 or 270 degrees, each as likely", "crops and masks"
    )
    band_jitter_strength: float = option(
        0.0,
        "brightness and contrast of any number of channels, in units of image_std: factor on the ranges; 0: off",
        "crops and masks",
    )
    channel_drop_probability: float = option(
        0.0, "share of the images that lose some of their channels", "crops and masks"
    )
    stain_strength: float = option(
        0.0,
        "jitter of haematoxylin, eosin and DAB in RGB histology: 0.05 light, 0.2 strong; 0: off",
        "crops and masks",
    )
    mask_probability: float = option(0.5, "share of the global crops that are masked", "crops and masks")
    mask_ratio: list[float] = option(
        [0.1, 0.5], "least and greatest share of masked patches", "crops and masks"
    )
    mask_count: Literal["published", "exact"] = option(
        "published", "exact completes every block mask to its target (DINOv3)", "crops and masks"
    )

    # --- heads and losses
    num_prototypes: int = option(1024, "outputs of the DINO head", "heads and losses")
    head_hidden_dim: int = option(
        512, "width of the heads' hidden layers; published 2048", "heads and losses"
    )
    head_bottleneck_dim: int = option(128, "bottleneck of the DINO head", "heads and losses")
    separate_ibot_head: bool = option(False, "an iBOT head of its own", "heads and losses")
    ibot_num_prototypes: int | None = option(
        None, "outputs of a separate iBOT head; default num_prototypes", "heads and losses"
    )
    ibot_bottleneck_dim: int = option(256, "bottleneck of a separate iBOT head", "heads and losses")
    train_weight_g: bool = option(
        True, "the last layer's norm g is trained (published code) or stays 1 (paper)", "heads and losses"
    )
    centering: Literal["softmax", "sinkhorn_knopp"] = option(
        "sinkhorn_knopp", "centering of the teacher", "heads and losses"
    )
    center_momentum: float = option(0.9, "momentum of the softmax centers", "heads and losses")
    center_reduction: Literal["ranks", "tokens"] = option(
        "ranks", "mean of the processes' means (published) or over all tokens", "heads and losses"
    )
    student_temp: float = option(0.1, "temperature of the student", "heads and losses")
    teacher_temp: float = option(0.02, "temperature of the teacher; published 0.07", "heads and losses")
    warmup_teacher_temp: float = option(
        0.02, "temperature of the teacher at the first step", "heads and losses"
    )
    warmup_teacher_temp_steps: int = option(0, "steps of its linear warm-up", "heads and losses")
    dino_loss_weight: float = option(1.0, "weight of the DINO loss", "heads and losses")
    ibot_loss_weight: float = option(1.0, "weight of the iBOT loss", "heads and losses")
    ibot_weighting: Literal["published", "masked_crops"] = option(
        "published",
        "divide by all global crops (published) or by the masked ones (paper)",
        "heads and losses",
    )
    koleo_loss_weight: float = option(0.1, "weight of KoLeo, once per global crop", "heads and losses")
    koleo_gather: bool = option(
        False, "neighbours over all processes; published: each process alone", "heads and losses"
    )
    koleo_precision: Literal["float32", "autocast"] = option(
        "float32", "autocast computes in the features' type, as published; may be inf", "heads and losses"
    )

    # --- optimisation
    learning_rate: float = option(8e-4, "before scaling by the global batch", "optimisation")
    lr_scaling: Literal["sqrt", "linear", "none"] = option(
        "none", "sqrt: x sqrt(global batch / 1024), published; linear: x global batch / 256", "optimisation"
    )
    min_learning_rate: float = option(1e-6, "at the end; never scaled", "optimisation")
    warmup_steps: int | None = option(
        None,
        "steps of linear learning-rate warm-up; default: 50, or a tenth of max_steps where that is less",
        "optimisation",
    )
    weight_decay: float = option(0.04, "at the first step", "optimisation")
    weight_decay_end: float = option(0.4, "at the end (cosine)", "optimisation")
    adam_beta1: float = option(0.9, "AdamW", "optimisation")
    adam_beta2: float = option(0.95, "AdamW; published 0.999", "optimisation")
    layerwise_decay: float = option(1.0, "learning-rate factor per layer below the last", "optimisation")
    patch_embed_lr_mult: float = option(
        1.0, "learning-rate factor of the patch embedding; published 0.2", "optimisation"
    )
    freeze_last_layer_steps: int = option(
        0, "steps with learning rate 0 for the heads' last layer", "optimisation"
    )
    max_grad_norm: float = option(
        3.0, "gradient clipping, of the backbone and of each head by itself; 0: none", "optimisation"
    )
    ema_momentum: float = option(0.97, "of the teacher at the first step", "optimisation")
    ema_momentum_end: float = option(1.0, "of the teacher at the end (cosine)", "optimisation")

    # --- evaluation
    eval_dataset: str | None = option(
        BY_DATASET,
        "labelled images, the queries of k-NN; auto: held-out scenes where dataset is scenes, otherwise "
        "held_out; held_out: a tenth of dataset, which is then not trained on, if it has labels; none: no "
        "evaluation",
        "evaluation",
    )
    eval_bank_dataset: str | None = option(
        None,
        "labelled images, the bank of k-NN; default: dataset if it has eval_dataset's classes, otherwise a "
        "part of eval_dataset",
        "evaluation",
    )
    eval_steps: int = option(
        460, "steps between two evaluations; the last step always evaluates", "evaluation"
    )
    eval_image_size: list[int] | None = option(
        None, "size of evaluated images; default global_crop_size", "evaluation"
    )
    knn_k: int = option(20, "neighbours", "evaluation")
    knn_bank_size: int = option(4000, "images drawn for the bank", "evaluation")
    knn_num_queries: int = option(2000, "images drawn as queries", "evaluation")

    def __post_init__(self) -> None:
        self.eval_dataset = chosen_evaluation(self.eval_dataset, self.dataset, HELD_OUT_SCENES)
        if self.warmup_steps is None:  # resolved here, so that config.yaml has the number
            self.warmup_steps = min(LONGEST_DEFAULT_WARMUP, max(self.max_steps, 0) // 10)


def image_size(size: Sequence[int]) -> tuple[int, int]:
    """`[side]` or `[height, width]` as (height, width)."""
    return (size[0], size[-1])


def evaluation_size(args: DINOv2Arguments) -> tuple[int, int]:
    """(height, width) at which the run's encoder is judged and its image processor crops."""
    return image_size(args.eval_image_size or args.global_crop_size)


def backbone_shape(args: DINOv2Arguments) -> tuple[int, int, int]:
    """Hidden size, layers and heads: those of `backbone`, each replaced where it is given by
    itself."""
    width, layers, heads = BACKBONE_SIZES[args.backbone]
    return (args.hidden_size or width, args.num_hidden_layers or layers, args.num_attention_heads or heads)


def backbone_text(args: DINOv2Arguments) -> str:
    """The shape of the backbone, in words."""
    width, layers, heads = backbone_shape(args)
    return f"width {width}, {layers} layers, {heads} heads, patches of {args.patch_size}"


def check_start(args: DINOv2Arguments) -> None:
    """Refuse options that cannot train, and a folder that the run could not use. Only the first
    process looks at the folder: it is in it soon.

    A checkpoint, which takes long to verify, is looked at when it is resumed.
    """
    check_arguments(args)
    end_if_all_is_done(args.output_dir, config_of(args), args.resume_from_checkpoint, PROGRAM)
    check_program(args.output_dir, args.name, args.resume_from_checkpoint, PROGRAM)
    if is_first_launched() and not args.resume_from_checkpoint:
        check_folder(args.output_dir, args.name, program=PROGRAM)


def config_of(args: DINOv2Arguments) -> str:
    """What config.yaml says of the options. It leaves out how a run was started."""
    return arguments_to_yaml(replace(args, resume_from_checkpoint=None))


def check_arguments(args: DINOv2Arguments) -> None:
    """Refuse values that cannot train, naming the option and the cure."""
    if args.bf16 and args.fp16:
        raise UserError("bf16 and fp16 are two kinds of mixed precision; fp16 needs --bf16 false")
    check_sizes(args)
    check_ranges(args)
    check_losses(args)
    check_first_steps(args)
    check_channels(args)
    width, _, heads = backbone_shape(args)
    if width % heads:
        raise UserError(f"hidden_size={width} is not a multiple of num_attention_heads={heads}")


def check_sizes(args: DINOv2Arguments) -> None:
    """Refuse sizes of crops and evaluation that patches do not fill."""
    sizes = {"global_crop_size": args.global_crop_size}
    if args.num_local_crops:
        sizes["local_crop_size"] = args.local_crop_size
    if args.eval_image_size is not None:
        sizes["eval_image_size"] = args.eval_image_size
    for name, size in sizes.items():
        if len(size) not in (1, 2):
            raise UserError(f"{name}={size}: give one side, or height and width")
        for side in size:
            check_side(name, side, args.patch_size)


def check_side(name: str, side: int, patch_size: int) -> None:
    """Refuse a side of an image that is not a multiple of the patches."""
    if side < patch_size or side % patch_size:
        below = max(side // patch_size, 1) * patch_size
        raise UserError(
            f"{name}={side} is not a multiple of patch_size={patch_size}; "
            f"the next ones are {below} and {below + patch_size}"
        )


def check_ranges(args: DINOv2Arguments) -> None:
    """Refuse numbers outside the range of their option."""
    for name in LOW_AND_HIGH_SHARES:
        low_high = getattr(args, name)
        if len(low_high) != 2 or not 0 <= low_high[0] <= low_high[1] <= 1:
            raise UserError(f"{name}={low_high}: give two numbers, 0 <= low <= high <= 1")
    for name in ABOVE_ZERO:
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"{name}={value}: it must be above 0")
    for name in NOT_BELOW_ZERO:
        if getattr(args, name) < 0:
            raise UserError(f"{name}={getattr(args, name)}: it must not be below 0")
    for name in SHARES:
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name}={value}: it must lie between 0 and 1")
    check_below_one(args)


def check_below_one(args: DINOv2Arguments) -> None:
    """Refuse a position offset of 1, and a drop path that leaves nothing."""
    if not 0 <= args.position_offset < 1:
        raise UserError(f"position_offset={args.position_offset}: the published one is 0.1, and 0 means none")
    if args.drop_path_rate == 1:
        raise UserError("drop_path_rate=1 drops every branch; published values are 0 to 0.4")


def check_losses(args: DINOv2Arguments) -> None:
    """Refuse a run without a loss to learn from."""
    if args.dino_loss_weight == 0 and args.ibot_loss_weight == 0:
        raise UserError(
            "dino_loss_weight and ibot_loss_weight are both 0: nothing is learned; "
            "set one of them, 1 as published"
        )


def check_first_steps(args: DINOv2Arguments) -> None:
    """Refuse what is to end after some steps and would not end within the run. All of it is named
    at once, with the words of a short trial."""
    too_long = []
    for name in END_WITHIN_THE_RUN:
        steps = getattr(args, name)
        if steps and steps >= args.max_steps:
            too_long.append(name)
    if too_long:
        given = ", ".join(f"{name}={getattr(args, name)}" for name in too_long)
        short = " ".join(f"--{name} 0" for name in too_long)
        verb = "is" if len(too_long) == 1 else "are"
        raise UserError(
            f"{given} {verb} not below max_steps={args.max_steps}; train longer, "
            f"or for a short trial add {short}"
        )


def check_channels(args: DINOv2Arguments) -> None:
    """Refuse numbers per channel for other channels, and augmentations that need other channels."""
    for name in ("image_mean", "image_std"):
        count = len(getattr(args, name))
        if count != args.num_channels:
            raise UserError(
                f"{name} has {count} values, num_channels is {args.num_channels}; give one per channel"
            )
    if min(args.image_std) <= 0:
        raise UserError(f"image_std={args.image_std}: every value must be above 0")
    if args.stain_strength and args.num_channels != 3:
        raise UserError(
            f"stain_strength={args.stain_strength} needs RGB, num_channels is {args.num_channels}; "
            "set it to 0"
        )
    if args.channel_drop_probability and args.num_channels == 1:
        raise UserError(
            f"channel_drop_probability={args.channel_drop_probability} needs several channels, "
            "num_channels is 1; set it to 0"
        )
