"""Small models that know drawn scenes: stand-ins for the published ones where none is named.

Published models come with weeks of training, and a connector sees half a million captions.
Stand-ins get a minute each of the cheapest kind of training that there is, labels:

* an encoder is told, of the picture, its main object's category, colour and surface and how many
there are of that kind; of every cell, what is seen there and
  where the middle of it is;
* the language model learns to find what a word names: where an image's tokens will be it reads sums
of the words for what lies there, and says what and where
  the object of a colour is;
* the connector learns to make tokens that are like those sums ("patch-aligned training", Jiang et
al. 2025, arXiv 2505.17316).

Without the first, nothing but colours was learnt in a quarter of an hour; without the other two,
nothing was found by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from encoders.base import Encoder
from fusion import FusionProcessor, FusionVlmForConditionalGeneration
from fusion.conversations.conversation import scene_conversation
from fusion.conversations.scene_turns import object_of_cells, what_and_where, words_of_cells
from fusion.conversations.tokens import tokenise
from fusion.labels import LABEL_IGNORED
from vision_core.processes.launchers import is_first_launched
from vision_core.randomness import numpy_generator, seed_of
from vision_core.scenes.colours import COLOURS
from vision_core.scenes.draw import CATEGORIES, Scene, draw_scene
from vision_core.scenes.language import COLUMNS, NUMBER_WORDS
from vision_core.scenes.layout import MAX_COMPANIONS
from vision_core.scenes.textures import TEXTURES

SCENES = 6000
ENCODER_STEPS, LANGUAGE_STEPS, CONNECTOR_STEPS = 700, 400, 150
ENCODER_BATCH, LANGUAGE_BATCH, CONNECTOR_BATCH = 32, 8, 32
NO_LIMIT = 2**20  # tokens of a conversation
# classes of each question about a picture, and about a cell
PICTURE_CLASSES = (len(CATEGORIES), len(COLOURS), len(TEXTURES), MAX_COMPANIONS + 1)
CELL_CLASSES = (
    1 + len(COLOURS),
    len(TEXTURES),
    len(CATEGORIES),
    len(COLUMNS),
    len(COLUMNS),
    len(NUMBER_WORDS),
)


def drawn_scenes(side: int, seed: int) -> list[Scene]:
    """What all of them learn from, `side` pixels wide."""
    numbers = tqdm(range(SCENES), desc="scenes", unit="scene", leave=False, disable=not is_first_launched())
    return [draw_scene(seed, index, side) for index in numbers]


def train_encoders(encoders: Sequence[Encoder], scenes: Sequence[Scene], seed: int) -> None:
    """On labels of pictures and of cells, by linear heads that are thrown away."""
    grid = encoders[0].grid(*scenes[0].masks.shape)[0]
    pictures = torch.stack([labels_of_picture(scene) for scene in scenes])
    cells = torch.stack([labels_of_cells(scene, grid) for scene in scenes])
    for number, encoder in enumerate(encoders, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "stand-in", number))
            heads = (
                nn.Linear(encoder.width, sum(PICTURE_CLASSES)),
                nn.Linear(encoder.width, sum(CELL_CLASSES)),
            )

        def loss(step: int, encoder: Encoder = encoder, heads: tuple[nn.Linear, nn.Linear] = heads) -> Tensor:
            chosen = sampled(len(scenes), ENCODER_BATCH, seed, step)
            return encoder_loss(
                encoder, heads, [scenes[number].image for number in chosen], pictures[chosen], cells[chosen]
            )

        encoder.freeze(False)
        encoder.train()
        parameters = [*encoder.parameters(), *heads[0].parameters(), *heads[1].parameters()]
        minimise(loss, parameters, ENCODER_STEPS, 1e-3, f"encoder {number} of {len(encoders)} learns to see")
        encoder.freeze()
        encoder.untrained = False


def encoder_loss(
    encoder: Encoder,
    heads: tuple[nn.Linear, nn.Linear],
    images: list[Tensor],
    pictures: Tensor,
    cells: Tensor,
) -> Tensor:
    """Cross-entropies summed over the questions: of pictures `[B, 4]` from the mean of the patches,
    of cells `[B, N, 6]` from each.

    All questions but the first, what is there, are asked of objects' cells alone; that one is asked
    of them twice: the backdrop's many cells would drown them.
    """
    patches = encoder(encoder.transform(images)).patch_map.flatten(2).mT
    logits, answers = heads[1](patches).flatten(0, 1), cells.flatten(0, 1)
    seen = answers[:, 0] > 0
    what_is_there = F.cross_entropy(logits[:, : CELL_CLASSES[0]], answers[:, 0])
    of_objects = cross_entropies(logits[seen], answers[seen], CELL_CLASSES)
    return cross_entropies(heads[0](patches.mean(1)), pictures, PICTURE_CLASSES) + what_is_there + of_objects


def cross_entropies(logits: Tensor, answers: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum over several questions. logits: `[N, sum(sizes)]`, those of each question side by
    side; answers: `[N, len(sizes)]`."""
    return sum(
        F.cross_entropy(each, answer)
        for each, answer in zip(logits.split(sizes, dim=1), answers.T, strict=True)
    )


def labels_of_picture(scene: Scene) -> Tensor:
    """Classes `[4]`: the main object's category, colour and surface, and how many others are of its
    category."""
    main, kinds = scene.objects[0], [each.category for each in scene.objects]
    return torch.tensor(
        [
            CATEGORIES.index(main.category),
            COLOURS.index(main.colour),
            list(TEXTURES).index(main.texture),
            kinds.count(main.category) - 1,
        ]
    )


def labels_of_cells(scene: Scene, grid: int) -> Tensor:
    """Classes `[grid * grid, 6]`: of a cell's object its colour, from 1, surface, category, column,
    row and metres; of the backdrop zeros."""
    objects = [
        [
            1 + COLOURS.index(each.colour),
            list(TEXTURES).index(each.texture),
            CATEGORIES.index(each.category),
            *each.place(len(scene.masks)),
        ]
        for each in scene.objects
    ]
    return torch.tensor([[0] * len(CELL_CLASSES), *objects])[
        object_of_cells(scene.masks, grid, 1 + len(objects))
    ]


def train_language_model(
    model: FusionVlmForConditionalGeneration, processor: FusionProcessor, scenes: Sequence[Scene], seed: int
) -> None:
    """On what and where the objects are, with words for the image."""

    def loss(step: int) -> Tensor:
        batch = [scenes[number] for number in sampled(len(scenes), LANGUAGE_BATCH, seed, step)]
        return language_loss(model, processor, batch, numpy_generator("stand-in questions", seed, step))

    model.language_model.train()
    minimise(
        loss, list(model.language_model.parameters()), LANGUAGE_STEPS, 2e-3, "language model learns to find"
    )
    model.language_model.eval()


def language_loss(
    model: FusionVlmForConditionalGeneration,
    processor: FusionProcessor,
    scenes: Sequence[Scene],
    rng: np.random.Generator,
) -> Tensor:
    """The language model's own, per token of the answers, where each cell's token is the sum of its
    words and a newline's is nothing."""
    grid, embeddings, padding = (
        model.config.vision_config.grid,
        model.get_input_embeddings(),
        processor.tokenizer.pad_token_id,
    )
    asked = [
        tokenise(scene_conversation("a stand-in's", scene, what_and_where(scene, rng)), processor, NO_LIMIT)
        for scene in scenes
    ]
    ids = pad_sequence(
        [torch.tensor(each.input_ids) for each in asked], batch_first=True, padding_value=padding
    )
    labels = pad_sequence(
        [torch.tensor(each.labels) for each in asked], batch_first=True, padding_value=LABEL_IGNORED
    )
    words = chain(*(with_newlines(words_of_cells(scene, grid), grid) for scene in scenes))
    sums = sums_of_words(words, processor.tokenizer, embeddings.weight)
    read = embeddings(ids).masked_scatter((ids == processor.image_token_id)[..., None], sums)
    return model.language_model(inputs_embeds=read, attention_mask=ids != padding, labels=labels).loss


def with_newlines(cells: Sequence[Sequence[str]], grid: int) -> list[Sequence[str]]:
    """Nothing is said at the token behind each row."""
    return [words for row in range(grid) for words in (*cells[row * grid : (row + 1) * grid], ())]


def sums_of_words(
    cells: Iterable[Sequence[str]], tokenizer: PreTrainedTokenizerBase, embeddings: Tensor
) -> Tensor:
    """Of each cell the sum of the embeddings of its words' tokens: `[cells, H]`."""
    ids = tokens_of_words(cells, tokenizer)
    starts = torch.tensor([0, *map(len, ids[:-1])]).cumsum(0)
    return F.embedding_bag(torch.tensor(list(chain(*ids))), embeddings, starts, mode="sum")


def tokens_of_words(cells: Iterable[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Of each cell the tokens of its words, as they stand within a text."""
    return tokenizer(
        ["".join(f" {word}" for word in words) for words in cells], add_special_tokens=False
    ).input_ids


def train_connector(
    model: FusionVlmForConditionalGeneration, processor: FusionProcessor, scenes: Sequence[Scene], seed: int
) -> None:
    """On the words for what lies under its tokens."""

    def loss(step: int) -> Tensor:
        return connector_loss(
            model, processor, [scenes[number] for number in sampled(len(scenes), CONNECTOR_BATCH, seed, step)]
        )

    connector = model.vision_model.connector
    connector.train()
    minimise(loss, list(connector.parameters()), CONNECTOR_STEPS, 2e-3, "connector learns words")
    connector.eval()


def connector_loss(
    model: FusionVlmForConditionalGeneration, processor: FusionProcessor, scenes: Sequence[Scene]
) -> Tensor:
    """The mean of -log p over all tokens of all cells' words, of which an object has six and the
    backdrop one. Of the whole vocabulary,

    p(word | token) = softmax of token . embedding(word) / (sqrt(H) rms^2), with rms that of the
    embeddings,

    so that a token which is the sum of its words' embeddings makes them the likeliest.
    """
    embeddings = model.get_input_embeddings().weight.detach()
    images = model.vision_model.encode(**processor.image_processor([scene.image for scene in scenes]))
    scores = torch.cat([image.tokens[image.cells] for image in images]) @ embeddings.mT
    likely = (scores / (embeddings.shape[1] ** 0.5 * embeddings.square().mean())).log_softmax(-1)
    cells = (words for scene in scenes for words in words_of_cells(scene, model.config.vision_config.grid))
    ids = tokens_of_words(cells, processor.tokenizer)
    return -likely[
        torch.arange(len(ids)).repeat_interleave(torch.tensor(list(map(len, ids)))),
        torch.tensor(list(chain(*ids))),
    ].mean()


def minimise(
    loss: Callable[[int], Tensor],
    parameters: list[nn.Parameter],
    steps: int,
    learning_rate: float,
    title: str,
) -> None:
    """`loss(step)`, by AdamW; the rate rises for a fifteenth of the steps and falls along a
    cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(steps // 15, 1), steps)
    for step in tqdm(range(steps), desc=title, unit="step", disable=not is_first_launched()):
        loss(step).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def sampled(count: int, batch: int, seed: int, step: int) -> Tensor:
    """`[batch]` numbers below `count`."""
    return torch.from_numpy(numpy_generator("stand-in batch", seed, step).integers(count, size=batch))
