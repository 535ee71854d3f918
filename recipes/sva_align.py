"""First stage: the connector, and the layers in the language model that look into the encoders
again, learn to be read; all else is frozen.

deepspeed recipes/sva_align.py --init_from vlm --conversations "llava:blip_558k.json?images=images"
--deepspeed recipes/zero/zero2.json
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from functools import partial

from recipes.vlm_args import AlignArguments, check_stage
from vision_core.processes.launchers import launchers_above
from vision_core.start import look_first

LAUNCHERS = launchers_above()  # now: one that dies during the imports must not leave an orphan that trains on

if __name__ == "__main__":
    look_first(AlignArguments, __doc__, partial(check_stage, "align"))

from fusion import FusionVlmForConditionalGeneration
from fusion.lora import trained_modules
from fusion.training.trainer import SAMPLER, Plan
from recipes.vlm_training import train
from vision_core.arguments import parse_arguments
from vision_core.errors import run_script


def plan(args: AlignArguments, model: FusionVlmForConditionalGeneration) -> Plan:
    """Connector and vision layers train, encoders and language model do not."""
    model.requires_grad_(False)
    for name in trained_modules(model):
        model.get_submodule(name).requires_grad_(True)
    return Plan(
        model,
        args.learning_rate,
        [] if args.sampler_learning_rate is None else [(SAMPLER, args.sampler_learning_rate)],
    )


def main() -> None:
    """Read the options, train."""
    args = parse_arguments(AlignArguments, description=__doc__)
    train("align", args, partial(plan, args), LAUNCHERS)


if __name__ == "__main__":
    run_script(main)
