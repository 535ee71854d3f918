"""Chooses what a run is judged on where nobody has named images for it: a held-out part of its own
data, or drawn scenes for drawn scenes."""

from pathlib import Path
from typing import Any

from vision_core.arguments import explicit_keys
from vision_core.runs.folder_checks import config_in

BY_DATASET = "auto"  # the default of --eval_dataset, which config.yaml never shows: it holds what was chosen
HELD_OUT = "held_out"


def chosen_evaluation(eval_dataset: str | None, dataset: str, scenes: str) -> str | None:
    """What `auto` means: `scenes` where training images are scenes too, `held_out` for any other
    `dataset`."""
    if eval_dataset != BY_DATASET:
        return eval_dataset
    is_scenes = dataset.partition("?")[0].partition(":")[0] == "scenes"
    return scenes if is_scenes else HELD_OUT


def keep_evaluation_of_resumed_run(args: Any) -> None:
    """Let a resumed run whose command names no --eval_dataset keep that of its config.yaml, and with
    it the images that it trains on.

    Earlier versions judged every run on drawn scenes and held nothing out. Raises UserError for a
    config.yaml that is damaged.
    """
    resume = str(args.resume_from_checkpoint).lower()
    if resume in ("none", "false") or "eval_dataset" in explicit_keys(type(args)):
        return
    folder = args.output_dir or "outputs"
    if resume not in ("true", "auto"):
        folder = Path(args.resume_from_checkpoint).parent
    config = config_in(Path(folder))
    if "eval_dataset" in config:
        args.eval_dataset = config["eval_dataset"]
