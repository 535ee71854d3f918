"""Draws for the tests of losses, and the cross-entropy in plain floats."""

import math

import torch


def probabilities(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def logits(*shape, seed=1):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cross_entropy(teacher, student, temp=0.1):
    """-sum_k t_k log softmax(s / temp)_k in plain floats."""
    scaled = [value / temp for value in student.tolist()]
    top = max(scaled)
    log_sum = top + math.log(sum(math.exp(value - top) for value in scaled))
    return -sum(t * (s - log_sum) for t, s in zip(teacher.tolist(), scaled, strict=True))
