"""The sentences of a stage's card. What the cards of real runs say is in
tests/recipes/test_cards_of_programs.py."""

from types import SimpleNamespace

import pytest

from fusion.training.card import last_losses, what_trained
from fusion.training.plan import StagePlan


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (StagePlan(1e-3, "frozen"), "encoders and language model were frozen"),
        (StagePlan(1e-3, "lora", lora_rank=4), "by LoRA of rank 4 the language model"),
        (StagePlan(1e-3, "trained", encoder_learning_rate=1e-5), "Encoders, connector and language model"),
        (StagePlan(1e-3, "trained"), "Connector and language model were trained to answer"),
    ],
)
def test_it_says_what_trained(plan, said):
    assert said in what_trained(plan)


def test_the_last_losses_are_shown_where_there_are_some():
    log = [{"loss": 2.0}, {"eval_loss": 1.5}, {"loss": 1.25}, {"train_runtime": 3.0}]
    state = SimpleNamespace(log_history=log)
    rows = last_losses(state, ["scenes?count=2"])
    assert [row["value"] for row in rows] == ["1.2500", "1.5000"]
    assert "scenes?count=2" in rows[1]["figure"]
    assert last_losses(SimpleNamespace(log_history=[]), []) == []
