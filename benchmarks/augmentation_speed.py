"""Milliseconds per image of the multi-crop augmentation on one thread, at three sizes, beside
torchvision's own transforms on tensors.

python benchmarks/augmentation_speed.py
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torchvision.transforms import v2

from pretrain.batches.multicrop import MultiCrop

# image, global crops, local crops, number of local crops
CASES = [((32, 32), 32, 16, 4), ((64, 64), 64, 32, 4), ((400, 500), 224, 96, 8)]
SECONDS = 2.0


def torchvision_crop(size: int) -> v2.Transform:
    """The same augmentation from torchvision's transform objects, on uint8 tensors; blur with
    probability 0.5."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                size, scale=(0.05, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
            ),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )


def milliseconds(call: Callable[[], object]) -> float:
    """Mean time of `call`, after a warm-up."""
    call()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        call()
        count += 1
    return 1000 * (time.perf_counter() - start) / count


def main() -> None:
    """Print a line per case."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread; milliseconds per image")
    for (height, width), global_size, local_size, num_local in CASES:
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        crops = MultiCrop((global_size, global_size), (local_size, local_size), num_local, blur="official")
        large, small = torchvision_crop(global_size), torchvision_crop(local_size)
        ours = milliseconds(lambda image=image, crops=crops: crops(image))
        theirs = milliseconds(
            lambda image=image, a=large, b=small, n=num_local: [
                a(image),
                a(image),
                *[b(image) for _ in range(n)],
            ]
        )
        print(
            f"{height} x {width}: 2 x {global_size} + {num_local} x {local_size} px  {ours:7.2f}   torchvision transforms {theirs:7.2f}"
        )


if __name__ == "__main__":
    main()
