"""Second stage, supervised fine-tuning: language model and connector learn to answer; encoders are
frozen, or train at a rate of their own.

    deepspeed recipes/sva_sft.py --init_from align --conversations llava:mine.jsonl --deepspeed recipes/zero/zero2.json

The stage itself, from joining the processes to the published model, is fusion/training/stage.py.
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from recipes.vlm_args import (
    SftArguments,
    card_settings,
    check_stage,
    complete_zero_config,
    program_of,
    trainer_options,
)
from vision_core.start import look_first

if __name__ == "__main__":
    look_first(SftArguments, __doc__, partial(check_stage, "sft"))

from fusion.training.options import DataOptions, MemoryOptions, Stage
from fusion.training.plan import StagePlan
from fusion.training.stage import train_stage
from vision_core.arguments import parse_arguments
from vision_core.errors import run_script
from vision_core.trainer.options import config_of

PUBLISHED_RATE = 4e-5  # of Cambrian-1-8B's script
STAND_IN_RATE = 1e-3  # without --init_from the language model has everything to learn


def plan_of(args: SftArguments) -> StagePlan:
    """The language model trains, with all its weights or by LoRA."""
    rate = args.learning_rate
    if rate is None:
        rate = PUBLISHED_RATE if args.init_from else STAND_IN_RATE
    return StagePlan(
        learning_rate=rate,
        language_model="lora" if args.lora_rank else "trained",
        lora_rank=args.lora_rank,
        sampler_learning_rate=args.sampler_learning_rate,
        encoder_learning_rate=args.encoder_learning_rate,
    )


def main() -> None:
    """Read the options, build the stage's values from them, train."""
    args = parse_arguments(SftArguments, description=__doc__)
    check_stage("sft", args)
    plan = plan_of(args)
    train_stage(
        stage=Stage("sft", program_of("sft"), config_of(args), card_settings(args, plan.learning_rate)),
        init_from=args.init_from,
        plan=plan,
        data=DataOptions(
            conversations=args.conversations,
            held_out=args.eval_conversations,
            max_length=args.max_length,
            packing=args.packing,
            group_by_length=args.group_by_length,
            feature_cache=args.feature_cache,
            feature_cache_dtype=args.feature_cache_dtype,
        ),
        memory=MemoryOptions(args.activation_checkpointing, complete_zero_config(args)),
        training=trainer_options(args),
    )


if __name__ == "__main__":
    run_script(main)
