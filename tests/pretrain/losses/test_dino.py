"""DINO's loss against a plain loop written from its formula."""

import math

import pytest
import torch

from pretrain.losses.dino import dino_loss, num_loss_terms
from pretrain.losses.ibot import ibot_loss, masked_token_weights
from tests.pretrain.losses.loops import cross_entropy, logits, probabilities


@pytest.mark.parametrize("skip_same_view", [True, False])
def test_dino_loss_is_its_loop(skip_same_view):
    teacher, student = probabilities(2, 5, 7), logits(2 if skip_same_view else 4, 5, 7)
    expected = 0.0
    for s in range(len(student)):
        for g in range(2):
            if not (skip_same_view and s == g):
                expected += sum(cross_entropy(teacher[g, b], student[s, b]) for b in range(5)) / 5
    assert dino_loss(student, teacher, skip_same_view).item() == pytest.approx(expected, rel=1e-5)


def test_loss_terms_are_the_published_ones():
    assert num_loss_terms(2, 8) == 18
    assert num_loss_terms(2, 0) == 3


@pytest.mark.parametrize("prototypes", [1024])
def test_uniform_outputs_give_the_specs_losses(prototypes):
    """spec 6: local 16/18 ln K, global 2/18 ln K, iBOT ln K / 2 with half of the crops masked."""
    uniform, log_k = torch.full((2, 3, prototypes), 1 / prototypes), math.log(prototypes)
    local = dino_loss(torch.zeros(8, 3, prototypes), uniform, False) / num_loss_terms(2, 8)
    across = dino_loss(torch.zeros(2, 3, prototypes), uniform, True) / num_loss_terms(2, 8)
    assert local.item() == pytest.approx(16 / 18 * log_k, rel=1e-5)
    assert across.item() == pytest.approx(2 / 18 * log_k, rel=1e-5)
    masks = torch.zeros(6, 4, dtype=torch.bool)
    masks[:3, :2] = True
    patches = ibot_loss(torch.zeros(6, prototypes), uniform.flatten(0, 1), masked_token_weights(masks), 6)
    assert patches.item() == pytest.approx(0.5 * log_k, rel=1e-5)
