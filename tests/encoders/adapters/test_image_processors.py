"""Image processors of transformers against `ImageTransform`."""

import pytest
import torch

from encoders.adapters.image_processors import transform_from_processor
from vision_core.errors import UserError

PROCESSORS = [
    "CLIPImageProcessor",
    "SiglipImageProcessor",
    "BitImageProcessor",
    "ViTImageProcessor",
    "DINOv3ViTImageProcessor",
    "ConvNextImageProcessor",
]


class AutoLike:
    def __init__(self, said):
        self.to_dict = lambda: said


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", [(300, 500), (401, 400)])
def test_the_transform_gives_the_processors_pixels(name, shape):
    import transformers

    processor = getattr(transformers, name)()
    transform = transform_from_processor(processor)
    rows, columns = torch.meshgrid(
        torch.linspace(0, 9, shape[0]), torch.linspace(0, 7, shape[1]), indexing="ij"
    )
    image = torch.stack([rows.sin(), columns.cos(), (rows * columns).sin()]).mul(100).add(128).byte()
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    ours = transform([image])
    assert ours.shape == theirs.shape
    assert (
        ours - theirs
    ).abs().mean() < 5e-3  # both round to 8 bits after the resize, not always at the same place


def test_a_processor_of_another_kind():
    with pytest.raises(UserError, match="longest_edge.* not understood"):
        transform_from_processor(
            AutoLike({"size": {"longest_edge": 500}, "image_mean": [0.5], "image_std": [0.5]})
        )
