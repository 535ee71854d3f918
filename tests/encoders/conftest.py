"""Tiny encoders and labelled images in memory."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from vision_core.images.source import ImageRecord, ImageSource
from vision_core.unreadable import UnreadableImage


@pytest.fixture
def tiny_model():
    """`tiny_model(registers, attention, channels)`: random Dinov2 (registers None) or
    Dinov2WithRegisters, patch 8, width 24, 3 heads."""

    def build(registers=None, attention="sdpa", channels=3):
        shape = {
            "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8, "image_size": 32,
            "num_channels": channels, "attn_implementation": attention, "initializer_range": 0.3,
        }  # fmt: skip
        torch.manual_seed(0)
        if registers is None:
            return Dinov2Model(Dinov2Config(**shape))
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape, num_register_tokens=registers))

    return build


class MemorySource(ImageSource):
    """Images in memory; None stands for one that cannot be read."""

    description = "images in memory"

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.name = "images in memory"

    @property
    def fingerprint(self):
        return self.name

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if self.images[index] is None:
            raise UnreadableImage("broken")
        return ImageRecord(
            self.id_of(index), self.images[index], None if self.labels is None else self.labels[index]
        )

    def id_of(self, index):
        return str(index)


@pytest.fixture
def memory_source():
    return MemorySource
