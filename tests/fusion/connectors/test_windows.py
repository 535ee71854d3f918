"""Windows and images are cut and joined like tensors."""

import numpy as np
import torch
from PIL import Image

from fusion.connectors.windows import VisionWindows


def test_windows_split_by_image_and_join_again():
    mask = torch.rand(6, 4) > 0.4
    mask[:, 0] |= ~mask.any(1)
    tokens = (torch.randn(6, 1, 24), torch.randn(6, 4, 24))
    image_index = torch.tensor([0, 0, 1, 1, 1, 1])
    windows = VisionWindows(tokens, (None, mask), torch.randn(2, 24), image_index)
    parts = windows.split([2, 4])
    parts[0].masks = (None, None)  # an image without padding among others that have some
    joined = VisionWindows.join(parts)
    assert torch.equal(joined.image_index, windows.image_index)
    assert torch.equal(joined.context, windows.context)
    assert all(torch.equal(one, other) for one, other in zip(joined.tokens, windows.tokens, strict=True))
    assert joined.masks[0] is None
    assert joined.masks[1][:2].all()
    assert torch.equal(joined.masks[1][2:], windows.masks[1][2:])


def test_rows_of_images_are_cut_like_tensors(vlm):
    """Every row of several images, in any order, has the token, and each cell the windows, that it
    had."""
    model, processor = vlm()
    generator = np.random.default_rng(1)
    pictures = [
        Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8))
        for shape in [(60, 80), (90, 30)]
    ]
    with torch.no_grad():
        images = model.get_image_features(**processor.image_processor(pictures)).pooler_output
    joined = torch.cat([image.reshape(-1, image.shape[-1]) for image in images])
    rows = torch.from_numpy(generator.permutation(len(joined))[:7])
    part = joined[rows]
    windows = [(image, number) for image in images for number in range(int(image.cells.sum()))]
    cells = [int(joined.cells[:row].sum()) for row in rows.tolist() if joined.cells[row]]
    assert torch.equal(part.tokens, torch.cat([image.tokens for image in images])[rows])
    assert len(part.windows.image_index) == len(cells) == int(part.cells.sum())
    for place, cell in enumerate(cells):
        image, number = windows[cell]
        for ours, theirs in zip(part.windows.tokens, image.windows.tokens, strict=True):
            assert torch.equal(ours[place], theirs[number])
        assert torch.equal(part.windows.context[part.windows.image_index[place]], image.windows.context[0])
