"""Small encoders learn from labels of drawn scenes."""

import pytest
import torch

from pretrain.mae_weights import sincos_positions
from recipes.small_default import GRID, SIDE, small_encoders
from recipes.stand_ins import OF_PICTURE, cross_entropies, labelled_scenes, train_on_labels
from vision_core.images.scene_colours import COLOURS
from vision_core.images.scenes import CATEGORIES, draw_scene


def test_labels_are_the_scenes():
    images, pictures, cells = labelled_scenes(5, SIDE, GRID, seed=3)
    for index in range(5):
        scene = draw_scene(3, index, SIDE)
        assert torch.equal(images[index], scene.image)
        main = scene.objects[0]
        assert CATEGORIES[pictures[index, 0]] == main.category and COLOURS[pictures[index, 1]] == main.colour
        assert pictures[index, 3] + 1 == sum(each.category == main.category for each in scene.objects)
        for cell in range(GRID * GRID):
            row, column = divmod(cell, GRID)
            numbers = scene.masks[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten().tolist()
            most = max(sorted(set(numbers)), key=numbers.count)
            expected = [0, column, row]
            if most:
                seen = scene.objects[most - 1]
                expected = [1 + COLOURS.index(seen.colour), *(min(int(at // 8), 7) for at in seen.centre)]
            if numbers.count(most) > 32:  # where no other covers as much
                assert cells[index, cell].tolist() == expected


def test_questions_lie_side_by_side():
    torch.manual_seed(0)
    logits = torch.randn(6, sum(OF_PICTURE), dtype=torch.float64)
    answers = torch.stack([torch.randint(size, (6,)) for size in OF_PICTURE], dim=1)
    expected = 0.0
    for row in range(6):
        start = 0
        for question, size in enumerate(OF_PICTURE):
            own = logits[row, start : start + size]
            expected -= (own[answers[row, question]] - own.exp().sum().log()) / 6
            start += size
    torch.testing.assert_close(cross_entropies(logits, answers, OF_PICTURE), expected)


@pytest.mark.parametrize("number", [0, 1])
def test_positions_stand_in_the_encoders(number):
    (positions,) = (each for name, each in small_encoders(0)[number].named_parameters() if "position_embedding" in name)
    torch.testing.assert_close(
        positions.view(-1, positions.shape[-1])[-GRID * GRID :].data, sincos_positions(GRID * GRID, positions.shape[-1])[0, 1:]
    )


def test_learning_is_reproducible(monkeypatch):
    """The same weights whatever was drawn before; no training leaves an encoder as it was made."""
    monkeypatch.setattr("recipes.stand_ins.SCENES", 64)
    runs = []
    for _ in range(2):
        encoders = small_encoders(0)[:1]
        torch.rand(3)
        train_on_labels(encoders, SIDE, 12, seed=0)
        runs.append(encoders[0])
    assert all(torch.equal(one, other) for one, other in zip(runs[0].parameters(), runs[1].parameters(), strict=True))
    assert runs[0].frozen and not runs[0].untrained
    untouched = small_encoders(0)
    train_on_labels(untouched, SIDE, 0, seed=0)
    assert all(each.untrained for each in untouched)
    assert any(not torch.equal(one, other) for one, other in zip(runs[0].parameters(), untouched[0].parameters(), strict=True))
