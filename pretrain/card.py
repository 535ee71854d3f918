"""The model card of a pretraining run."""

from pathlib import Path

from encoders.evaluation.knn_benchmark import KnnBenchmark
from pretrain.dinov2_args import DINOv2Arguments
from vision_core.model_card import write_model_card

# What tells two recipes apart; config.yaml beside the card has every option.
SHOWN_SETTINGS = (
    "backbone", "patch_size", "num_register_tokens", "global_crop_size", "local_crop_size", "num_local_crops", "blur", "mask_count",
    "num_prototypes", "separate_ibot_head", "centering", "ibot_weighting", "koleo_precision", "train_weight_g", "learning_rate",
    "ema_momentum", "drop_path_rate", "mixed_precision", "seed",
)  # fmt: skip


def write_card(path: Path, args: DINOv2Arguments, step: int, data: str, results: dict[str, float], benchmark: KnnBenchmark | None) -> None:
    """README.md of the run's folder after `step` steps; `results` are k-NN accuracies in percent."""
    rows = [{"features": name, "k-NN top-1, %": f"{value:.1f}"} for name, value in results.items()]
    write_model_card(
        path,
        title=f"{args.name}: a DINOv2 vision encoder",
        summary=f"Pretrained without labels by DINOv2 self-distillation (DINO, iBOT, KoLeo) for {step} of {args.max_steps} steps.",
        training_command="accelerate launch pretrain/dinov2.py --config config.yaml",
        data=f"{data}. Source: `{args.dataset}`.",
        results=rows,
        settings={name: getattr(args, name) for name in SHOWN_SETTINGS},
        note="The numbers are k-NN on frozen features" + (f": {benchmark.description}." if benchmark else ", and none was measured."),
        tags=("dinov2", "self-supervised"),
    )
