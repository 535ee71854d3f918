"""What a plan makes train in a fused model, and at which rates."""

import pytest
import torch

from fusion.training.plan import StagePlan, apply_plan


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def starts(names, *beginnings):
    return {name for name in names if name.startswith(beginnings)}


@pytest.fixture
def model(small_defaults, load_small):
    return load_small(small_defaults[2])[0]


NEW = ("vision_model.connector.", "vision_sampler_layers.")


def test_alignment_trains_what_is_new(model):
    trained = trained_names(apply_plan(model, StagePlan(1e-3, "frozen"), seed=0))
    names = [name for name, _ in model.named_parameters()]
    assert trained == starts(names, *NEW)
    assert all(starts(trained, beginning) for beginning in NEW)


@pytest.mark.parametrize("rate", [None, 1e-5])
def test_encoders_train_where_they_have_a_rate(model, rate):
    trained = trained_names(apply_plan(model, StagePlan(1e-3, "trained", encoder_learning_rate=rate), seed=0))
    everything = {name for name, _ in model.named_parameters()}
    of_encoders = starts(everything, "vision_model.encoders.")
    assert trained >= everything - of_encoders
    assert bool(trained & of_encoders) == (rate is not None)


def test_lora_trains_matrices_of_the_language_model_and_what_is_new_whole(model):
    plan = StagePlan(1e-3, "lora", lora_rank=2)
    torch.manual_seed(7)  # which must not matter
    names = trained_names(apply_plan(model, plan, seed=3))
    assert names and all("lora_" in name or "modules_to_save" in name for name in names)
    assert not any("encoders" in name for name in names)
    of_language_model = [name for name in names if "lora_" in name]
    assert of_language_model and all("language_model" in name for name in of_language_model)


def test_loras_matrices_are_a_function_of_the_seed(small_defaults, load_small):
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(drawn))
        model, _ = load_small(small_defaults[2])
        planned = apply_plan(model, StagePlan(1e-3, "lora", lora_rank=2), seed)
        first = next(each for name, each in planned.named_parameters() if "lora_A" in name)
        drawn.append(first.detach().clone())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_the_first_pattern_in_a_name_decides():
    plan = StagePlan(1e-3, "trained", sampler_learning_rate=1e-4, encoder_learning_rate=1e-5)
    (encoder, of_encoders), (sampler, of_samplers) = plan.own_rates()
    assert (of_encoders, of_samplers) == (1e-5, 1e-4)
    assert encoder.search("vision_model.encoders.0.model.weight")
    assert sampler.search("vision_model.connector.vision_query") and sampler.search(
        "vision_sampler_layers.1.x"
    )
    assert not sampler.search("language_model.model.embed_tokens.weight")
    assert StagePlan(1e-3, "frozen").own_rates() == []
