"""Two steps of DistributedDataParallel on models from folders, each process with rows of its own;
process 0 writes the losses and check sums."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForImageTextToText, AutoProcessor

import fusion  # noqa: F401 - registers the models

TEXTS = [
    ["what is <image> here", "<image><image> side by side"],
    ["a dog <image>", "<image> and a cat"],
]  # of each process


def batch_of(processor, texts, seed):
    generator = np.random.default_rng(seed)
    count = "".join(texts).count("<image>")
    pictures = [
        Image.fromarray(generator.integers(0, 256, (40, 20 + 10 * number, 3), dtype=np.uint8))
        for number in range(count)
    ]
    batch = processor(text=texts, images=pictures or None, return_tensors="pt", padding=True)
    hidden = (batch["attention_mask"] == 0) | (batch["input_ids"] == processor.image_token_id)
    return batch | {"labels": batch["input_ids"].masked_fill(hidden, -100)}


def two_steps(folder: str, kind: str) -> dict[str, list[float]]:
    """kind: `plain`, where every batch has images, or `text`, where process 1 has none in the
    second step and DDP looks for what is not reached."""
    processor = AutoProcessor.from_pretrained(folder)
    whole = AutoModelForImageTextToText.from_pretrained(folder).train()
    model = DistributedDataParallel(whole, find_unused_parameters=kind == "text")
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    rank, losses = dist.get_rank(), []
    for step in range(2):
        without = kind == "text" and step == 1 and rank == 1
        texts = ["a dog runs", "a cat"] if without else TEXTS[rank]
        loss = model(**batch_of(processor, texts, seed=10 * step + rank)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    sums = [None, None]
    dist.all_gather_object(sums, sum(each.double().abs().sum().item() for each in whole.parameters()))
    return {"losses": losses, "sums": sums}


def main(output: str, *runs: str) -> None:
    """runs: KIND:FOLDER, one after the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {}
    for run in runs:
        kind, _, folder = run.partition(":")
        results[run] = two_steps(folder, kind)
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
