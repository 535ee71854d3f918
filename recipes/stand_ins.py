"""Small encoders that have learnt to see drawn scenes: stand-ins for the published ones where none is named.

A published encoder comes with weeks of training. A stand-in gets a minute of the cheapest kind that there is, labels. Of the picture: its main object's
category, colour and surface, and how many there are of that kind. Of every cell: the colour of what is seen there, and where the middle of it is. Without it
nothing but colours was learnt through a connector and a language model in a quarter of an hour.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from encoders.base import Encoder
from vision_core.distributed import is_main_process
from vision_core.images.scene_colours import COLOURS
from vision_core.images.scene_layout import MAX_COMPANIONS
from vision_core.images.scene_textures import TEXTURES
from vision_core.images.scenes import CATEGORIES, Scene, draw_scene
from vision_core.randomness import numpy_generator, seed_of

SCENES, BATCH, LEARNING_RATE, WARMUP_STEPS = 6000, 32, 1e-3, 50
OF_PICTURE = (len(CATEGORIES), len(COLOURS), len(TEXTURES), MAX_COMPANIONS + 1)  # how many answers each question has


def train_on_labels(encoders: list[Encoder], side: int, steps: int, seed: int) -> None:
    """Each encoder in turn, whose images have `side` pixels, for as many steps."""
    if not steps:
        return
    grid = encoders[0].grid(side, side)[0]
    data = labelled_scenes(SCENES, side, grid, seed)
    for number, encoder in enumerate(encoders, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "stand-in", number))
            _train(encoder, data, grid, steps, seed, f"stand-in {number} of {len(encoders)} learns")


def labelled_scenes(count: int, side: int, grid: int, seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Images `[3, side, side]`; answers about each `[count, 4]`; and about its cells `[count, grid * grid, 3]`: the colour, from 1, of the object that covers
    most, and column and row of its middle; of the backdrop 0 and the cell's own."""
    images, pictures, cells = [], [], []
    for index in tqdm(range(count), desc="scenes", unit="scene", leave=False, disable=not is_main_process()):
        scene = draw_scene(seed, index, side)
        main, kinds = scene.objects[0], [each.category for each in scene.objects]
        images.append(scene.image)
        pictures.append(
            [
                CATEGORIES.index(main.category),
                COLOURS.index(main.colour),
                list(TEXTURES).index(main.texture),
                kinds.count(main.category) - 1,
            ]
        )
        cells.append(_labels_of_cells(scene, grid))
    return images, torch.tensor(pictures), torch.stack(cells)


def _labels_of_cells(scene: Scene, grid: int) -> Tensor:
    size = len(scene.masks) // grid
    covering = scene.masks.unfold(0, size, size).unfold(1, size, size).reshape(grid * grid, size * size).mode(1).values.long()
    objects = [[1 + COLOURS.index(each.colour), *(min(int(at / size), grid - 1) for at in each.centre)] for each in scene.objects]
    cells = torch.arange(grid * grid)
    backdrop = torch.stack((torch.zeros_like(cells), cells % grid, cells // grid), dim=1)
    return torch.where((covering == 0)[:, None], backdrop, torch.tensor([[0, 0, 0], *objects])[covering])


def _train(encoder: Encoder, data: tuple[list[Tensor], Tensor, Tensor], grid: int, steps: int, seed: int, title: str) -> None:
    images, pictures, cells = data
    of_cell = (1 + len(COLOURS), grid, grid)
    picture_head, cell_head = nn.Linear(encoder.width, sum(OF_PICTURE)), nn.Linear(encoder.width, sum(of_cell))
    encoder.freeze(False)
    encoder.train()
    parameters = [*encoder.parameters(), *picture_head.parameters(), *cell_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
    for step in tqdm(range(steps), desc=title, unit="step", disable=not is_main_process()):
        chosen = torch.from_numpy(numpy_generator("stand-in batch", seed, step).integers(len(images), size=BATCH))
        patches = encoder(encoder.transform([images[number] for number in chosen])).patch_map.flatten(2).mT
        loss = cross_entropies(picture_head(patches.mean(1)), pictures[chosen], OF_PICTURE)
        loss = loss + cross_entropies(cell_head(patches).flatten(0, 1), cells[chosen].flatten(0, 1), of_cell)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    encoder.freeze()
    encoder.untrained = False


def cross_entropies(logits: Tensor, answers: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum over several questions. logits: `[N, sum(sizes)]`, those of each question side by side; answers: `[N, len(sizes)]`."""
    return sum(F.cross_entropy(each, answer) for each, answer in zip(logits.split(sizes, dim=1), answers.T, strict=True))
