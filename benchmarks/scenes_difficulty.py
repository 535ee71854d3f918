"""How hard the embedded scenes are: the k-NN accuracy of features that should fail and of a feature
that should not, and the time to draw a scene.

    python benchmarks/scenes_difficulty.py

Raw pixels, colour histograms and untrained convolutions should stay near chance (10 %), a small
convnet trained with labels well above.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from sys import path as import_path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import_path.insert(0, str(Path(__file__).resolve().parents[1]))

from vision_core.scenes.draw import CATEGORIES, draw_scene  # noqa: E402


def main() -> None:
    args = parse_options()
    torch.manual_seed(args.seed)
    start = time.process_time()
    bank, bank_labels = draw_many(args.seed, args.bank, args.size, "train")
    print(f"milliseconds per scene of {args.size} px: {1000 * (time.process_time() - start) / args.bank:.2f}")
    queries, query_labels = draw_many(args.seed, args.queries, args.size, "held_out")

    def print_accuracy(name: str, feature: Callable[[Tensor], Tensor]) -> None:
        accuracy = knn_accuracy(feature(bank), bank_labels, feature(queries), query_labels, args.neighbours)
        print(f"  {name:34s} {accuracy:6.1%}", flush=True)

    network = small_convnet(len(CATEGORIES))
    print(
        f"k-NN accuracy, k = {args.neighbours}, bank {args.bank}, queries {args.queries}, "
        f"chance {1 / len(CATEGORIES):.1%}"
    )
    random_network = random_convolutions()
    print_accuracy("raw pixels", centered_pixels)
    print_accuracy("colour histogram, 8 x 8 x 8", colour_histogram)
    print_accuracy("random convolutions, mean pool", random_network)
    print_accuracy("untrained convnet", in_batches(network[:-1]))
    train(network, bank, bank_labels, args.epochs)
    print_accuracy("supervised convnet, penultimate", in_batches(network[:-1]))
    is_right = in_batches(network)(queries).argmax(1) == query_labels
    print(f"supervised convnet, its own answers: {is_right.float().mean():.1%}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="side of the scenes in pixels (default 64)")
    bank_help = "training scenes: the k-NN bank, and what the convnet learns from (default 4000)"
    parser.add_argument("--bank", type=int, default=4000, help=bank_help)
    queries_help = "held-out scenes that are classified (default 1000)"
    parser.add_argument("--queries", type=int, default=1000, help=queries_help)
    parser.add_argument("--neighbours", type=int, default=20, help="k of k-NN (default 20)")
    epochs_help = "passes of the supervised convnet over the bank (default 8)"
    parser.add_argument("--epochs", type=int, default=8, help=epochs_help)
    seed_help = "seed of the scenes and of the networks (default 0)"
    parser.add_argument("--seed", type=int, default=0, help=seed_help)
    return parser.parse_args()


def draw_many(seed: int, count: int, size: int, split: str) -> tuple[Tensor, Tensor]:
    """Draw images `[count, 3, size, size]` in [0, 1] and their labels `[count]`."""
    images = []
    labels = []
    for index in range(count):
        scene = draw_scene(seed, index, size, split)
        images.append(scene.image)
        labels.append(scene.category)
    return torch.stack(images).float() / 255, torch.tensor(labels)


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    neighbours: int,
    temperature: float = 0.07,
) -> float:
    """The share of queries whose weighted vote is right: cosine similarity, weights
    exp(similarity / temperature) (Wu et al. 2018, section 3.4)."""
    similarity, nearest = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).topk(neighbours)
    votes = torch.zeros(len(queries), int(bank_labels.max()) + 1).scatter_add_(
        1, bank_labels[nearest], (similarity / temperature).exp()
    )
    return (votes.argmax(1) == query_labels).float().mean().item()


def centered_pixels(images: Tensor) -> Tensor:
    """Pixels without the mean of their image: `[B, 3 * H * W]`."""
    return (images - images.mean((1, 2, 3), keepdim=True)).flatten(1)


def colour_histogram(images: Tensor) -> Tensor:
    """Shares of 8 x 8 x 8 colour bins, square-rooted (Hellinger): `[B, 512]`."""
    bins = (images * 7.999).long()
    bins = (bins[:, 0] * 64 + bins[:, 1] * 8 + bins[:, 2]).flatten(1)
    return torch.zeros(len(images), 512).scatter_add_(1, bins, torch.ones(bins.shape)).sqrt()


def random_convolutions() -> Callable[[Tensor], Tensor]:
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return in_batches(layers)


def small_convnet(classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels_in, channels in ((3, 32), (32, 64), (64, 128), (128, 128)):
        layers += [nn.Conv2d(channels_in, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int = 64) -> None:
    """AdamW with a one-cycle learning rate; mirrored images and shifted by up to 4 pixels."""
    network.train()
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            inputs = images[chosen].roll(tuple(torch.randint(-4, 5, (2,)).tolist()), (2, 3))
            inputs = inputs.flip(3) if torch.rand(()) < 0.5 else inputs
            optimizer.zero_grad()
            F.cross_entropy(network(inputs - 0.5), labels[chosen], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()


def in_batches(network: nn.Module) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        network.eval()
        return torch.cat([network(part - 0.5) for part in images.split(250)])

    return features


if __name__ == "__main__":
    main()
