"""Milliseconds per image of the multi-crop augmentation on one thread, at three sizes, beside
torchvision's own transforms on tensors.

    python benchmarks/augmentation_speed.py
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torchvision.transforms import v2

from pretrain.batches.multicrop import MultiCrop


class Case(NamedTuple):
    """Sizes in pixels, and the number of local crops beside the two global ones."""

    height: int
    width: int
    global_size: int
    local_size: int
    num_local: int


CASES = [Case(32, 32, 32, 16, 4), Case(64, 64, 64, 32, 4), Case(400, 500, 224, 96, 8)]
SECONDS = 2.0  # for which each augmentation is repeated


def torchvision_crop(size: int) -> v2.Transform:
    """The same augmentation from torchvision's transform objects, on uint8 tensors; blur has the
    probability 0.5."""
    bicubic = v2.InterpolationMode.BICUBIC
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.05, 1.0), interpolation=bicubic, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )


def crop_by_torchvision(
    image: torch.Tensor, global_crop: v2.Transform, local_crop: v2.Transform, num_local: int
) -> None:
    for _ in range(2):
        global_crop(image)
    for _ in range(num_local):
        local_crop(image)


def milliseconds(call: Callable[[], object]) -> float:
    """Mean time of `call`, after a warm-up."""
    call()
    start = time.perf_counter()
    count = 0
    while time.perf_counter() - start < SECONDS:
        call()
        count += 1
    return 1000 * (time.perf_counter() - start) / count


def main() -> None:
    """Print a line per case."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread; milliseconds per image")
    for case in CASES:
        image = torch.randint(0, 256, (3, case.height, case.width), dtype=torch.uint8)
        crops = MultiCrop(
            (case.global_size, case.global_size),
            (case.local_size, case.local_size),
            case.num_local,
            blur="official",
        )
        large = torchvision_crop(case.global_size)
        small = torchvision_crop(case.local_size)
        multi_crop = milliseconds(partial(crops, image))
        torchvision = milliseconds(partial(crop_by_torchvision, image, large, small, case.num_local))
        print(
            f"{case.height} x {case.width}: 2 x {case.global_size} + {case.num_local} x {case.local_size} px  "
            f"{multi_crop:7.2f}   torchvision transforms {torchvision:7.2f}"
        )


if __name__ == "__main__":
    main()
