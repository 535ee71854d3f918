"""First stage, alignment: the connector and the cross-attention layers in the language model train;
encoders and language model are frozen.

    deepspeed recipes/sva_align.py --init_from vlm --conversations llava:mine.jsonl --deepspeed recipes/zero/zero2.json

The stage itself, from joining the processes to the published model, is fusion/training/stage.py.
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from recipes.vlm_args import (
    AlignArguments,
    card_settings,
    check_stage,
    complete_zero_config,
    program_of,
    trainer_options,
)
from vision_core.start import look_first

if __name__ == "__main__":
    look_first(AlignArguments, __doc__, partial(check_stage, "align"))

from fusion.training.options import DataOptions, MemoryOptions, Stage
from fusion.training.plan import StagePlan
from fusion.training.stage import train_stage
from vision_core.arguments import parse_arguments
from vision_core.errors import run_script
from vision_core.trainer.options import config_of


def main() -> None:
    """Read the options, build the stage's values from them, train."""
    args = parse_arguments(AlignArguments, description=__doc__)
    check_stage("align", args)
    train_stage(
        stage=Stage("align", program_of("align"), config_of(args), card_settings(args, args.learning_rate)),
        init_from=args.init_from,
        plan=StagePlan(
            learning_rate=args.learning_rate,
            language_model="frozen",
            sampler_learning_rate=args.sampler_learning_rate,
        ),
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
