"""Small encoders that have learnt to see drawn scenes: stand-ins for the published ones where none is named.

A published encoder comes with weeks of training. A stand-in gets a minute of the cheapest kind that there is, labels: of the picture the main object's
category, colour and surface, of every cell the colour of what is seen there. Without it nothing but colours was learnt through a connector and a language
model in a quarter of an hour.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from encoders.base import Encoder
from vision_core.distributed import is_main_process
from vision_core.images.scene_colours import COLOURS
from vision_core.images.scene_textures import TEXTURES
from vision_core.images.scenes import CATEGORIES, draw_scene
from vision_core.randomness import numpy_generator, seed_of

SCENES, BATCH, LEARNING_RATE, WARMUP_STEPS = 6000, 32, 1e-3, 50
KINDS = (len(CATEGORIES), len(COLOURS), len(TEXTURES))


def train_on_labels(encoders: list[Encoder], side: int, steps: int, seed: int) -> None:
    """Each encoder in turn, whose images have `side` pixels, for as many steps."""
    if not steps:
        return
    data = labelled_scenes(SCENES, side, encoders[0].grid(side, side)[0], seed)
    for encoder in encoders:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "stand-in", encoder.name))
            _train(encoder, data, steps, seed)


def labelled_scenes(count: int, side: int, grid: int, seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Images `[3, side, side]`; category, colour and surface of their main objects `[count, 3]`; of their cells `[count, grid * grid]` the colour of
    the object that covers most, from 1, or 0 for the backdrop."""
    images, pictures, cells = [], [], []
    for index in tqdm(range(count), desc="scenes", unit="scene", leave=False, disable=not is_main_process()):
        scene = draw_scene(seed, index, side)
        main = scene.objects[0]
        images.append(scene.image)
        pictures.append([CATEGORIES.index(main.category), COLOURS.index(main.colour), list(TEXTURES).index(main.texture)])
        colours = torch.tensor([0, *(1 + COLOURS.index(each.colour) for each in scene.objects)])
        size = side // grid
        covering = scene.masks.unfold(0, size, size).unfold(1, size, size).reshape(grid * grid, size * size).mode(1).values
        cells.append(colours[covering.long()])
    return images, torch.tensor(pictures), torch.stack(cells)


def _train(encoder: Encoder, data: tuple[list[Tensor], Tensor, Tensor], steps: int, seed: int) -> None:
    images, pictures, cells = data
    width = encoder(encoder.transform(images[:1])).patch_map.shape[1]
    of_picture, of_cell = nn.Linear(width, sum(KINDS)), nn.Linear(width, 1 + len(COLOURS))
    encoder.freeze(False)
    encoder.train()
    parameters = [*encoder.parameters(), *of_picture.parameters(), *of_cell.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
    for step in tqdm(range(steps), desc=f"stand-in for {encoder.name}", unit="step", disable=not is_main_process()):
        chosen = torch.from_numpy(numpy_generator("stand-in batch", seed, step).integers(len(images), size=BATCH))
        patches = encoder(encoder.transform([images[number] for number in chosen])).patch_map.flatten(2).mT
        said = of_picture(patches.mean(1)).split(KINDS, dim=1)
        loss = sum(F.cross_entropy(logits, truth) for logits, truth in zip(said, pictures[chosen].T, strict=True))
        loss = loss + F.cross_entropy(of_cell(patches).flatten(0, 1), cells[chosen].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    encoder.eval().freeze()
    encoder.untrained = False
