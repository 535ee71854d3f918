"""The options of both stages: what contradicts itself is refused, and what is handed on."""

import pytest

from recipes.vlm_args import AlignArguments, SftArguments, card_settings, trainer_options
from vision_core.errors import UserError
from vision_core.trainer.options import TrainerOptions

STREAM = "hf:rows?split=train&streaming=true"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"conversations": []}, "--conversations is empty"),
        ({"fp16": True, "deepspeed": "zero2.json"}, "--fp16 is not possible with --deepspeed"),
        ({"encoder_learning_rate": 1e-5, "lora_rank": 4}, "--lora_rank, under which encoders are frozen"),
        ({"encoder_learning_rate": 1e-5, "feature_cache": "cache"}, "--feature_cache, which is of frozen"),
        ({"eval_conversations": [STREAM]}, "leave out streaming=true"),
        ({"conversations": [STREAM]}, "say by --max_steps how long to train"),
        ({"conversations": [STREAM], "max_steps": 5, "group_by_length": True}, "--group_by_length needs"),
        ({"conversations": [STREAM], "max_steps": 5, "feature_cache": "cache"}, "--feature_cache needs"),
    ],
)
def test_what_contradicts_itself_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        SftArguments(**options)


def test_held_out_scenes_are_for_those_who_learn_from_scenes():
    assert AlignArguments().eval_conversations == ["scenes?count=200&split=held_out"]
    assert AlignArguments(conversations=["llava:mine.jsonl"]).eval_conversations == []


def test_the_trainer_gets_its_own_options_and_no_others():
    options = trainer_options(SftArguments(max_steps=7, output_dir="run", lora_rank=4))
    assert type(options) is TrainerOptions
    assert (options.max_steps, options.output_dir) == (7, "run")


def test_a_card_shows_what_ran():
    shown = card_settings(SftArguments(lora_rank=4), learning_rate=4e-5)
    assert shown["learning_rate"] == 4e-5 and shown["lora_rank"] == 4
    assert "init_from" not in shown and "conversations" not in shown
