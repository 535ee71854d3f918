"""What a run would be, without training: whether it could start, shapes, parameters, memory."""

from dataclasses import replace

from torch.utils.data import DataLoader

from pretrain.dinov2_args import PROGRAM, DINOv2Arguments, backbone_shape, config_of
from pretrain.dinov2_build import (
    build_benchmark,
    build_loader,
    build_method,
    build_optimizer,
    build_schedules,
    data_facts,
    evaluation_size,
    load_weights,
)
from pretrain.health import draw_probes
from pretrain.self_distillation import SelfDistillation
from pretrain.training_data import BatchLayout
from pretrain.training_state import resume_from
from vision_core.arguments import arguments_to_yaml
from vision_core.data_facts import tell_changed_data
from vision_core.distributed import is_main_process
from vision_core.folder_checks import look_ahead
from vision_core.images.pixel_options import pixel_options_text
from vision_core.images.ranges import range_notes
from vision_core.images.sources import ImageSource, ImageStream
from vision_core.printable import say

# Bytes per parameter: student, gradient, two AdamW moments, teacher, all float32.
BYTES_PER_PARAMETER = 20
# Floats kept per token and layer for the backward pass, in units of the width: norms, q k v, attention, MLP of ratio 4.
ACTIVATIONS_PER_WIDTH = 20


def dry_run(args: DINOv2Arguments, source: ImageSource | ImageStream, layout: BatchLayout) -> None:
    """Look at everything as a run would, and print what it would be. Raises UserError where the run would."""
    method = build_method(args)
    rehearse(args, source, layout, method)
    if is_main_process():
        say(describe_run(args, source, layout, method, build_loader(args, source, layout, 0)))


def rehearse(args: DINOv2Arguments, source: ImageSource | ImageStream, layout: BatchLayout, method: SelfDistillation) -> None:
    """Everything that a run does before its first step, but for its folder. Raises UserError where the run would."""
    config = config_of(replace(args, dry_run=False))
    checkpoint, changes = look_ahead(args.output_dir, args.name, config, args.resume_from_checkpoint, PROGRAM)
    optimizer = build_optimizer(args, method)
    build_schedules(args, layout.global_batch)
    state = None
    if checkpoint:
        state = resume_from(checkpoint, args.init_from, args.max_steps, method, optimizer, changes)
    elif args.init_from:
        load_weights(method, args.init_from)
    benchmark = build_benchmark(args, source, is_main_process())
    if state and is_main_process():
        for line in tell_changed_data(str(checkpoint), state.get("data"), data_facts(source, benchmark), args.changed_data):
            say(line)
    draw_probes(source, evaluation_size(args), args.seed)


def describe_run(
    args: DINOv2Arguments, source: ImageSource | ImageStream, layout: BatchLayout, method: SelfDistillation, loader: DataLoader
) -> str:
    """The resolved options, the shapes of one drawn batch, parameter counts, and an estimate of memory per process."""
    notes = range_notes(source, args.num_channels, args.image_mean, args.image_std)
    reading = pixel_options_text(source.pixel_options)
    batch = next(iter(loader))
    shapes = [f"  {name:<14}{list(batch[name].shape)}" for name in ("global_crops", "local_crops", "masks") if batch[name] is not None]
    parts = {name: sum(value.numel() for value in part.parameters()) for name, part in method.student.items()}
    counts = [f"  {name:<14}{count / 1e6:.2f} M parameters" for name, count in parts.items()]
    states, activations = memory_estimate(args, batch, sum(parts.values()))
    return "\n".join(
        [
            "dry run: nothing is trained, nothing is written",
            arguments_to_yaml(args).rstrip(),
            "",
            f"images: {source.description}",
            *(f"note: {note}" for note in notes),
            *([f"pixels: read with {reading}"] if reading else []),
            f"global batch: {layout.global_batch} images, {layout.per_device} x {layout.micro_batches} micro-batches x {layout.processes} processes",
            "one batch of this process:",
            *shapes,
            f"  masked patches {len(batch['mask_indices'])}",
            "student (the teacher is its copy):",
            *counts,
            f"memory, estimated: {states:.2f} GiB of weights and optimizer, about {activations:.2f} GiB of activations",
        ]
    )


def memory_estimate(args: DINOv2Arguments, batch: dict, num_parameters: int) -> tuple[float, float]:
    """GiB of states, and of activations: the student's layers and three copies of the prototype logits."""
    width, layers, _ = backbone_shape(args)
    crops = [batch[name] for name in ("global_crops", "local_crops") if batch[name] is not None]
    tokens = sum(len(part) * (part.shape[2] * part.shape[3] // args.patch_size**2 + 1 + args.num_register_tokens) for part in crops)
    kept_layers = 1 if args.gradient_checkpointing else layers
    rows = sum(len(part) for part in crops) + len(batch["mask_indices"]) + len(batch["global_crops"])
    bytes_per_value = 4 if args.mixed_precision == "no" else 2
    activations = tokens * width * ACTIVATIONS_PER_WIDTH * kept_layers * bytes_per_value + 3 * rows * args.num_prototypes * 4
    return num_parameters * BYTES_PER_PARAMETER / 2**30, activations / 2**30
