"""What an image-text model knows without training: classes by their names, images by captions and
captions by images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from encoders.evaluation.retrieval import unit_rows
from encoders.image_text import ImageTextModel
from vision_core.errors import UserError

# Plain sentences for photographs; data of another kind deserve their own ("a satellite photo of
# {}.").
TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a blurry photo of a {}.",
    "a photo of a large {}.",
    "a photo of a small {}.",
)
ACCURACY_DEPTHS = (1, 5)
RECALL_DEPTHS = (1, 5, 10)


@torch.no_grad()
def class_embeddings(
    model: ImageTextModel,
    class_names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    progress: bool = False,
) -> Tensor:
    """One vector of length 1 per class, `[classes, D]`: the mean over `templates`, normalised again
    (Radford et al. 2021, section 3.1.4).

    A class's name takes the place of {} in a template. Raises UserError for no classes, no
    templates, one without {}, or an empty name.
    """
    _check_texts(class_names, templates)
    rows = []
    for name in tqdm(class_names, "class names", disable=not progress):
        sentences = [template.replace("{}", name) for template in templates]
        rows.append(model.encode_texts(sentences).mean(0))
    return F.normalize(torch.stack(rows), dim=-1)


def _check_texts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    if not class_names or not templates:
        raise UserError("zero-shot: there are no class names or no templates; give at least one of each")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"zero-shot: the template {template!r} must have one {{}}, where the name of the class goes"
            )
    if not all(name.strip() for name in class_names):
        raise UserError("zero-shot: a class has an empty name; give every class a name in words")


@torch.no_grad()
def zero_shot_accuracy(
    image_embeddings: Tensor, labels: Tensor, class_embeddings: Tensor, chunk: int = 1024
) -> dict[str, float]:
    """{"top1", "top5"} in percent: `image_embeddings [n, D]` with `labels [n]` against
    `class_embeddings [classes, D]`, by cosine.

    An image is right in the top k if fewer than k other classes are as near as its own (with up to
    5 classes top5 is always 100). Raises UserError for lengths that differ, labels without a class
    and embeddings that are not finite.
    """
    _check_labels(labels, len(image_embeddings), len(class_embeddings))
    images = unit_rows("zero-shot", image_embeddings)
    classes = unit_rows("zero-shot", class_embeddings)
    is_own = labels.to(images.device)[:, None] == torch.arange(len(classes), device=images.device)
    recalls = _recalls(images, classes, is_own, ACCURACY_DEPTHS, chunk)
    return {f"top{k}": recall for k, recall in recalls.items()}


def _check_labels(labels: Tensor, num_images: int, num_classes: int) -> None:
    if num_images != len(labels) or not len(labels):
        raise UserError(
            f"zero-shot: {num_images} images and {len(labels)} labels; "
            "give one label per image, and at least one image"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"zero-shot: labels go from {labels.min()} to {labels.max()}, "
            f"but there are {num_classes} class names"
        )


@torch.no_grad()
def retrieval_recalls(
    image_embeddings: Tensor, text_embeddings: Tensor, image_of_text: Tensor, chunk: int = 1024
) -> dict[str, float]:
    """R@1, R@5 and R@10 of images and their captions, in percent, keys `image_to_text R@1` to
    `text_to_image R@10`.

    The protocol is that of Karpathy and Fei-Fei (2015): `image_of_text [m]` says to which of
    `image_embeddings [n, D]` each of `text_embeddings [m, D]` belongs; a text finds its image, an
    image finds any of its texts. Fewer than k wrong ones may be as near. Raises UserError for
    lengths that differ, texts of images that are not there, images without text and embeddings that
    are not finite.
    """
    images = unit_rows("retrieval", image_embeddings)
    texts = unit_rows("retrieval", text_embeddings)
    image_of_text = torch.as_tensor(image_of_text).to(images.device)
    _check_owners(image_of_text, len(texts), len(images))
    is_own = image_of_text == torch.arange(len(images), device=images.device)[:, None]
    of_images = _recalls(images, texts, is_own, RECALL_DEPTHS, chunk)
    of_texts = _recalls(texts, images, is_own.T, RECALL_DEPTHS, chunk)
    return _named("image_to_text", of_images) | _named("text_to_image", of_texts)


def _named(direction: str, recalls: dict[int, float]) -> dict[str, float]:
    return {f"{direction} R@{k}": recall for k, recall in recalls.items()}


def _check_owners(image_of_text: Tensor, num_texts: int, num_images: int) -> None:
    """Raise UserError unless every text has an image and every image a text."""
    if num_texts != len(image_of_text):
        raise UserError(
            f"retrieval: {num_texts} texts and {len(image_of_text)} in image_of_text; "
            "say of each text which image it describes"
        )
    without = sorted(set(range(num_images)) - set(image_of_text.tolist()))
    if without or len(image_of_text.unique()) != num_images:
        if without:
            problem = f"image {without[0]} has no text"
        else:
            problem = f"a text belongs to none of the {num_images} images"
        raise UserError(
            f"retrieval: {problem}; image_of_text must name every image, from 0 to {num_images - 1}"
        )


def _recalls(
    queries: Tensor, candidates: Tensor, is_own: Tensor, depths: tuple[int, ...], chunk: int
) -> dict[int, float]:
    """Per depth k the percentage of `queries [q, D]` with one of their own (`is_own [q, n]`) among
    the k nearest of `candidates [n, D]`."""
    nearer = []
    for part, own in zip(queries.split(chunk), is_own.split(chunk), strict=True):
        similarity = part @ candidates.T
        best = similarity.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        nearer.append(((similarity >= best) & ~own).sum(1))
    ranks = torch.cat(nearer)
    return {k: 100 * (ranks < k).double().mean().item() for k in depths}
