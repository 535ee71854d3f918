"""Small models that know drawn scenes: stand-ins for the published ones where none is named.

Published models come with weeks of training, and a connector sees half a million captions. Stand-ins get a minute each of the cheapest kind of training that
there is, labels:

* an encoder is told, of the picture, its main object's category, colour and surface and how many there are of that kind; of every cell, what is seen there and
  where the middle of it is;
* the language model learns to find what a word names: where an image's tokens will be it reads sums of the words for what lies there, and says what and where
  the object of a colour is;
* the connector learns to make tokens that are like those sums ("patch-aligned training", Jiang et al. 2025, arXiv 2505.17316).

Without the first, nothing but colours was learnt in a quarter of an hour; without the other two, nothing was found by its name.
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
from fusion.processing_fusion import IMAGE_TOKEN
from recipes.chat_tokens import IGNORED, tokenise
from recipes.conversations import Conversation, Message
from recipes.scene_turns import covering, what_and_where, words_of_cells
from vision_core.distributed import is_first_launched
from vision_core.images.scene_colours import COLOURS
from vision_core.images.scene_language import COLUMNS, NUMBER_WORDS
from vision_core.images.scene_layout import MAX_COMPANIONS
from vision_core.images.scene_textures import TEXTURES
from vision_core.images.scenes import CATEGORIES, Scene, draw_scene
from vision_core.randomness import numpy_generator, seed_of

SCENES = 6000
ENCODER_STEPS, LANGUAGE_STEPS, CONNECTOR_STEPS = 700, 400, 150
ENCODER_BATCH, LANGUAGE_BATCH, CONNECTOR_BATCH = 32, 8, 32
OF_PICTURE = (len(CATEGORIES), len(COLOURS), len(TEXTURES), MAX_COMPANIONS + 1)  # how many answers each question has
OF_CELL = (1 + len(COLOURS), len(TEXTURES), len(CATEGORIES), len(COLUMNS), len(COLUMNS), len(NUMBER_WORDS))


def drawn_scenes(side: int, seed: int) -> list[Scene]:
    """What all of them learn from, `side` pixels wide."""
    numbers = tqdm(range(SCENES), desc="scenes", unit="scene", leave=False, disable=not is_first_launched())
    return [draw_scene(seed, index, side) for index in numbers]


def train_encoders(encoders: Sequence[Encoder], scenes: Sequence[Scene], seed: int) -> None:
    """Each in turn."""
    for number, encoder in enumerate(encoders, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "stand-in", number))
            train_encoder(encoder, scenes, seed, f"encoder {number} of {len(encoders)} learns to see")


def train_encoder(encoder: Encoder, scenes: Sequence[Scene], seed: int, title: str) -> None:
    """On labels of pictures and of cells, by linear heads that are thrown away."""
    grid = encoder.grid(*scenes[0].masks.shape)[0]
    pictures = torch.stack([labels_of_picture(scene) for scene in scenes])
    cells = torch.stack([labels_of_cells(scene, grid) for scene in scenes])
    picture_head, cell_head = nn.Linear(encoder.width, sum(OF_PICTURE)), nn.Linear(encoder.width, sum(OF_CELL))

    def loss(step: int) -> Tensor:
        chosen = drawn(len(scenes), ENCODER_BATCH, seed, step)
        patches = encoder(encoder.transform([scenes[number].image for number in chosen])).patch_map.flatten(2).mT
        logits, answers = cell_head(patches).flatten(0, 1), cells[chosen].flatten(0, 1)
        seen = answers[:, 0] > 0  # most cells are of the backdrop: counted with the others, they would drown what objects are
        what_is_there = F.cross_entropy(logits[:, : OF_CELL[0]], answers[:, 0])
        return (
            cross_entropies(picture_head(patches.mean(1)), pictures[chosen], OF_PICTURE)
            + what_is_there
            + cross_entropies(logits[seen], answers[seen], OF_CELL)
        )

    encoder.freeze(False)
    encoder.train()
    learn(loss, [*encoder.parameters(), *picture_head.parameters(), *cell_head.parameters()], ENCODER_STEPS, 1e-3, title)
    encoder.freeze()
    encoder.untrained = False


def labels_of_picture(scene: Scene) -> Tensor:
    """Answers `[4]` as `OF_PICTURE` counts them: the main object's category, colour and surface, and how many others are of its category."""
    main, kinds = scene.objects[0], [each.category for each in scene.objects]
    return torch.tensor(
        [CATEGORIES.index(main.category), COLOURS.index(main.colour), list(TEXTURES).index(main.texture), kinds.count(main.category) - 1]
    )


def labels_of_cells(scene: Scene, grid: int) -> Tensor:
    """Answers `[grid * grid, 6]` as `OF_CELL` counts them: of the object that covers a cell its colour, from 1, surface, category, column, row and metres; of
    the backdrop zeros."""
    objects = []
    for each in scene.objects:
        place = each.place(len(scene.masks))
        what = [1 + COLOURS.index(each.colour), list(TEXTURES).index(each.texture), CATEGORIES.index(each.category)]
        objects.append([*what, COLUMNS.index(place.column), int(place.row) - 1, NUMBER_WORDS.index(place.metres)])
    return torch.tensor([[0] * len(OF_CELL), *objects])[covering(scene.masks, grid, 1 + len(objects))]


def train_language_model(model: FusionVlmForConditionalGeneration, processor: FusionProcessor, scenes: Sequence[Scene], seed: int) -> None:
    """On what and where the objects are, with words for the image."""
    grid = model.config.vision_config.grid
    embeddings = model.get_input_embeddings()

    def loss(step: int) -> Tensor:
        batch = [scenes[number] for number in drawn(len(scenes), LANGUAGE_BATCH, seed, step)]
        rng = numpy_generator("stand-in questions", seed, step)
        asked = [tokenise(conversation(scene, rng), processor, 2**20) for scene in batch]
        ids = pad_sequence(
            [torch.tensor(each.input_ids) for each in asked], batch_first=True, padding_value=processor.tokenizer.pad_token_id
        )
        labels = pad_sequence([torch.tensor(each.labels) for each in asked], batch_first=True, padding_value=IGNORED)
        words = torch.cat(
            [sums_of_words(with_newlines(words_of_cells(scene, grid), grid), processor.tokenizer, embeddings.weight) for scene in batch]
        )
        read = embeddings(ids).masked_scatter((ids == processor.image_token_id)[..., None], words)
        return model.language_model(inputs_embeds=read, attention_mask=ids != processor.tokenizer.pad_token_id, labels=labels).loss

    model.language_model.train()
    learn(loss, list(model.language_model.parameters()), LANGUAGE_STEPS, 2e-3, "language model learns to find")
    model.language_model.eval()


def conversation(scene: Scene, rng: np.random.Generator) -> Conversation:
    """About all objects of a scene."""
    messages = [
        Message(role, text) for each in what_and_where(scene, rng) for role, text in (("user", each.text), ("assistant", each.answer))
    ]
    messages[0] = Message("user", f"{IMAGE_TOKEN}\n{messages[0].text}")
    return Conversation("a scene", tuple(messages), (scene.image,))


def with_newlines(cells: Sequence[Sequence[str]], grid: int) -> list[Sequence[str]]:
    """Nothing is said at the token behind each row."""
    return [words for row in range(grid) for words in (*cells[row * grid : (row + 1) * grid], ())]


def sums_of_words(cells: Iterable[Sequence[str]], tokenizer: PreTrainedTokenizerBase, embeddings: Tensor) -> Tensor:
    """Of each cell the sum of the embeddings of its words' tokens: `[cells, H]`."""
    ids = [ids_of(words, tokenizer) for words in cells]
    starts = torch.tensor([0, *map(len, ids[:-1])]).cumsum(0)
    return F.embedding_bag(torch.tensor(list(chain(*ids))), embeddings, starts, mode="sum")


def ids_of(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of words as they stand within a text."""
    return tokenizer("".join(f" {word}" for word in words), add_special_tokens=False).input_ids


def train_connector(model: FusionVlmForConditionalGeneration, processor: FusionProcessor, scenes: Sequence[Scene], seed: int) -> None:
    """On the words for what lies under its tokens: a token looks like the sum of their embeddings, so that of all words they are the likeliest.

    p(word | token) = softmax over all words of token . embedding(word) / (sqrt(H) rms^2), where rms is that of the embeddings.
    """
    grid, connector = model.config.vision_config.grid, model.vision_model.connector
    embeddings = model.get_input_embeddings().weight.detach()
    to_words = embeddings.mT / (embeddings.shape[1] ** 0.5 * embeddings.square().mean())

    def loss(step: int) -> Tensor:
        batch = [scenes[number] for number in drawn(len(scenes), CONNECTOR_BATCH, seed, step)]
        images = model.vision_model.encode(**processor.image_processor([scene.image for scene in batch]))
        likely = (torch.cat([image.tokens[image.cells] for image in images]) @ to_words).log_softmax(-1)
        ids = [ids_of(words, processor.tokenizer) for scene in batch for words in words_of_cells(scene, grid)]
        cells = torch.arange(len(ids)).repeat_interleave(torch.tensor(list(map(len, ids))))
        return -likely[cells, torch.tensor(list(chain(*ids)))].mean()

    connector.train()
    learn(loss, list(connector.parameters()), CONNECTOR_STEPS, 2e-3, "connector learns words")
    connector.eval()


def learn(loss: Callable[[int], Tensor], parameters: list[nn.Parameter], steps: int, learning_rate: float, title: str) -> None:
    """`loss(step)` is made small."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(steps // 15, 1), steps)
    for step in tqdm(range(steps), desc=title, unit="step", disable=not is_first_launched()):
        loss(step).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def drawn(count: int, batch: int, seed: int, step: int) -> Tensor:
    """`[batch]` numbers below `count`."""
    return torch.from_numpy(numpy_generator("stand-in batch", seed, step).integers(count, size=batch))


def cross_entropies(logits: Tensor, answers: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum over several questions. logits: `[N, sum(sizes)]`, those of each question side by side; answers: `[N, len(sizes)]`."""
    return sum(F.cross_entropy(each, answer) for each, answer in zip(logits.split(sizes, dim=1), answers.T, strict=True))
