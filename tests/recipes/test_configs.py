"""The published recipes are read by the scripts, and say what was published."""

from pathlib import Path

import pytest

from recipes.vlm_args import AlignArguments, SftArguments
from vision_core.arguments import parse_arguments

CONFIGS = sorted((Path(__file__).parents[2] / "recipes" / "configs").glob("*.yaml"))
# learning rate, warm-up, conversations per process, ZeRO stage: Cambrian-1's and LLaVA-1.5's
# scripts; Prismatic's paper
PUBLISHED = {
    "cambrian_8b_align": (1e-3, 0.06, 8),
    "cambrian_13b_align": (1e-3, 0.06, 8),
    "cambrian_34b_align": (1e-3, 0.06, 8),
    "cambrian_8b_sft": (4e-5, 0.03, 8),
    "cambrian_13b_sft": (4e-5, 0.03, 8),
    "cambrian_34b_sft": (2e-5, 0.03, 8),
    "llava_1_5_7b_align": (1e-3, 0.03, 32),
    "llava_1_5_7b_sft": (2e-5, 0.03, 16),
    "prismatic_dinosiglip_7b_sft": (2e-5, 0.03, 16),
}
SMALL = {"scenes_2_cores_align", "scenes_2_cores_sft", "flickr8k_2_cores_sft"}


def read(file):
    return parse_arguments(
        AlignArguments if file.stem.endswith("align") else SftArguments, ["--config", str(file)]
    )


def test_all_are_known():
    assert {file.stem for file in CONFIGS} == SMALL | set(PUBLISHED)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_recipe_says_how_it_is_started(file, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert read(file).warmup_steps > 0
    command = next(line for line in file.read_text().splitlines() if line.startswith("# deepspeed"))
    assert f"recipes/configs/{file.name}" in command and f"sva_{file.stem.rpartition('_')[2]}.py" in command


@pytest.mark.parametrize("stage, arguments", [("align", AlignArguments), ("sft", SftArguments)])
def test_the_small_default_written_out_is_the_default(stage, arguments):
    """But for the rate of a language model from scratch, which stands for itself."""
    written, default = (
        vars(each) for each in (read(CONFIGS[0].parent / f"scenes_2_cores_{stage}.yaml"), arguments())
    )
    assert {name for name, value in written.items() if value != default[name]} <= {"learning_rate"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])  # configs name recipes/zero as it is seen from the project
    file = CONFIGS[0].parent / f"{name}.yaml"
    args = read(file)
    assert (args.learning_rate, args.warmup_steps, args.per_device_train_batch_size) == PUBLISHED[file.stem]
    assert args.sampler_learning_rate == (1e-4 if "cambrian" in file.stem and "align" in file.stem else None)
    assert args.lr_scheduler_type == "cosine" and args.max_length == 2048 and args.bf16
    assert args.weight_decay == (0.1 if "prismatic" in file.stem else 0.0)
