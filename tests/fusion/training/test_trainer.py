"""The Trainer of fused models: groups of parameters by rate and decay, and the order by length."""

from functools import partial

import torch
from transformers import TrainingArguments

from fusion.training.plan import StagePlan, apply_plan
from fusion.training.trainer import GroupedByLength, VlmTrainer
from vision_core.randomness import numpy_generator


def test_every_trained_parameter_has_the_rate_of_its_kind(small_defaults, load_small, tmp_path):
    plan = StagePlan(1e-3, "trained", sampler_learning_rate=1e-4, encoder_learning_rate=1e-5)
    model = apply_plan(load_small(small_defaults[2])[0], plan, seed=0)
    settings = TrainingArguments(
        tmp_path, learning_rate=1e-3, weight_decay=0.1, use_cpu=True, report_to="none"
    )
    trainer = VlmTrainer(model, settings, own_rates=plan.own_rates())
    groups = trainer.create_optimizer().param_groups
    rate_and_decay = {}
    for group in groups:
        for parameter in group["params"]:
            rate_and_decay[id(parameter)] = (group["lr"], group["weight_decay"])
    assert len(rate_and_decay) == sum(parameter.requires_grad for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate, decay = rate_and_decay[id(parameter)]
        assert rate == trainer.rate_of(name)
        expected = 1e-5 if "encoders." in name else 1e-4 if "vision_sampler" in name else None
        assert rate == (expected or (1e-4 if "vision_query" in name else 1e-3)), name
        assert decay == (0.1 if name.endswith("q_proj.weight") else decay)
        assert not name.endswith("bias") or decay == 0.0
    assert {group["lr"] for group in groups} == {1e-3, 1e-4, 1e-5}


def test_an_epoch_has_every_sample_once_and_like_lengths_side_by_side():
    lengths = torch.randint(1, 1000, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    order = GroupedByLength(lengths, 4, partial(numpy_generator, "length groups", 0))
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == sorted(second) == list(range(1003)) and first != second
    spans = []
    for start in range(0, 1000, 4):
        batch = [lengths[sample] for sample in first[start : start + 4]]
        spans.append(max(batch) - min(batch))
    assert sum(spans) / len(spans) < 60  # of random batches it is some 600
    assert list(GroupedByLength(lengths, 4, partial(numpy_generator, "length groups", 0))) == first
