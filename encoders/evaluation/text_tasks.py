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

BATCH = 32


def run_zero_shot(frozen: FrozenFeatures) -> TaskResult:
    """The name of each class in a few sentences."""
    source = frozen.sources["test"]
    if source.labels is None or not source.class_names:
        raise UserError(
            f"zero-shot: the classes of {source.description} have no names; name labelled images whose classes have names"
        )
    model = _image_text_model(frozen)
    classes = class_embeddings(
        model, [name.replace("_", " ") for name in source.class_names], progress=frozen.progress
    )
    images, kept = _embeddings(frozen, model)
    scores = zero_shot_accuracy(images, torch.tensor(source.labels)[kept], classes.cpu())
    metrics = {"top-1": scores["top1"], "top-5": scores["top5"]}
    protocol = f"names of the classes in {len(TEMPLATES)} sentences, cosine, nothing trained"
    return TaskResult(metrics, protocol, images={"test": len(kept)})


def run_image_text(frozen: FrozenFeatures) -> TaskResult:
    """Images find their captions, captions their images."""
    model = _image_text_model(frozen)
    images, kept = _embeddings(frozen, model)
    captions = [frozen.sources["test"].annotations.captions(index) for index in kept]
    owners = torch.tensor([row for row, texts in enumerate(captions) for _ in texts])
    texts = model.encode_texts([text for texts in captions for text in texts]).cpu()
    protocol = f"{len(images):,} test images and their {len(owners):,} captions search each other (Karpathy's protocol), nothing trained"
    return TaskResult(retrieval_recalls(images, texts, owners), protocol, images={"test": len(kept)})


def _image_text_model(frozen: FrozenFeatures) -> ImageTextModel:
    """Both towers of the encoder's checkpoint, which look at images as the encoder does."""
    preprocess = frozen.encoder.transform.preprocess
    return load_image_text(frozen.encoder.source, preprocess=preprocess).to(frozen.encoder.device)


def _embeddings(frozen: FrozenFeatures, model: ImageTextModel) -> tuple[Tensor, list[int]]:
    """Embeddings `[n, D]` of the test images on the CPU, and which images they are."""
    rows, kept, bad = [], [], []
    source, wanted = frozen.sources["test"], frozen.indices["test"]
    for indices, views in unreadable_left_out(
        source, wanted, model.transform, BATCH, frozen.progress, bad.append
    ):
        rows.append(model.encode_images(model.transform.pixels(views).to(model.device)).cpu())
        kept += indices
    frozen.note_unreadable("test", bad)
    return torch.cat(rows), kept
