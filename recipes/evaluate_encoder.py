"""k-NN of a frozen encoder on labelled images, beside the same architecture untrained, raw pixels and colour histogram.

python recipes/evaluate_encoder.py --encoder FOLDER --bank_dataset "parquet:train*.parquet" --query_dataset "parquet:test*.parquet"
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import copy
import json
from dataclasses import asdict, dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from encoders.evaluation.knn_benchmark import KnnBenchmark
from encoders.preprocess import PUBLISHED_MARGIN
from vision_core.arguments import option, parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.images.sources import ImageSource, open_source
from vision_core.randomness import seed_of

UNDERSTOOD = ("dinov2", "dinov2_with_registers")


@dataclass
class EvaluateArguments:
    """What is judged, on which images."""

    encoder: str = option("", "folder or hub name of a Dinov2 or Dinov2WithRegisters checkpoint", "encoder")
    image_size: int | None = option(None, "side at which images are judged; default: the processor's crop", "encoder")
    bank_dataset: str = option("scenes?size=64", "labelled images, the bank", "data")
    query_dataset: str = option(
        "scenes?size=64&split=held_out&count=2000", "labelled images, the queries; the same text as the bank's gives disjoint draws", "data"
    )
    num_bank: int = option(10000, "images drawn for the bank", "data")
    num_queries: int = option(2000, "images drawn as queries", "data")
    k: int = option(20, "neighbours", "data")
    seed: int = option(0, "seed of the draws and of the untrained encoder", "data")
    output: str | None = option(None, "JSON file to write", "data")


def main() -> None:
    """Load, draw, judge, print."""
    args = parse_arguments(EvaluateArguments, description=__doc__)
    check_arguments(args)
    model, processor = load(args.encoder)
    size, margin = view_of(processor, args.image_size, model.config.patch_size)
    bank = open_labelled(args.bank_dataset, model.config.num_channels)
    queries = bank if args.query_dataset == args.bank_dataset else open_labelled(args.query_dataset, model.config.num_channels)
    benchmark = KnnBenchmark(
        bank,
        queries,
        bank_size=args.num_bank,
        num_queries=args.num_queries,
        size=size,
        mean=processor.image_mean,
        std=processor.image_std,
        margin=margin,
        k=args.k,
        seed=args.seed,
        progress=True,
    )
    results = {f"encoder, {name}": value for name, value in benchmark.evaluate(model).items()}
    results |= {f"untrained, {name}": value for name, value in benchmark.evaluate(untrained(model, args.seed)).items()}
    results |= benchmark.evaluate_baselines()
    print(f"{args.encoder}, {size[0]} x {size[1]} pixels, {benchmark.description}")
    for name, value in results.items():
        print(f"  {name:<24}{value:5.1f} %")
    if args.output:
        report = {"arguments": asdict(args), "image_size": size, "sizes": benchmark.sizes, "accuracy": results}
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n")


def check_arguments(args: EvaluateArguments) -> None:
    """Raise `UserError` for what cannot work, before anything is loaded."""
    if not args.encoder:
        raise UserError("--encoder is missing: give the folder of a run, or a hub name such as facebook/dinov2-small")
    for name in ("num_bank", "num_queries", "k"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} is not possible; give 1 or more")
    if args.output and not Path(args.output).absolute().parent.is_dir():
        raise UserError(f"--output {args.output}: its folder does not exist; make it first")


def load(encoder: str) -> tuple[nn.Module, object]:
    """Model, in float32 and on the accelerator where there is one, and image processor of a checkpoint."""
    try:
        config = AutoConfig.from_pretrained(encoder, trust_remote_code=False)
        if config.model_type not in UNDERSTOOD:
            raise UserError(f"--encoder {encoder} is a {config.model_type}; {' and '.join(UNDERSTOOD)} are understood")
        model, report = AutoModel.from_pretrained(
            encoder, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        if report["missing_keys"]:
            raise UserError(f"--encoder {encoder} lacks weights, such as {min(report['missing_keys'])}; give a whole checkpoint")
        processor = AutoImageProcessor.from_pretrained(encoder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # a broken checkpoint raises whatever its reader does
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"--encoder {encoder} cannot be loaded ({reason}); give a folder with config, weights and image processor"
        ) from None
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def view_of(processor, image_size: int | None, patch_size: int) -> tuple[tuple[int, int], float]:
    """(height, width) at which images are judged, and how much larger they are made before the centre crop."""
    crop, edge = getattr(processor, "crop_size", None), processor.size.get("shortest_edge")
    if image_size is not None:
        size = (image_size, image_size)
    elif crop:
        size = (crop["height"], crop["width"])
    else:
        raise UserError("the encoder's image processor has no centre crop; give --image_size")
    for side in size:
        if side < patch_size or side % patch_size:
            near = max(round(side / patch_size), 1) * patch_size
            raise UserError(f"an image size of {side} is no multiple of the patch size {patch_size}; give --image_size {near}")
    return size, edge / min(crop["height"], crop["width"]) if crop and edge else PUBLISHED_MARGIN


def open_labelled(text: str, num_channels: int) -> ImageSource:
    """A source with an index."""
    source = open_source(text, num_channels)
    if not isinstance(source, ImageSource):
        raise UserError(f"{text} is a stream; k-NN draws from a source with an index: leave out streaming=true")
    return source


def untrained(model: nn.Module, seed: int) -> nn.Module:
    """The same architecture with transformers' own initialisation and LayerScale 1."""
    config = copy.deepcopy(model.config)
    config.layerscale_value = 1.0
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, "untrained"))
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False).to(model.device)


if __name__ == "__main__":
    run_script(main)
