"""The options of dinov2.py: defaults, recipes, and one line for what is not possible."""

from pathlib import Path

import pytest

from pretrain.run.args import DINOv2Arguments, check_arguments
from pretrain.run.build import build_schedules
from vision_core.arguments import parse_arguments
from vision_core.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def test_the_two_core_recipe_is_the_default_job():
    named = parse_arguments(DINOv2Arguments, [str(ROOT / "pretrain" / "configs" / "scenes_2_cores.yaml")])
    assert named == DINOv2Arguments(name="scenes")


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "pretrain" / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_parses_and_is_possible(recipe):
    check_arguments(parse_arguments(DINOv2Arguments, [str(recipe)]))
    assert recipe.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 0), (2, 0), (9, 0), (100, 10), (500, 50), (920, 50), (625_000, 50)]
)
def test_an_unset_warm_up_fits(steps, warmup):
    args = DINOv2Arguments(max_steps=steps)
    check_arguments(args)
    assert args.warmup_steps == warmup and len(build_schedules(args, 64)["learning_rate"]) == steps


@pytest.mark.parametrize("name", ["warmup_steps", "warmup_teacher_temp_steps", "freeze_last_layer_steps"])
def test_a_beginning_that_was_given_and_does_not_end_is_refused(name):
    with pytest.raises(UserError, match=rf"{name}=2 is not below max_steps=2; .*--{name} 0"):
        check_arguments(DINOv2Arguments(max_steps=2, **{name: 2}))
    check_arguments(DINOv2Arguments(max_steps=3, **{name: 2}))


def test_all_that_does_not_end_is_said_at_once():
    args = DINOv2Arguments(
        max_steps=2, warmup_steps=100, warmup_teacher_temp_steps=30, freeze_last_layer_steps=12
    )
    with pytest.raises(UserError) as refused:
        check_arguments(args)
    assert "add --warmup_steps 0 --warmup_teacher_temp_steps 0 --freeze_last_layer_steps 0" in str(
        refused.value
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"stain_strength": 0.1, "num_channels": 4, "image_mean": [0.0] * 4, "image_std": [1.0] * 4},
            "stain_strength=0.1 needs RGB",
        ),
        (
            {"channel_drop_probability": 0.1, "num_channels": 1, "image_mean": [0.0], "image_std": [1.0]},
            "needs several channels",
        ),
        ({"vertical_flip_probability": 1.5}, "vertical_flip_probability=1.5: it must lie between 0 and 1"),
        ({"solarize_probability": -1.0}, "solarize_probability=-1.0: it must lie between 0 and 1"),
        ({"band_jitter_strength": -1.0}, "band_jitter_strength=-1.0: it must not be below 0"),
    ],
)
def test_options_that_are_not_possible_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        check_arguments(DINOv2Arguments(**options))
