"""k-NN of a frozen encoder on labelled images, beside the same architecture untrained, raw pixels and colour histogram.

python recipes/evaluate_encoder.py --encoder FOLDER --bank_dataset "parquet:train*.parquet" --query_dataset "parquet:test*.parquet"
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import copy
import json
from dataclasses import dataclass

import torch
from transformers import AutoImageProcessor, AutoModel

from encoders.evaluation.knn_benchmark import KnnBenchmark
from vision_core.arguments import option, parse_arguments
from vision_core.errors import UserError, run_script
from vision_core.images.sources import ImageSource, open_source
from vision_core.randomness import seed_of


@dataclass
class EvaluateArguments:
    """What is judged, on which images."""

    encoder: str = option("", "folder or hub name of a Dinov2 or Dinov2WithRegisters checkpoint", "encoder")
    image_size: int | None = option(None, "side at which images are judged; default: the processor's crop", "encoder")
    bank_dataset: str = option("scenes?size=64", "labelled images, the bank", "data")
    query_dataset: str = option("scenes?size=64&split=held_out&count=2000", "labelled images, the queries", "data")
    num_bank: int = option(10000, "images drawn for the bank", "data")
    num_queries: int = option(2000, "images drawn as queries", "data")
    k: int = option(20, "neighbours", "data")
    seed: int = option(0, "seed of the draws and of the untrained encoder", "data")
    output: str | None = option(None, "JSON file to write", "data")


def main() -> None:
    """Load, draw, judge, print."""
    args = parse_arguments(EvaluateArguments, description=__doc__)
    if not args.encoder:
        raise UserError("--encoder is missing: give the folder of a run, or a hub name such as facebook/dinov2-small")
    model, processor = load(args.encoder)
    side = args.image_size or processor.crop_size["height"]
    size = (side, side if args.image_size else processor.crop_size["width"])
    benchmark = KnnBenchmark(
        open_labelled(args.bank_dataset),
        open_labelled(args.query_dataset),
        bank_size=args.num_bank,
        num_queries=args.num_queries,
        size=size,
        mean=processor.image_mean,
        std=processor.image_std,
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
        Path(args.output).write_text(json.dumps({"benchmark": benchmark.description, "accuracy": results}, indent=1))


def load(encoder: str):
    """Model and image processor of a checkpoint."""
    try:
        model = AutoModel.from_pretrained(encoder, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(encoder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--encoder {encoder} cannot be loaded: {str(error).splitlines()[0]}") from None
    if model.config.model_type not in ("dinov2", "dinov2_with_registers"):
        raise UserError(f"--encoder {encoder} is a {model.config.model_type}; dinov2 and dinov2_with_registers are understood")
    return model, processor


def open_labelled(text: str) -> ImageSource:
    """A source with an index."""
    source = open_source(text)
    if not isinstance(source, ImageSource):
        raise UserError(f"{text} is a stream; k-NN draws from a source with an index: leave out streaming=true")
    return source


def untrained(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The same architecture with transformers' own initialisation and LayerScale 1."""
    torch.manual_seed(seed_of(seed, "untrained"))
    config = copy.deepcopy(model.config)
    config.layerscale_value = 1.0
    return AutoModel.from_config(config, trust_remote_code=False)


if __name__ == "__main__":
    run_script(main)
