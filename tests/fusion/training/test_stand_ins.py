"""Small encoders, a small language model and the connector between them learn from labels of drawn
scenes."""

import numpy as np
import torch

from fusion.conversations.conversation import scene_conversation
from fusion.conversations.scene_turns import what_and_where, words_of_cells
from fusion.conversations.tokens import tokenise
from fusion.labels import LABEL_IGNORED
from fusion.training import stand_ins
from fusion.training.small_default import GRID, SIDE, TOKEN_GRID
from fusion.training.stand_ins import (
    CELL_CLASSES,
    PICTURE_CLASSES,
    QuestionHeads,
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


def test_words_are_summed_where_tokens_of_an_image_will_be(small_defaults, load_small):
    """The language model's loss, against one conversation at a time, spelled out."""
    model, processor = load_small(small_defaults[0])
    scenes = [draw_scene(0, index, SIDE) for index in range(3)]
    found = language_loss(model, processor, scenes, np.random.default_rng(0))
    rng, total, count = np.random.default_rng(0), 0.0, 0
    embeddings = model.get_input_embeddings().weight
    for scene in scenes:
        tokens = tokenise(scene_conversation("", scene, what_and_where(scene, rng)), processor, 9999)
        read, cells, place = [], words_of_cells(scene, TOKEN_GRID), 0
        for token in tokens.input_ids:
            if token != processor.image_token_id:
                read.append(embeddings[token])
                continue
            row, column = divmod(place, TOKEN_GRID + 1)
            words = cells[row * TOKEN_GRID + column] if column < TOKEN_GRID else ()
            read.append(
                sum(
                    (embeddings[processor.tokenizer(f" {word}").input_ids[0]] for word in words),
                    torch.zeros(embeddings.shape[1]),
                )
            )
            place += 1
        assert place == TOKEN_GRID * (TOKEN_GRID + 1)
        logits = model.language_model(inputs_embeds=torch.stack(read)[None]).logits[0].log_softmax(-1)
        for position, label in enumerate(tokens.labels[1:]):
            if label != LABEL_IGNORED:
                total -= logits[position, label]
                count += 1
    torch.testing.assert_close(found, total / count)


def test_the_connectors_loss_is_that_of_each_word(small_defaults, load_small):
    model, processor = load_small(small_defaults[0])
    scenes = [draw_scene(0, index, SIDE) for index in range(2)]
    embeddings = model.get_input_embeddings().weight.detach().double()
    scale = embeddings.shape[1] ** 0.5 * (embeddings**2).mean()
    total, count = 0.0, 0
    for scene in scenes:
        (image,) = model.vision_model.encode(**processor.image_processor([scene.image]))
        tokens = image.tokens.double().view(TOKEN_GRID, TOKEN_GRID + 1, -1)[:, :TOKEN_GRID].flatten(0, 1)
        for token, words in zip(tokens, words_of_cells(scene, TOKEN_GRID), strict=True):
            likely = (embeddings @ token / scale).exp()
            for word in words:
                token_of_word = processor.tokenizer(f" {word}").input_ids[0]
                total -= (likely[token_of_word] / likely.sum()).log()
                count += 1
    torch.testing.assert_close(
        connector_loss(model, processor, scenes).double(), total / count, rtol=1e-4, atol=1e-5
    )


def test_the_encoders_loss_asks_of_objects_alone_what_objects_are(small_defaults, load_small):
    model, _ = load_small(small_defaults[0])
    encoder = model.vision_model.encoders[0]
    torch.manual_seed(0)
    heads = QuestionHeads(encoder.width)
    scenes = [draw_scene(0, index, SIDE) for index in range(2)]
    pictures = torch.stack([labels_of_picture(each) for each in scenes])
    cells = torch.stack([labels_of_cells(each, GRID) for each in scenes])
    found = encoder_loss(encoder, heads, [each.image for each in scenes], pictures, cells)
    patches = encoder(encoder.transform([each.image for each in scenes])).patch_map.flatten(2).mT
    expected, starts = 0.0, [0, *np.cumsum(CELL_CLASSES)]
    asked: list[list[torch.Tensor]] = [[] for _ in range(1 + len(CELL_CLASSES))]
    for patch, answers in zip(patches.flatten(0, 1), cells.flatten(0, 1), strict=True):
        losses = [
            -heads.cells(patch)[start:end].log_softmax(0)[answer]
            for start, end, answer in zip(starts, starts[1:], answers, strict=False)
        ]
        asked[0].append(losses[0])
        for number, loss in enumerate(losses, 1):
            asked[number] += [loss] if answers[0] else []
    expected = sum(torch.stack(each).mean() for each in asked) + cross_entropies(
        heads.pictures(patches.mean(1)), pictures, PICTURE_CLASSES
    )
    torch.testing.assert_close(found, expected)


def test_a_connector_comes_to_say_what_lies_under_its_tokens(small_defaults, load_small, monkeypatch):
    """After some steps the colour's word is the likeliest colour more often than for the cell
    beside it."""
    monkeypatch.setattr(stand_ins, "CONNECTOR_STEPS", 60)
    model, processor = load_small(small_defaults[0])
    scenes = [draw_scene(0, index, SIDE) for index in range(32)]
    stand_ins.train_connector(model, processor, scenes, 0)
    with torch.no_grad():
        images = model.vision_model.encode(**processor.image_processor([scene.image for scene in scenes]))
    tokens = torch.stack([image.tokens[image.cells] for image in images]).flatten(0, 1)
    colours = torch.tensor(tokens_of_words([(colour,) for colour in COLOURS], processor.tokenizer)).squeeze(1)
    said = (tokens @ model.get_input_embeddings().weight[colours].mT).argmax(-1).detach()
    labels = torch.stack([labels_of_cells(scene, TOKEN_GRID) for scene in scenes])[..., 0].flatten() - 1
    right, beside = (
        float((said == shifted)[(labels >= 0) & (shifted >= 0)].float().mean())
        for shifted in (labels, labels.roll(1))
    )
    assert right > 0.3 and right > beside + 0.05
