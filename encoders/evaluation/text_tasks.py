"""Tasks for encoders with a text tower: classes by their names, images and captions."""

from __future__ import annotations

import torch
from torch import Tensor

from encoders.evaluation.feature_cache import unreadable_left_out
from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.results import TaskResult
from encoders.evaluation.zero_shot import TEMPLATES, class_embeddings, retrieval_recalls, zero_shot_accuracy
from encoders.image_text import ImageTextModel, load_image_text
from vision_core.errors import UserError
from vision_core.images.source import UnreadableSample

BATCH_SIZE = 32


def run_zero_shot(frozen: FrozenFeatures) -> TaskResult:
    """Classification by the name of each class in a few sentences."""
    source = frozen.sources["test"]
    if source.labels is None or not source.class_names:
        raise UserError(
            f"zero-shot: the classes of {source.description} have no names; "
            "name labelled images whose classes have names"
        )
    model = _image_text_model(frozen)
    names = [name.replace("_", " ") for name in source.class_names]
    classes = class_embeddings(model, names, progress=frozen.progress)
    images, kept = _image_embeddings(frozen, model)
    scores = zero_shot_accuracy(images, torch.tensor(source.labels)[kept], classes.cpu())
    metrics = {"top-1": scores["top1"], "top-5": scores["top5"]}
    protocol = f"names of the classes in {len(TEMPLATES)} sentences, cosine, nothing trained"
    return TaskResult(metrics, protocol, images={"test": len(kept)})


def run_image_text(frozen: FrozenFeatures) -> TaskResult:
    """Retrieval: images find their captions, captions their images."""
    model = _image_text_model(frozen)
    images, kept = _image_embeddings(frozen, model)
    captions: list[str] = []
    image_of_caption: list[int] = []
    for row, index in enumerate(kept):
        own = frozen.sources["test"].annotations.captions(index)
        captions += own
        image_of_caption += [row] * len(own)
    texts = model.encode_texts(captions).cpu()
    recalls = retrieval_recalls(images, texts, torch.tensor(image_of_caption))
    protocol = (
        f"{len(images):,} test images and their {len(captions):,} captions search each other "
        "(Karpathy's protocol), nothing trained"
    )
    return TaskResult(recalls, protocol, images={"test": len(kept)})


def _image_text_model(frozen: FrozenFeatures) -> ImageTextModel:
    """Both towers of the encoder's checkpoint, which look at images as the encoder does."""
    encoder = frozen.encoder
    return load_image_text(encoder.source, preprocess=encoder.transform.preprocess).to(encoder.device)


def _image_embeddings(frozen: FrozenFeatures, model: ImageTextModel) -> tuple[Tensor, list[int]]:
    """Embeddings `[n, D]` of the test images on the CPU, and which images they are."""
    rows: list[Tensor] = []
    kept: list[int] = []
    bad: list[UnreadableSample] = []
    batches = unreadable_left_out(
        frozen.sources["test"],
        frozen.indices["test"],
        model.transform,
        BATCH_SIZE,
        frozen.progress,
        note=bad.append,
    )
    for indices, views in batches:
        rows.append(model.encode_images(model.transform.pixels(views).to(model.device)).cpu())
        kept += indices
    frozen.note_unreadable("test", bad)
    return torch.cat(rows), kept
