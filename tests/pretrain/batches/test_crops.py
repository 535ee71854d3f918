"""Order, resume and bad images of the training data."""

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.batches.crops import StepMasks, make_loader
from pretrain.batches.multicrop import MultiCrop
from pretrain.batches.order import BatchLayout
from vision_core.images.open_source import open_source
from vision_core.images.source import ImageRecord, ImageStream, UnreadableSample

CROPS = MultiCrop((16, 16), (8, 8), 2)


def write_images(folder, count, bad=()):
    for number in range(count):
        path = folder / f"{number:03d}.png"
        if number in bad:
            path.write_bytes(b"\x89PNG\r\n\x1a\nnot one")
        else:
            pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return open_source(str(folder))


def batches(source, layout, first=0, last=6, workers=0):
    masks = StepMasks((4, 4), layout.global_batch, seed=0)
    return list(make_loader(source, CROPS, masks, layout, 0, first, last, workers))


def same(left, right):
    assert left["ids"] == right["ids"] and left["bad"] == right["bad"]
    for name in ("global_crops", "local_crops", "masks", "mask_indices", "mask_weights"):
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_gives_the_same_batches(tmp_path, workers):
    source = write_images(tmp_path, 10)
    layout = BatchLayout(4, 1, 1, 0)
    uninterrupted, resumed = (batches(source, layout), batches(source, layout, first=3, workers=workers))
    assert len(uninterrupted) == 6 and len(resumed) == 3
    for left, right in zip(uninterrupted[3:], resumed, strict=True):
        same(left, right)


def test_shapes_and_crop_major_order(tmp_path):
    batch = batches(write_images(tmp_path, 10), BatchLayout(4, 1, 1, 0), last=1)[0]
    assert batch["global_crops"].shape == (8, 3, 16, 16) and batch["local_crops"].shape == (8, 3, 8, 8)
    assert batch["masks"].shape == (8, 16) and len(batch["mask_indices"]) == batch["masks"].sum() == len(
        batch["mask_weights"]
    )


def test_bad_images_are_named_and_replaced_the_same_way_each_time(tmp_path):
    source = write_images(tmp_path, 12, bad=(2, 7))
    layout = BatchLayout(4, 1, 1, 0)
    once, again = batches(source, layout, last=3), batches(source, layout, last=3, workers=2)
    for left, right in zip(once, again, strict=True):
        same(left, right)
    named = {name for batch in once for name, _ in batch["bad"]}
    assert named == {"002.png", "007.png"}
    assert all(len(batch["ids"]) == 4 and not {"002.png", "007.png"} & set(batch["ids"]) for batch in once)


class Stream(ImageStream):
    """Twelve images, one of them bad."""

    def records(self, rank, world_size, epoch, start=None):
        for number in range(rank, 12, world_size):
            if number == 4:
                yield UnreadableSample("4", "truncated")
            else:
                yield ImageRecord(str(number), torch.full((3, 20, 20), number, dtype=torch.uint8))


def test_a_stream_goes_on_past_its_end_and_names_bad_records():
    loader = make_loader(Stream(), CROPS, StepMasks((4, 4), 4, 0), BatchLayout(4, 1, 1, 0), 0, 0, 5, 0)
    taken = [batch for _, batch in zip(range(5), loader, strict=False)]
    assert [name for batch in taken for name in batch["ids"]][:12] == [*"01235678", "9", "10", "11", "0"]
    assert ("4", "truncated") in taken[1]["bad"]
