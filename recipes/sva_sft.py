"""Second stage: language model and connector learn to answer; encoders stay frozen, or train at a
rate of their own.

deepspeed recipes/sva_sft.py --init_from outputs/align-1 --conversations
"llava:mix_665k.json?images=images" --deepspeed recipes/zero/zero2.json
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from recipes.vlm_args import SftArguments, check_stage
from vision_core.processes.launchers import launchers_above
from vision_core.start import look_first

LAUNCHERS = launchers_above()  # now: one that dies during the imports must not leave an orphan that trains on

if __name__ == "__main__":
    look_first(SftArguments, __doc__, partial(check_stage, "sft"))

import torch

from fusion import FusionVlmForConditionalGeneration
from fusion.lora import lora_config
from fusion.training.models import FROM_SCRATCH, from_scratch
from fusion.training.trainer import ENCODER, SAMPLER, Plan
from recipes.vlm_training import train
from vision_core.arguments import parse_arguments
from vision_core.errors import run_script
from vision_core.randomness import seed_of

PUBLISHED_RATE, FROM_SCRATCH_RATE = (
    4e-5,
    1e-3,
)  # Cambrian-1-8B's script; a language model that has everything to learn


def plan(args: SftArguments, model: FusionVlmForConditionalGeneration) -> Plan:
    """The language model whole or by LoRA, with everything new; encoders where they have a rate."""
    rate = (
        args.learning_rate
        if args.learning_rate is not None
        else FROM_SCRATCH_RATE
        if from_scratch(model)
        else PUBLISHED_RATE
    )
    rates = [
        (pattern, each)
        for pattern, each in ((ENCODER, args.encoder_learning_rate), (SAMPLER, args.sampler_learning_rate))
        if each is not None
    ]
    model.requires_grad_(True)
    for encoder in model.vision_model.encoders:
        encoder.freeze(args.encoder_learning_rate is None)
    if args.lora_rank:
        return Plan(with_lora(model, args.lora_rank, args.seed), rate, rates)
    setattr(model.config.text_config, FROM_SCRATCH, False)
    return Plan(model, rate, rates)


def with_lora(model: FusionVlmForConditionalGeneration, rank: int, seed: int) -> torch.nn.Module:
    """LoRA in the language model; connector and vision layers train whole."""
    from peft import get_peft_model

    torch.manual_seed(seed_of(seed, "lora"))  # it draws its matrices without being asked
    # its matrices in the dtype of the others: ZeRO-3 has them in bf16 already, and takes no second
    # dtype
    return get_peft_model(model, lora_config(model, rank=rank, alpha=2 * rank), autocast_adapter_dtype=False)


def main() -> None:
    """Read the options, train."""
    args = parse_arguments(SftArguments, description=__doc__)
    train("sft", args, partial(plan, args), LAUNCHERS)


if __name__ == "__main__":
    run_script(main)
