import math
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from pretrain.losses.sigmoid import sigmoid_loss

PAIRS, WIDTH = 8, 5


def loop(images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> float:
    """The docstring's, on Python's numbers."""
    loss, scale, bias = 0.0, math.exp(logit_scale.item()), logit_bias.item()
    for i, image in enumerate(images.tolist()):
        for j, text in enumerate(texts.tolist()):
            sign = 1 if i == j else -1
            logit = scale * sum(a * b for a, b in zip(image, text, strict=True)) + bias
            loss += math.log1p(math.exp(-sign * logit)) / len(images)
    return loss


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(PAIRS, 3, generator=generator, dtype=torch.float64) for _ in range(2)]


def towers() -> list[Tensor]:
    """Two matrices, temperature and bias: what trains."""
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(3, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2)]
    numbers = [torch.tensor([value], dtype=torch.float64) for value in (math.log(10), -2.0)]
    return [each.requires_grad_() for each in (*matrices, *numbers)]


def loss_of(images: Tensor, texts: Tensor, parameters: list[Tensor]) -> Tensor:
    of_images, of_texts, scale, bias = parameters
    return sigmoid_loss(normalize(images @ of_images, dim=1), normalize(texts @ of_texts, dim=1), scale, bias)


def test_it_is_the_formula():
    images, texts = (
        normalize(each @ matrix, dim=1) for each, matrix in zip(inputs(), towers(), strict=False)
    )
    for scale, bias in ((math.log(10), -10.0), (0.3, 1.5)):
        scale, bias = torch.tensor([scale]).double(), torch.tensor([bias]).double()
        assert math.isclose(
            sigmoid_loss(images, texts, scale, bias).item(), loop(images, texts, scale, bias), rel_tol=1e-12
        )


def test_the_published_start_says_no_to_every_pair():
    """Temperature 10 and bias -10: the loss of vectors that know nothing is that of the pairs that
    match, 10 each, and of none else."""
    images, texts = torch.eye(4, 8), torch.eye(4, 8).roll(4, dims=1)
    assert math.isclose(
        sigmoid_loss(images, texts, torch.tensor([math.log(10)]), torch.tensor([-10.0])).item(),
        10.0,
        abs_tol=1e-3,
    )


def test_logits_are_whole_under_autocast():
    images, texts = (
        normalize(each @ matrix, dim=1).float() for each, matrix in zip(inputs(), towers(), strict=False)
    )
    scale, bias = torch.tensor([math.log(10)]), torch.tensor([-10.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = sigmoid_loss(images, texts, scale, bias)
    assert torch.equal(half, sigmoid_loss(images, texts, scale, bias))


def check_on_one_of_two_processes() -> None:
    dist.init_process_group("gloo")
    half = slice(PAIRS // 2 * dist.get_rank(), PAIRS // 2 * (dist.get_rank() + 1))
    images, texts = inputs()
    parameters, expected_parameters = towers(), towers()
    loss = loss_of(images[half], texts[half], parameters)
    loss.backward()
    averaged = [each.grad.clone() for each in parameters] + [loss.detach().clone()]
    for each in averaged:  # what data parallel does with gradients, and the Trainer with losses
        dist.all_reduce(each)
        each /= 2
    dist.destroy_process_group()
    expected = loss_of(images, texts, expected_parameters)
    expected.backward()
    assert not torch.allclose(loss, expected, rtol=1e-3)
    for ours, theirs in zip(averaged, [*(each.grad for each in expected_parameters), expected], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_two_processes_equal_one(runs):
    runs.finish(*runs.start_two(Path(__file__)))


def test_a_gradient_that_stays_on_its_process_would_be_noticed(monkeypatch):
    """With the other process's texts as numbers the loss is the same and the texts' matrix learns
    from half of its pairs."""
    (images, texts), whole, parts = inputs(), towers(), towers()
    loss_of(images, texts, whole).backward()
    others = normalize(texts @ parts[1], dim=1).detach().split(PAIRS // 2)
    losses = []
    for process in range(2):
        half = slice(PAIRS // 2 * process, PAIRS // 2 * (process + 1))
        monkeypatch.setattr("pretrain.losses.sigmoid.rank", lambda process=process: process)

        def gathered(own, process=process):
            return torch.cat([own, others[1]] if process == 0 else [others[0], own])

        monkeypatch.setattr("pretrain.losses.sigmoid.gather_rows", gathered)
        losses.append(loss_of(images[half], texts[half], parts))
        losses[-1].backward()
    monkeypatch.undo()
    torch.testing.assert_close(sum(losses) / 2, loss_of(images, texts, whole), rtol=1e-10, atol=0)
    torch.testing.assert_close(parts[0].grad / 2, whole[0].grad, rtol=1e-10, atol=1e-12)
    assert (whole[1].grad - parts[1].grad / 2).norm() > 1e-3 * whole[1].grad.norm()


if __name__ == "__main__":
    check_on_one_of_two_processes()
