"""Tasks on one vector per image: classes, instances, copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from encoders.evaluation.copy_detection import copy_descriptors, copy_detection, learn_whitening
from encoders.evaluation.few_shot import few_shot
from encoders.evaluation.frozen import FrozenFeatures
from encoders.evaluation.knn import knn_accuracies
from encoders.evaluation.linear import linear_probe, logistic_regression
from encoders.evaluation.multi_label import knn_mean_average_precision, multi_label_probe
from encoders.evaluation.results import TaskResult
from encoders.evaluation.retrieval import GroundTruth, label_retrieval, read_ground_truth, revisited_retrieval
from vision_core.errors import UserError

WHITENED_FROM = 2000  # with fewer images a whitening learns noise
Vectors = dict[str, Tensor]


def run_knn(frozen: FrozenFeatures) -> TaskResult:
    """Weighted k-NN with the image vector and with the mean of the patches."""
    main = frozen.main_vector_name
    accuracies = {}
    best_ks = {}
    for name in dict.fromkeys([main, "patch_mean"]):
        by_k = knn_accuracies(*_vectors_and_labels(frozen, name))
        accuracies[name] = by_k
        best_ks[name] = max(by_k, key=lambda k, by_k=by_k: by_k[k]["top1"])
    best = accuracies[main][best_ks[main]]
    metrics = {"top-1": best["top1"], "top-5": best["top5"]}
    if main != "patch_mean":
        of_patches = accuracies["patch_mean"][best_ks["patch_mean"]]
        metrics["top-1 of the patch mean"] = of_patches["top1"]
    protocol = (
        f"weighted k-NN of the {main.replace('_', ' ')} vector, cosine, temperature 0.07, "
        f"best k of {', '.join(map(str, accuracies[main]))}"
    )
    details = {"accuracies": accuracies, "best k": best_ks}
    return TaskResult(metrics, protocol, details=details, images=_images_used(frozen))


def run_linear(frozen: FrozenFeatures, linear_iterations: int) -> TaskResult:
    """The published grid of linear heads."""
    rows = frozen.training_rows()
    result = linear_probe(
        *_blocks_and_patch_mean(_vectors_of_rows(frozen, rows)),
        frozen.labels("train")[rows],
        *_blocks_and_patch_mean(frozen.vectors("test")),
        frozen.labels("test"),
        iterations=linear_iterations,
        **frozen.training_options,
    )
    protocol = (
        f"the best of {len(result.table)} linear heads, SGD, {linear_iterations:,} iterations of 128 "
        "(published: 12,500), chosen on a held-out tenth of the training images; one view of each image"
    )
    metrics = {"top-1": result.top1, "top-5": result.top5}
    details = {"chosen": result.chosen}
    return TaskResult(metrics, protocol, details=details, images=_images_used(frozen))


def run_multi_label(frozen: FrozenFeatures, linear_iterations: int) -> TaskResult:
    """Several classes an image: mAP of linear heads with sigmoids, and of k-NN."""
    main = frozen.main_vector_name
    rows = frozen.training_rows()
    train = _vectors_of_rows(frozen, rows)
    test = frozen.vectors("test")
    marks = frozen.marks("train")[rows]
    test_marks = frozen.marks("test")
    result = multi_label_probe(
        *_blocks_and_patch_mean(train),
        marks,
        *_blocks_and_patch_mean(test),
        test_marks,
        iterations=linear_iterations,
        **frozen.training_options,
    )
    by_k = knn_mean_average_precision(train[main], marks, test[main], test_marks)
    best_k = max(by_k, key=by_k.get)
    left_out = int((~test_marks.any(0)).sum())
    protocol = (
        f"mAP over {marks.shape[1] - left_out} classes, {left_out} left out that no test image has; "
        f"the best of {len(result.table)} linear heads with sigmoids, SGD, {linear_iterations:,} iterations "
        "of 128, chosen on a held-out tenth of the training images; k-NN as in the task knn"
    )
    details = {
        "chosen": result.chosen,
        "AP of each class": _by_class(frozen, result.class_ap),
        "k-NN mAP of k": by_k,
        "classes without a test image": left_out,
    }
    metrics = {"mAP": result.mean_ap, f"k-NN mAP, k {best_k}": by_k[best_k]}
    return TaskResult(metrics, protocol, details=details, images=_images_used(frozen))


def run_logistic(frozen: FrozenFeatures) -> TaskResult:
    """Logistic regression on the image vector."""
    result = logistic_regression(
        *_vectors_and_labels(frozen, frozen.main_vector_name), seed=frozen.seed, progress=frozen.progress
    )
    protocol = (
        "logistic regression on the image vector, its C chosen on a held-out tenth of the training images"
    )
    metrics = {"top-1": result.top1, "top-5": result.top5}
    details = {"chosen": result.chosen}
    return TaskResult(metrics, protocol, details=details, images=_images_used(frozen))


def run_few_shot(frozen: FrozenFeatures) -> TaskResult:
    """Classification by a few images of each class."""
    table = few_shot(
        *_vectors_and_labels(frozen, frozen.main_vector_name), seed=frozen.seed, progress=frozen.progress
    )
    metrics = {}
    for shots in reversed(table["knn"]):
        for classifier, by_shots in table.items():
            mean, _ = by_shots[shots]
            metrics[f"{classifier}, {shots} a class"] = mean
    protocol = "top-1 with few images of each class, mean of 5 draws"
    details = {"mean and standard deviation": table}
    return TaskResult(metrics, protocol, details=details, images=_images_used(frozen))


def run_retrieval(frozen: FrozenFeatures, ground_truth: str | None) -> TaskResult:
    """Instance retrieval: by a ground truth the test images search the training images, else they
    search one another by their labels."""
    queries = frozen.vectors("test")[frozen.main_vector_name]
    if ground_truth is None:
        scores = label_retrieval(queries, frozen.labels("test"), progress=frozen.progress)
        protocol = "test images search one another; those with the same label are relevant"
        return TaskResult({"mAP": scores["mAP"]}, protocol, details=scores, images={"test": len(queries)})
    truth = read_ground_truth(ground_truth)
    _check_images(ground_truth, truth, frozen)
    database = frozen.vectors("train")[frozen.main_vector_name]
    scores = revisited_retrieval(queries, database, truth.gnd)
    metrics = {f"{setup} mAP": scores[setup]["mAP"] for setup in ("medium", "hard", "easy")}
    protocol = f"revisited protocol by {Path(ground_truth).name}; test images search the training images"
    images = {"train": len(database), "test": len(queries)}
    return TaskResult(metrics, protocol, details=scores, images=images)


def run_copy_detection(frozen: FrozenFeatures) -> TaskResult:
    """Test images search the training images that they were made from; those whose original was not
    read or not drawn are left out."""
    database = _named_descriptors(frozen, "train")
    edited = _named_descriptors(frozen, "test")
    copy_of = frozen.sources["test"].annotations.copy_of
    originals = [f"train {copy_of[index]}" for index in frozen.kept("test")]
    known = set(database.ids)
    rows = [row for row, original in enumerate(originals) if original in known]
    if not rows:
        raise UserError(
            "copy detection: none of the test images' originals is among the training images; "
            "name parts of one data set"
        )
    descriptors = torch.cat([database.descriptors, edited.descriptors[rows]])
    if len(database.ids) >= WHITENED_FROM:
        descriptors = learn_whitening(database.descriptors)(descriptors)
        whitening = "whitened on the database"
    else:
        whitening = f"not whitened (the database has fewer than {WHITENED_FROM:,} images)"
    scores = copy_detection(
        descriptors,
        [*database.ids, *(edited.ids[row] for row in rows)],
        [*[None] * len(database.ids), *(originals[row] for row in rows)],
    )["all"]
    metrics = {"mAP": scores["mAP"], "micro-AP": scores["micro_AP"], "recall@1": scores["recall@1"]}
    protocol = (
        f"image vector beside GeM of the patches, {whitening}, cosine; "
        f"{len(rows):,} edited test images search {len(database.ids):,} training images"
    )
    details = {"left out": len(originals) - len(rows)}
    images = {"train": len(database.ids), "test": len(rows)}
    return TaskResult(metrics, protocol, details=details, images=images)


class NamedDescriptors(NamedTuple):
    """Descriptors `[n, D]` and the names of their images, which begin with the split."""

    descriptors: Tensor
    ids: list[str]


def _named_descriptors(frozen: FrozenFeatures, split: str) -> NamedDescriptors:
    vectors = frozen.vectors(split)
    image_ids = frozen.sources[split].annotations.image_ids
    descriptors = copy_descriptors(vectors[frozen.main_vector_name], vectors["gem"])
    return NamedDescriptors(descriptors, [f"{split} {image_ids[index]}" for index in frozen.kept(split)])


def _by_class(frozen: FrozenFeatures, figures: Sequence[float]) -> dict[str, float | None]:
    """Figures by class name or number; None for NaN, which JSON does not have."""
    names = frozen.sources["test"].class_names or map(str, range(len(figures)))
    by_class = {}
    for name, figure in zip(names, figures, strict=False):
        by_class[name] = None if math.isnan(figure) else figure
    return by_class


def _vectors_of_rows(frozen: FrozenFeatures, rows: Tensor) -> Vectors:
    """All vectors of some training images."""
    return {name: vectors[rows] for name, vectors in frozen.vectors("train").items()}


def _blocks_and_patch_mean(vectors: Vectors) -> tuple[list[Tensor], Tensor]:
    """The vectors of the last blocks, the earliest block first, and the mean of the patches: what
    the linear heads read."""
    names = sorted((name for name in vectors if name.startswith("block_")), reverse=True)
    return [vectors[name] for name in names], vectors["patch_mean"]


def _vectors_and_labels(frozen: FrozenFeatures, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors and labels of the training images that are not test images, then of the test
    images."""
    rows = frozen.training_rows()
    return (
        frozen.vectors("train")[name][rows],
        frozen.labels("train")[rows],
        frozen.vectors("test")[name],
        frozen.labels("test"),
    )


def _images_used(frozen: FrozenFeatures) -> dict[str, int]:
    """How many images `_vectors_and_labels` gives."""
    return {"train": len(frozen.training_rows()), "test": len(frozen.kept("test"))}


def _check_images(path: str, truth: GroundTruth, frozen: FrozenFeatures) -> None:
    """Raise UserError unless the images are those of the ground truth, in its order."""
    for split, names in (("train", truth.imlist), ("test", truth.qimlist)):
        source = frozen.sources[split]
        kept = frozen.kept(split)
        if len(names) != len(source) or len(kept) != len(source):
            raise UserError(
                f"{path} names {len(names)} {split} images, of which {len(kept)} were read; "
                "give exactly its images, in its order"
            )
        for index in kept:
            found = source.id_of(index)
            if Path(names[index]).stem not in found and Path(found).suffix:
                raise UserError(
                    f"{path}: image {index} should be {names[index]}, but is {found}; "
                    "sort the images as in the file"
                )
