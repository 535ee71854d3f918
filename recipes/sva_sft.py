"""Second stage: language model and connector learn to answer; encoders stay frozen, or train at a rate of their own.

deepspeed recipes/sva_sft.py --init_from outputs/align-1 --conversations "llava:mix_665k.json?images=images" --deepspeed recipes/zero/zero2.json
"""

import sys
from functools import partial
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_core.launchers import launchers_above

LAUNCHERS = launchers_above()  # now: one that dies during the imports must not leave an orphan that trains on

import torch
from torch import nn

from fusion import FusionVlmForConditionalGeneration
from fusion.lora import lora_config
from recipes.vlm_args import SftArguments
from recipes.vlm_trainer import ENCODER, SAMPLER
from recipes.vlm_training import train
from vision_core.arguments import parse_arguments
from vision_core.errors import run_script
from vision_core.randomness import seed_of


def with_language_model(args: SftArguments, model: FusionVlmForConditionalGeneration) -> nn.Module:
    """The language model whole or by LoRA, with everything new; encoders where they have a rate."""
    model.requires_grad_(True)
    for encoder in model.vision_model.encoders:
        encoder.freeze(args.encoder_learning_rate is None)
    if not args.lora_rank:
        return model
    from peft import get_peft_model

    torch.manual_seed(seed_of(args.seed, "lora"))  # it draws its matrices without being asked
    return get_peft_model(model, lora_config(model, rank=args.lora_rank, alpha=2 * args.lora_rank))


def main() -> None:
    """Read the options, train."""
    args = parse_arguments(SftArguments, description=__doc__)
    rates = [(ENCODER, args.encoder_learning_rate), (SAMPLER, args.sampler_learning_rate)]
    train("sft", args, partial(with_language_model, args), [(pattern, rate) for pattern, rate in rates if rate is not None], LAUNCHERS)


if __name__ == "__main__":
    run_script(main)
