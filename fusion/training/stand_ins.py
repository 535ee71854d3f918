"""Stand-ins for published models: small parts that learn about drawn scenes, where the user names no
model.

Published encoders and language models come with weeks of training, and their connector then sees
half a million captions. Here each part gets a minute of the cheapest kind of training, labels. The
order matters, since each part learns from what the one before it can tell:

1. `train_encoders`: the encoders learn to see. Linear heads ask, about the picture, the main
   object's category, colour and texture and how many there are of its category; about every cell,
   what is there and where its middle is. Without this, nothing but colours was learned in a quarter
   of an hour.
2. `train_language_model`: the language model learns to find what a word names. In the place of an
   image's tokens it reads sums of the words for what is there, and says what and where the object
   of a colour is. This is learned all at once, and only if it is asked about little else.
3. `train_connector`: the connector learns to make tokens that are like those sums ("patch-aligned
   training", Jiang et al. 2025, arXiv 2505.17316). It would get no gradient for what the language
   model cannot find.

Without the last two, nothing was found by its name.
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
from vision_core.scenes.language import COLUMNS, NUMBER_WORDS, SceneObject
from vision_core.scenes.layout import MAX_COMPANIONS
from vision_core.scenes.textures import TEXTURES

SCENES = 6000
ENCODER_STEPS = 700
ENCODER_BATCH = 32
LANGUAGE_STEPS = 400
LANGUAGE_BATCH = 8
CONNECTOR_STEPS = 150
CONNECTOR_BATCH = 32
NO_LIMIT = 2**20  # tokens of a conversation
# The number of answers to each question about a picture, and about a cell.
PICTURE_CLASSES = (len(CATEGORIES), len(COLOURS), len(TEXTURES), MAX_COMPANIONS + 1)
CELL_CLASSES = (
    1 + len(COLOURS),
    len(TEXTURES),
    len(CATEGORIES),
    len(COLUMNS),
    len(COLUMNS),
    len(NUMBER_WORDS),
)


def draw_scenes(side: int, seed: int) -> list[Scene]:
    """The scenes that all parts learn from, `side` pixels wide."""
    numbers = tqdm(range(SCENES), desc="scenes", unit="scene", leave=False, disable=not is_first_launched())
    return [draw_scene(seed, index, side) for index in numbers]


# First: the encoders learn to see.


class QuestionHeads(nn.Module):
    """Linear heads that answer the questions about pictures and about cells; they are thrown away
    after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pictures = nn.Linear(width, sum(PICTURE_CLASSES))
        self.cells = nn.Linear(width, sum(CELL_CLASSES))


def train_encoders(encoders: Sequence[Encoder], scenes: Sequence[Scene], seed: int) -> None:
    """Train each encoder on the labels of pictures and of cells."""
    grid, _ = encoders[0].grid(*scenes[0].masks.shape)
    picture_labels = torch.stack([labels_of_picture(scene) for scene in scenes])
    cell_labels = torch.stack([labels_of_cells(scene, grid) for scene in scenes])
    for number, encoder in enumerate(encoders, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "stand-in", number))
            heads = QuestionHeads(encoder.width)

        def loss(step: int, encoder: Encoder = encoder, heads: QuestionHeads = heads) -> Tensor:
            chosen = sample_numbers(len(scenes), ENCODER_BATCH, seed, step)
            images = [scenes[index].image for index in chosen]
            return encoder_loss(encoder, heads, images, picture_labels[chosen], cell_labels[chosen])

        encoder.freeze(False)
        encoder.train()
        parameters = [*encoder.parameters(), *heads.parameters()]
        minimise(loss, parameters, ENCODER_STEPS, 1e-3, f"encoder {number} of {len(encoders)} learns to see")
        encoder.freeze()
        encoder.untrained = False


def encoder_loss(
    encoder: Encoder, heads: QuestionHeads, images: list[Tensor], picture_labels: Tensor, cell_labels: Tensor
) -> Tensor:
    """The sum of the cross-entropies of all questions.

    picture_labels: `[B, 4]`; their questions are asked of the mean of the patches. cell_labels: `[B,
    N, 6]`; their questions are asked of each patch.

    The first question about a cell, what is there, is asked of all cells and once more of those with
    an object; the others are asked of those with an object alone. The backdrop's many cells would
    drown them.
    """
    patches = encoder(encoder.transform(images)).patch_map.flatten(2).mT  # [B, N, D]
    of_pictures = cross_entropies(heads.pictures(patches.mean(1)), picture_labels, PICTURE_CLASSES)
    logits = heads.cells(patches).flatten(0, 1)  # [B * N, sum(CELL_CLASSES)]
    labels = cell_labels.flatten(0, 1)  # [B * N, 6]
    what_is_there = F.cross_entropy(logits[:, : CELL_CLASSES[0]], labels[:, 0])
    has_object = labels[:, 0] > 0
    of_objects = cross_entropies(logits[has_object], labels[has_object], CELL_CLASSES)
    return of_pictures + what_is_there + of_objects


def cross_entropies(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """The sum over several questions. logits: `[B, sum(classes)]`, those of each question side by
    side. labels: `[B, len(classes)]`."""
    questions = zip(logits.split(classes, dim=1), labels.T, strict=True)
    return sum(F.cross_entropy(of_question, label) for of_question, label in questions)


def labels_of_picture(scene: Scene) -> Tensor:
    """`[4]`: the main object's category, colour and texture, and how many others have its
    category."""
    main = scene.objects[0]
    categories = [each.category for each in scene.objects]
    labels = [
        CATEGORIES.index(main.category),
        COLOURS.index(main.colour),
        list(TEXTURES).index(main.texture),
        categories.count(main.category) - 1,
    ]
    return torch.tensor(labels)


def labels_of_cells(scene: Scene, grid: int) -> Tensor:
    """`[grid * grid, 6]`: the labels of each cell's object, or zeros for the backdrop."""
    backdrop = [0] * len(CELL_CLASSES)
    labels = [backdrop, *(labels_of_object(each, scene) for each in scene.objects)]
    return torch.tensor(labels)[object_of_cells(scene.masks, grid, len(labels))]


def labels_of_object(seen: SceneObject, scene: Scene) -> list[int]:
    """An object's colour, counted from 1, texture, category, column, row and metres."""
    return [
        1 + COLOURS.index(seen.colour),
        list(TEXTURES).index(seen.texture),
        CATEGORIES.index(seen.category),
        *seen.place(len(scene.masks)),
    ]


# Second: the language model learns to find what a word names.


def train_language_model(
    model: FusionVlmForConditionalGeneration, processor: FusionProcessor, scenes: Sequence[Scene], seed: int
) -> None:
    """Train the language model on what and where the objects are, with words in the place of the
    image."""

    def loss(step: int) -> Tensor:
        batch = [scenes[index] for index in sample_numbers(len(scenes), LANGUAGE_BATCH, seed, step)]
        return language_loss(model, processor, batch, numpy_generator("stand-in questions", seed, step))

    language_model = model.language_model
    language_model.train()
    parameters = list(language_model.parameters())
    minimise(loss, parameters, LANGUAGE_STEPS, 2e-3, "language model learns to find")
    language_model.eval()


def language_loss(
    model: FusionVlmForConditionalGeneration,
    processor: FusionProcessor,
    scenes: Sequence[Scene],
    rng: np.random.Generator,
) -> Tensor:
    """The language model's own loss per token of the answers, where the token of a cell is the sum of
    its words, and that of a newline is zero."""
    grid = model.config.vision_config.grid
    embeddings = model.get_input_embeddings()
    padding = processor.tokenizer.pad_token_id
    asked = []
    words: list[Sequence[str]] = []
    for scene in scenes:
        conversation = scene_conversation("a stand-in's", scene, what_and_where(scene, rng))
        asked.append(tokenise(conversation, processor, NO_LIMIT))
        words += with_newlines(words_of_cells(scene, grid), grid)
    ids = pad_rows([each.input_ids for each in asked], padding)
    labels = pad_rows([each.labels for each in asked], LABEL_IGNORED)
    sums = sums_of_words(words, processor.tokenizer, embeddings.weight)
    is_of_image = (ids == processor.image_token_id)[..., None]  # [B, T, 1]
    read = embeddings(ids).masked_scatter(is_of_image, sums)
    return model.language_model(inputs_embeds=read, attention_mask=ids != padding, labels=labels).loss


def pad_rows(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """`[B, T]`, padded on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)


def with_newlines(cells: Sequence[Sequence[str]], grid: int) -> list[Sequence[str]]:
    """The words of all cells, with none at the newline token behind each row."""
    words: list[Sequence[str]] = []
    for row in range(grid):
        words += [*cells[row * grid : (row + 1) * grid], ()]
    return words


def sums_of_words(
    cells: Iterable[Sequence[str]], tokenizer: PreTrainedTokenizerBase, embeddings: Tensor
) -> Tensor:
    """`[cells, H]`: the sum of the embeddings of the tokens of each cell's words."""
    ids = tokens_of_words(cells, tokenizer)
    starts = torch.tensor([0, *map(len, ids[:-1])]).cumsum(0)
    return F.embedding_bag(torch.tensor(list(chain(*ids))), embeddings, starts, mode="sum")


def tokens_of_words(cells: Iterable[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of each cell's words, as they are within a text: a space before every word."""
    texts = [text_of(words) for words in cells]
    return tokenizer(texts, add_special_tokens=False).input_ids


def text_of(words: Iterable[str]) -> str:
    """The words, with a space before each."""
    return "".join(f" {word}" for word in words)


# Third: the connector learns to make tokens that are like those sums.


def train_connector(
    model: FusionVlmForConditionalGeneration, processor: FusionProcessor, scenes: Sequence[Scene], seed: int
) -> None:
    """Train the connector on the words for what is under its tokens."""

    def loss(step: int) -> Tensor:
        batch = [scenes[index] for index in sample_numbers(len(scenes), CONNECTOR_BATCH, seed, step)]
        return connector_loss(model, processor, batch)

    connector = model.vision_model.connector
    connector.train()
    minimise(loss, list(connector.parameters()), CONNECTOR_STEPS, 2e-3, "connector learns words")
    connector.eval()


def connector_loss(
    model: FusionVlmForConditionalGeneration, processor: FusionProcessor, scenes: Sequence[Scene]
) -> Tensor:
    """The mean of -log p over the tokens of all cells' words, of which an object has six and the
    backdrop has one. Over the vocabulary,

        p(word | token) = softmax of token . embedding(word) / (sqrt(H) rms^2)

    with the rms of the embeddings, so that a token that is the sum of its words' embeddings makes
    them the likeliest.
    """
    embeddings = model.get_input_embeddings().weight.detach()  # [V, H]
    images = model.vision_model.encode(**processor.image_processor([scene.image for scene in scenes]))
    scores = torch.cat([image.tokens[image.cells] for image in images]) @ embeddings.mT  # [cells, V]
    scale = embeddings.shape[1] ** 0.5 * embeddings.square().mean()
    log_likelihood = (scores / scale).log_softmax(-1)
    grid = model.config.vision_config.grid
    words = chain.from_iterable(words_of_cells(scene, grid) for scene in scenes)
    ids = tokens_of_words(words, processor.tokenizer)
    lengths = torch.tensor(list(map(len, ids)))
    cell_of_token = torch.arange(len(ids)).repeat_interleave(lengths)
    return -log_likelihood[cell_of_token, torch.tensor(list(chain(*ids)))].mean()


# What all three share.


def minimise(
    loss: Callable[[int], Tensor],
    parameters: list[nn.Parameter],
    steps: int,
    learning_rate: float,
    title: str,
) -> None:
    """Minimise `loss(step)` by AdamW; the rate rises for a fifteenth of the steps and falls along a
    cosine. title: of the progress bar."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(steps // 15, 1), steps)
    for step in tqdm(range(steps), desc=title, unit="step", disable=not is_first_launched()):
        loss(step).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def sample_numbers(count: int, batch: int, seed: int, step: int) -> Tensor:
    """`[batch]` numbers below `count`, drawn with replacement."""
    return torch.from_numpy(numpy_generator("stand-in batch", seed, step).integers(count, size=batch))
