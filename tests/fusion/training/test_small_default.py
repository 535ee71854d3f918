"""The small default: what its parts start as, what they learn, and that this is reproducible."""

import pytest
import torch

from encoders.mae_weights import sincos_positions
from fusion.conversations.scene_turns import SCENE_WORDS
from fusion.training.small_default import GRID, small_encoders
from fusion.training.stand_ins import tokens_of_words


@pytest.mark.parametrize("number", [0, 1])
def test_positions_stand_in_the_encoders(number):
    (positions,) = (
        each for name, each in small_encoders(0)[number].named_parameters() if "position_embedding" in name
    )
    torch.testing.assert_close(
        positions.view(-1, positions.shape[-1])[-GRID * GRID :].data,
        sincos_positions(GRID * GRID, positions.shape[-1])[0, 1:],
    )


def test_learning_is_reproducible_and_leaves_no_part_as_it_was(small_defaults, load_small):
    """The same weights whatever was drawn before. What no lesson is about stays: newlines, layers
    that look again, and what is not used for patches."""
    one, two, none = (load_small(folder)[0] for folder in small_defaults)
    states = [dict(model.named_parameters()) for model in (one, two)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    untaught = dict(none.named_parameters())
    same = {
        name
        for name, value in states[0].items()
        if value.shape == untaught[name].shape and torch.equal(value, untaught[name])
    }
    assert all(
        name.startswith("vision_sampler_layers.")
        or "newline" in name
        or "head" in name
        or "mask_token" in name
        for name in same
    ), same
    assert any(name.startswith("vision_sampler_layers.") for name in same)
    assert all(encoder.untrained for encoder in none.vision_model.encoders) and not any(
        encoder.untrained for encoder in one.vision_model.encoders
    )


def test_every_word_of_scenes_is_a_token_of_its_own(small_defaults, load_small):
    """Words that share a piece would share a meaning: " backdrop" and column " b"."""
    _, processor = load_small(small_defaults[0])
    tokens = tokens_of_words([(word,) for word in SCENE_WORDS], processor.tokenizer)
    assert {len(each) for each in tokens} == {1} and len({each[0] for each in tokens}) == len(SCENE_WORDS)
