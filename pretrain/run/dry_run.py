"""Says what a run would be, without training: shapes, parameters, memory."""

from torch import Tensor

from pretrain.backbone import Backbone, num_register_tokens
from pretrain.batches.order import BatchLayout
from pretrain.self_distillation import SelfDistillation
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.source import ImageSource, ImageStream

# Student, gradient, two AdamW moments and teacher, all float32.
BYTES_PER_PARAMETER = 20
# Floats that the backward pass needs of each token and layer, in units of the width: norms, q k v,
# attention, MLP of ratio 4.
ACTIVATIONS_PER_WIDTH = 20
GIB = 2**30
CROPS = ("global_crops", "local_crops")


def describe_run(
    options: str,
    source: ImageSource | ImageStream,
    layout: BatchLayout,
    method: SelfDistillation,
    *,
    notes: list[str],
    batch: dict,
    is_half_precision: bool,
) -> str:
    """The resolved options, the shapes of one drawn batch, parameter counts, and an estimate of
    memory per process.

    options: as YAML. notes: about the images' values.
    """
    parameters = parameter_counts(method)
    states = sum(parameters.values()) * BYTES_PER_PARAMETER / GIB
    activations = activation_bytes(method, batch, is_half_precision) / GIB
    reading = pixel_options_text(source.pixel_options)
    lines = ["dry run: nothing is trained, nothing is written", options.rstrip(), ""]
    lines.append(f"images: {source.description}")
    lines += [f"note: {note}" for note in notes]
    if reading:
        lines.append(f"pixels: read with {reading}")
    lines += [
        f"global batch: {layout.global_batch} images, {layout.per_device} x "
        f"{layout.micro_batches} micro-batches x {layout.processes} processes",
        "one batch of this process:",
        *shape_lines(batch),
        "student (the teacher is its copy):",
        *(f"  {name:<14}{count / 1e6:.2f} M parameters" for name, count in parameters.items()),
        f"memory, estimated: {states:.2f} GiB of weights and optimizer, "
        f"about {activations:.2f} GiB of activations",
    ]
    return "\n".join(lines)


def parameter_counts(method: SelfDistillation) -> dict[str, int]:
    """The parameters of the student's backbone and of each head."""
    counts: dict[str, int] = {}
    for name, part in method.student.items():
        counts[name] = sum(value.numel() for value in part.parameters())
    return counts


def shape_lines(batch: dict) -> list[str]:
    """The shapes of crops and masks, and how many patches are masked."""
    lines = []
    for name in (*CROPS, "masks"):
        if batch[name] is not None:
            lines.append(f"  {name:<14}{list(batch[name].shape)}")
    return [*lines, f"  masked patches {len(batch['mask_indices'])}"]


def activation_bytes(method: SelfDistillation, batch: dict, is_half_precision: bool) -> int:
    """Bytes of activations for one batch: the student's layers and three copies of the prototype
    logits."""
    backbone = method.student["backbone"]
    num_layers = 1 if method.recompute else len(backbone.encoder.layer)
    crops = [batch[name] for name in CROPS if batch[name] is not None]
    tokens = sum(len(group) * tokens_of_a_crop(backbone, group) for group in crops)
    rows = sum(len(group) for group in crops) + len(batch["mask_indices"]) + len(batch["global_crops"])
    values = tokens * backbone.config.hidden_size * ACTIVATIONS_PER_WIDTH * num_layers
    logits = 3 * rows * method.student["dino_head"].num_prototypes
    return values * (2 if is_half_precision else 4) + logits * 4


def tokens_of_a_crop(backbone: Backbone, crops: Tensor) -> int:
    """Tokens of each crop `[C, H, W]` of a group: CLS, registers and patches."""
    height, width = crops.shape[2:]
    patches = height * width // backbone.config.patch_size**2
    return patches + 1 + num_register_tokens(backbone)
