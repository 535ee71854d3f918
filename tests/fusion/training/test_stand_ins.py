"""Small encoders, a small language model and the connector between them learn from labels of drawn
scenes."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from encoders.mae_weights import sincos_positions
from fusion.conversations.conversation import scene_conversation
from fusion.conversations.scene_turns import SCENE_WORDS, what_and_where, words_of_cells
from fusion.conversations.tokens import tokenise
from fusion.labels import LABEL_IGNORED
from fusion.training import stand_ins
from fusion.training.small_default import GRID, SIDE, TOKENS, small_encoders, write_small_default
from fusion.training.stand_ins import (
    CELL_CLASSES,
    PICTURE_CLASSES,
    connector_loss,
    cross_entropies,
    encoder_loss,
    labels_of_cells,
    labels_of_picture,
    language_loss,
    tokens_of_words,
)
from vision_core.scenes.colours import COLOURS
from vision_core.scenes.draw import CATEGORIES, draw_scene
from vision_core.scenes.textures import TEXTURES

TEXTS = ["the red star is in column c and row 4, some five metres away"] * 9


def test_labels_are_the_scenes():
    for index in range(5):
        scene = draw_scene(3, index, SIDE)
        main = scene.objects[0]
        category, colour, texture, others = labels_of_picture(scene).tolist()
        assert (CATEGORIES[category], COLOURS[colour], list(TEXTURES)[texture]) == (
            main.category,
            main.colour,
            main.texture,
        )
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
            assert (COLOURS[colour - 1], list(TEXTURES)[texture], CATEGORIES[category]) == (
                seen.colour,
                seen.texture,
                seen.category,
            )
            assert where == [min(int(at // 8), 7) for at in seen.centre] and metres == round(seen.depth)


def test_questions_lie_side_by_side():
    torch.manual_seed(0)
    logits = torch.randn(6, sum(CELL_CLASSES), dtype=torch.float64)
    answers = torch.stack([torch.randint(size, (6,)) for size in CELL_CLASSES], dim=1)
    expected = 0.0
    for row in range(6):
        start = 0
        for question, size in enumerate(CELL_CLASSES):
            own = logits[row, start : start + size]
            expected -= (own[answers[row, question]] - own.exp().sum().log()) / 6
            start += size
    torch.testing.assert_close(cross_entropies(logits, answers, CELL_CLASSES), expected)


@pytest.mark.parametrize("number", [0, 1])
def test_positions_stand_in_the_encoders(number):
    (positions,) = (
        each for name, each in small_encoders(0)[number].named_parameters() if "position_embedding" in name
    )
    torch.testing.assert_close(
        positions.view(-1, positions.shape[-1])[-GRID * GRID :].data,
        sincos_positions(GRID * GRID, positions.shape[-1])[0, 1:],
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two small defaults of the same few steps, and one of none."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("SCENES", 64),
            ("ENCODER_STEPS", 4),
            ("LANGUAGE_STEPS", 8),
            ("CONNECTOR_STEPS", 8),
        ):
            patch.setattr(stand_ins, name, value)
        folders = [tmp_path_factory.mktemp(name) for name in ("one", "two", "none")]
        for number, folder in enumerate(folders):
            torch.manual_seed(number)
            write_small_default(folder, TEXTS, seed=0, stand_ins=number < 2)
    return folders


def load(folder):
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def test_learning_is_reproducible_and_leaves_no_part_as_it_was(folders):
    """The same weights whatever was drawn before. What no lesson is about stays: newlines, layers
    that look again, and what is not used for patches."""
    one, two, none = (load(folder)[0] for folder in folders)
    states = [dict(model.named_parameters()) for model in (one, two)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    untaught = dict(none.named_parameters())
    same = {
        name
        for name, value in states[0].items()
        if value.shape == untaught[name].shape and torch.equal(value, untaught[name])
    }
    assert all(
        name.startswith("vision_sampler_layers.")
        or "newline" in name
        or "head" in name
        or "mask_token" in name
        for name in same
    ), same
    assert any(name.startswith("vision_sampler_layers.") for name in same)
    assert all(encoder.untrained for encoder in none.vision_model.encoders) and not any(
        encoder.untrained for encoder in one.vision_model.encoders
    )


def test_every_word_of_scenes_is_a_token_of_its_own(folders):
    """Words that share a piece would share a meaning: " backdrop" and column " b"."""
    _, processor = load(folders[0])
    tokens = tokens_of_words([(word,) for word in SCENE_WORDS], processor.tokenizer)
    assert {len(each) for each in tokens} == {1} and len({each[0] for each in tokens}) == len(SCENE_WORDS)


def test_words_are_summed_where_tokens_of_an_image_will_be(folders):
    """The language model's loss, against one conversation at a time, spelled out."""
    model, processor = load(folders[0])
    scenes = [draw_scene(0, index, SIDE) for index in range(3)]
    found = language_loss(model, processor, scenes, np.random.default_rng(0))
    rng, total, count = np.random.default_rng(0), 0.0, 0
    embeddings = model.get_input_embeddings().weight
    for scene in scenes:
        tokens = tokenise(scene_conversation("", scene, what_and_where(scene, rng)), processor, 9999)
        read, cells, place = [], words_of_cells(scene, TOKENS), 0
        for token in tokens.input_ids:
            if token != processor.image_token_id:
                read.append(embeddings[token])
                continue
            row, column = divmod(place, TOKENS + 1)
            words = cells[row * TOKENS + column] if column < TOKENS else ()
            read.append(
                sum(
                    (embeddings[processor.tokenizer(f" {word}").input_ids[0]] for word in words),
                    torch.zeros(embeddings.shape[1]),
                )
            )
            place += 1
        assert place == TOKENS * (TOKENS + 1)
        logits = model.language_model(inputs_embeds=torch.stack(read)[None]).logits[0].log_softmax(-1)
        for position, label in enumerate(tokens.labels[1:]):
            if label != LABEL_IGNORED:
                total, count = total - logits[position, label], count + 1
    torch.testing.assert_close(found, total / count)


def test_the_connectors_loss_is_that_of_each_word(folders):
    model, processor = load(folders[0])
    scenes = [draw_scene(0, index, SIDE) for index in range(2)]
    embeddings = model.get_input_embeddings().weight.detach().double()
    scale = embeddings.shape[1] ** 0.5 * (embeddings**2).mean()
    total, count = 0.0, 0
    for scene in scenes:
        (image,) = model.vision_model.encode(**processor.image_processor([scene.image]))
        tokens = image.tokens.double().view(TOKENS, TOKENS + 1, -1)[:, :TOKENS].flatten(0, 1)
        for token, words in zip(tokens, words_of_cells(scene, TOKENS), strict=True):
            likely = (embeddings @ token / scale).exp()
            for word in words:
                total, count = (
                    total - (likely[processor.tokenizer(f" {word}").input_ids[0]] / likely.sum()).log(),
                    count + 1,
                )
    torch.testing.assert_close(
        connector_loss(model, processor, scenes).double(), total / count, rtol=1e-4, atol=1e-5
    )


def test_the_encoders_loss_asks_of_objects_alone_what_objects_are(folders):
    model, _ = load(folders[0])
    encoder = model.vision_model.encoders[0]
    torch.manual_seed(0)
    heads = (
        torch.nn.Linear(encoder.width, sum(PICTURE_CLASSES)),
        torch.nn.Linear(encoder.width, sum(CELL_CLASSES)),
    )
    scenes = [draw_scene(0, index, SIDE) for index in range(2)]
    pictures, cells = (
        torch.stack([labels_of_picture(each) for each in scenes]),
        torch.stack([labels_of_cells(each, GRID) for each in scenes]),
    )
    found = encoder_loss(encoder, heads, [each.image for each in scenes], pictures, cells)
    patches = encoder(encoder.transform([each.image for each in scenes])).patch_map.flatten(2).mT
    expected, starts = 0.0, [0, *np.cumsum(CELL_CLASSES)]
    asked: list[list[torch.Tensor]] = [[] for _ in range(1 + len(CELL_CLASSES))]
    for patch, answers in zip(patches.flatten(0, 1), cells.flatten(0, 1), strict=True):
        losses = [
            -heads[1](patch)[start:end].log_softmax(0)[answer]
            for start, end, answer in zip(starts, starts[1:], answers, strict=False)
        ]
        asked[0].append(losses[0])
        for number, loss in enumerate(losses, 1):
            asked[number] += [loss] if answers[0] else []
    expected = sum(torch.stack(each).mean() for each in asked) + cross_entropies(
        heads[0](patches.mean(1)), pictures, PICTURE_CLASSES
    )
    torch.testing.assert_close(found, expected)


def test_a_connector_comes_to_say_what_lies_under_its_tokens(folders, monkeypatch):
    """After some steps the colour's word is the likeliest colour more often than for the cell
    beside it."""
    monkeypatch.setattr(stand_ins, "CONNECTOR_STEPS", 60)
    model, processor = load(folders[0])
    scenes = [draw_scene(0, index, SIDE) for index in range(32)]
    stand_ins.train_connector(model, processor, scenes, 0)
    with torch.no_grad():
        images = model.vision_model.encode(**processor.image_processor([scene.image for scene in scenes]))
    tokens = torch.stack([image.tokens[image.cells] for image in images]).flatten(0, 1)
    colours = torch.tensor(tokens_of_words([(colour,) for colour in COLOURS], processor.tokenizer)).squeeze(1)
    said = (tokens @ model.get_input_embeddings().weight[colours].mT).argmax(-1).detach()
    labels = torch.stack([labels_of_cells(scene, TOKENS) for scene in scenes])[..., 0].flatten() - 1
    right, beside = (
        float((said == shifted)[(labels >= 0) & (shifted >= 0)].float().mean())
        for shifted in (labels, labels.roll(1))
    )
    assert right > 0.3 and right > beside + 0.05
