"""Small encoders, a small language model and the connector between them learn from labels of drawn scenes."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from pretrain.mae_weights import sincos_positions
from recipes import stand_ins
from recipes.chat_tokens import IGNORED, tokenise
from recipes.scene_turns import BACKDROP
from recipes.small_default import GRID, SIDE, TOKENS, small_encoders, write_small_default
from recipes.stand_ins import (
    OF_CELL,
    conversation,
    cross_entropies,
    ids_of,
    labels_of_cells,
    labels_of_picture,
    sums_of_words,
    with_newlines,
)
from vision_core.images.scene_colours import COLOURS
from vision_core.images.scene_textures import TEXTURES
from vision_core.images.scenes import CATEGORIES, draw_scene

TEXTS = ["the red star is in column c and row 4, some five metres away"] * 9


def test_labels_are_the_scenes():
    for index in range(5):
        scene = draw_scene(3, index, SIDE)
        main = scene.objects[0]
        category, colour, texture, others = labels_of_picture(scene).tolist()
        assert (CATEGORIES[category], COLOURS[colour], list(TEXTURES)[texture]) == (main.category, main.colour, main.texture)
        assert others + 1 == sum(each.category == main.category for each in scene.objects)
        cells = labels_of_cells(scene, GRID)
        for cell in range(GRID * GRID):
            row, column = divmod(cell, GRID)
            numbers = scene.masks[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten().tolist()
            most = max(range(1, 1 + len(scene.objects)), key=numbers.count)
            if numbers.count(most) <= 8:
                assert cells[cell].tolist() == [0] * 6
                continue
            seen = scene.objects[most - 1]
            colour, texture, category, *where, metres = cells[cell].tolist()
            assert (COLOURS[colour - 1], list(TEXTURES)[texture], CATEGORIES[category]) == (seen.colour, seen.texture, seen.category)
            assert where == [min(int(at // 8), 7) for at in seen.centre] and metres == round(seen.depth)


def test_questions_lie_side_by_side():
    torch.manual_seed(0)
    logits = torch.randn(6, sum(OF_CELL), dtype=torch.float64)
    answers = torch.stack([torch.randint(size, (6,)) for size in OF_CELL], dim=1)
    expected = 0.0
    for row in range(6):
        start = 0
        for question, size in enumerate(OF_CELL):
            own = logits[row, start : start + size]
            expected -= (own[answers[row, question]] - own.exp().sum().log()) / 6
            start += size
    torch.testing.assert_close(cross_entropies(logits, answers, OF_CELL), expected)


@pytest.mark.parametrize("number", [0, 1])
def test_positions_stand_in_the_encoders(number):
    (positions,) = (each for name, each in small_encoders(0)[number].named_parameters() if "position_embedding" in name)
    torch.testing.assert_close(
        positions.view(-1, positions.shape[-1])[-GRID * GRID :].data, sincos_positions(GRID * GRID, positions.shape[-1])[0, 1:]
    )


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Two folders of the same few steps, and one of none."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SCENES", 64), ("ENCODER_STEPS", 4), ("LANGUAGE_STEPS", 8), ("CONNECTOR_STEPS", 8)):
            patch.setattr(stand_ins, name, value)
        folders = [tmp_path_factory.mktemp(name) for name in ("one", "two", "none")]
        for number, folder in enumerate(folders):
            torch.rand(number)
            write_small_default(folder, TEXTS, seed=0, stand_ins=number < 2)
    return [AutoModelForImageTextToText.from_pretrained(folder) for folder in folders], AutoProcessor.from_pretrained(folders[0])


def test_learning_is_reproducible_and_leaves_no_part_as_it_was(taught):
    """The same weights whatever was drawn before; what looks again in the language model starts by adding nothing, and is not taught."""
    (one, two, none), _ = taught
    states = [model.state_dict() for model in (one, two, none)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    same = {name for name in states[0] if torch.equal(states[0][name], states[2][name])}
    assert {name.split(".")[0] for name in same if not name.endswith("bias")} <= {"vision_sampler_layers", "vision_model"}
    for part in ("vision_model.encoders.0.", "vision_model.encoders.1.", "vision_model.connector.", "language_model."):
        assert any(name.startswith(part) and name not in same for name in states[0]), part
    assert all(encoder.untrained for encoder in none.vision_model.encoders) and not any(
        encoder.untrained for encoder in one.vision_model.encoders
    )


def test_words_are_summed_where_tokens_of_an_image_will_be(taught):
    (model, *_), processor = taught
    scene = draw_scene(0, 3, SIDE)
    weight = model.get_input_embeddings().weight.detach()
    cells = with_newlines(stand_ins.words_of_cells(scene, TOKENS), TOKENS)
    assert len(cells) == processor.image_processor.num_tokens(SIDE, SIDE)
    asked = tokenise(conversation(scene, np.random.default_rng(0)), processor, 999)
    assert asked.input_ids.count(processor.image_token_id) == len(cells)
    sums = sums_of_words(cells, processor.tokenizer, weight)
    for words, found in zip(cells, sums, strict=True):
        text = "".join(f" {word}" for word in words)
        expected = sum((weight[token] for token in processor.tokenizer(text).input_ids), torch.zeros(weight.shape[1]))
        torch.testing.assert_close(found, expected)
    learnt = processor.tokenizer.decode([label for label in asked.labels if label != IGNORED])
    assert all(" ".join(words) in learnt for words in cells if words and words != BACKDROP)
    assert processor.tokenizer.decode(ids_of(("red", "c"), processor.tokenizer)) == " red c"


def test_each_part_learns(taught, monkeypatch):
    """Losses fall, and a connector's tokens come to be likest the words of what lies under them."""
    (_, _, model), processor = taught
    scenes = [draw_scene(0, index, SIDE) for index in range(32)]
    seen: dict[str, list[float]] = {}

    def learn(loss, parameters, steps, learning_rate, title):
        kept = seen.setdefault(title, [])

        def noted(step):
            value = loss(step)
            kept.append(value.item())
            return value

        original(noted, parameters, 30, learning_rate, title)

    original = stand_ins.learn
    monkeypatch.setattr(stand_ins, "learn", learn)
    torch.manual_seed(0)
    stand_ins.train_encoder(model.vision_model.encoders[0], scenes, 0, "encoder")
    stand_ins.train_language_model(model, processor, scenes, 0)
    stand_ins.train_connector(model, processor, scenes, 0)
    assert len(seen) == 3
    for title, losses in seen.items():
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), title
