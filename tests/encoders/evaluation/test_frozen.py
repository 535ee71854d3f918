import pytest
import torch

from encoders import load_encoder
from encoders.evaluation.frozen import FrozenFeatures, count_classes, dense_size_for
from vision_core.errors import UserError
from vision_core.images.splits import Splits


def pictures(*sizes):
    return [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]


def test_the_dense_size_is_the_first_readable_images_rounded_to_the_stride(memory_source):
    encoder = load_encoder("tiny:dinov2")
    stride = encoder.stride
    source = memory_source([None, *pictures((3 * stride + 1, 5 * stride - 1), (9, 9))], None)
    assert dense_size_for(encoder, source) == (3 * stride, 5 * stride)
    height, width = dense_size_for(encoder, memory_source(pictures((100 * stride, 50 * stride)), None))
    assert (height // stride) * (width // stride) <= 2048 * 1.05 and abs(height / width - 2) < 0.1
    with pytest.raises(UserError, match="no image of images in memory can be read"):
        dense_size_for(encoder, memory_source([None], None))


def test_classes_of_images_that_may_have_several(memory_source):
    train, test = memory_source([], None), memory_source([], None)
    with pytest.raises(UserError, match="has no lists of classes; name a column of lists by .label=COLUMN"):
        count_classes([train, test])
    train.multi_labels, test.multi_labels = [[0], []], [[4, 2]]
    assert count_classes([train, test]) == 5
    train.class_names = ["a", "b", "c", "d", "e", "f"]
    assert count_classes([train, test]) == 6


def test_training_images_that_are_test_images_are_not_learnt_from(memory_source, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = list(torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=generator))
    splits = Splits(memory_source(images[:5], [0] * 5), memory_source(images[3:], [0] * 3))
    splits.test.name = "test images in memory"
    frozen = FrozenFeatures(load_encoder("tiny:dinov2"), splits, tmp_path)
    frozen.vectors("train"), frozen.vectors("test")
    assert frozen.training_rows().tolist() == [0, 1, 2] and frozen.in_both == 2
    assert "2 of 3 test images are among the training images" in frozen.used_in_words
