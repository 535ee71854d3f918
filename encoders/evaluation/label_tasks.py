"""Tasks on one vector per image: classes, instances, copies."""

from __future__ import annotations

import math
from pathlib import Path

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


def run_knn(frozen: FrozenFeatures) -> TaskResult:
    """Weighted k-NN with the image vector and with the mean of the patches."""
    names = list(dict.fromkeys([frozen.main_vector_name, "patch_mean"]))
    both = {name: _both(frozen, name) for name in names}
    scores = {name: knn_accuracies(*vectors_and_labels) for name, vectors_and_labels in both.items()}
    best = {name: max(by_k, key=lambda k, by_k=by_k: by_k[k]["top1"]) for name, by_k in scores.items()}
    metrics = {
        "top-1": scores[names[0]][best[names[0]]]["top1"],
        "top-5": scores[names[0]][best[names[0]]]["top5"],
    }
    metrics |= {
        f"top-1 of the {name.replace('_', ' ')}": scores[name][best[name]]["top1"] for name in names[1:]
    }
    protocol = f"weighted k-NN of the {names[0].replace('_', ' ')} vector, cosine, temperature 0.07, best k of {', '.join(map(str, scores[names[0]]))}"
    return TaskResult(
        metrics, protocol, details={"accuracies": scores, "best k": best}, images=_counted(frozen)
    )


def run_linear(frozen: FrozenFeatures, linear_iterations: int) -> TaskResult:
    """The published grid of linear heads."""
    rows, test = frozen.training_rows(), frozen.vectors("test")
    train = {name: vectors[rows] for name, vectors in frozen.vectors("train").items()}
    blocks = sorted((name for name in train if name.startswith("block_")), reverse=True)
    result = linear_probe(
        [train[name] for name in blocks], train["patch_mean"], frozen.labels("train")[rows],
        [test[name] for name in blocks], test["patch_mean"], frozen.labels("test"),
        iterations=linear_iterations, seed=frozen.seed, progress=frozen.progress, device=frozen.encoder.device,
    )  # fmt: skip
    protocol = (
        f"the best of {len(result.table)} linear heads, SGD, {linear_iterations:,} iterations of 128 (published: 12,500), chosen on a held-out tenth of "
        "the training images; one view of each image"
    )
    metrics = {"top-1": result.top1, "top-5": result.top5}
    return TaskResult(metrics, protocol, details={"chosen": result.chosen}, images=_counted(frozen))


def run_multi_label(frozen: FrozenFeatures, linear_iterations: int) -> TaskResult:
    """Several classes an image: mAP of linear heads with sigmoids, and of k-NN."""
    rows, test = frozen.training_rows(), frozen.vectors("test")
    train = {name: vectors[rows] for name, vectors in frozen.vectors("train").items()}
    marks, test_marks = frozen.marks("train")[rows], frozen.marks("test")
    blocks = sorted((name for name in train if name.startswith("block_")), reverse=True)
    result = multi_label_probe(
        [train[name] for name in blocks], train["patch_mean"], marks, [test[name] for name in blocks], test["patch_mean"], test_marks,
        iterations=linear_iterations, seed=frozen.seed, progress=frozen.progress, device=frozen.encoder.device,
    )  # fmt: skip
    by_k = knn_mean_average_precision(
        train[frozen.main_vector_name], marks, test[frozen.main_vector_name], test_marks
    )
    best_k = max(by_k, key=by_k.get)
    left_out = int((~test_marks.any(0)).sum())
    protocol = (
        f"mAP over {marks.shape[1] - left_out} classes, {left_out} left out that no test image has; the best of {len(result.table)} linear heads "
        f"with sigmoids, SGD, {linear_iterations:,} iterations of 128, chosen on a held-out tenth of the training images; k-NN as in the task knn"
    )
    details = {
        "chosen": result.chosen,
        "AP of each class": _by_class(frozen, result.class_ap),
        "k-NN mAP of k": by_k,
    }
    details["classes without a test image"] = left_out
    metrics = {"mAP": result.mean_ap, f"k-NN mAP, k {best_k}": by_k[best_k]}
    return TaskResult(metrics, protocol, details=details, images=_counted(frozen))


def run_logistic(frozen: FrozenFeatures) -> TaskResult:
    """Logistic regression on the image vector."""
    result = logistic_regression(
        *_both(frozen, frozen.main_vector_name), seed=frozen.seed, progress=frozen.progress
    )
    protocol = (
        "logistic regression on the image vector, its C chosen on a held-out tenth of the training images"
    )
    metrics = {"top-1": result.top1, "top-5": result.top5}
    return TaskResult(metrics, protocol, details={"chosen": result.chosen}, images=_counted(frozen))


def run_few_shot(frozen: FrozenFeatures) -> TaskResult:
    """A few images of each class."""
    table = few_shot(*_both(frozen, frozen.main_vector_name), seed=frozen.seed, progress=frozen.progress)
    metrics = {
        f"{name}, {shots} a class": mean
        for shots in reversed(table["knn"])
        for name, rows in table.items()
        for mean in [rows[shots][0]]
    }
    details = {"mean and standard deviation": table}
    return TaskResult(
        metrics,
        "top-1 with few images of each class, mean of 5 draws",
        details=details,
        images=_counted(frozen),
    )


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
    return TaskResult(
        metrics, protocol, details=scores, images={"train": len(database), "test": len(queries)}
    )


def run_copy_detection(frozen: FrozenFeatures) -> TaskResult:
    """Test images search the training images that they were made from; those whose original was not
    read or not drawn are left out."""
    (database, ids), (copies, copy_ids) = (_descriptors(frozen, split) for split in ("train", "test"))
    known, kept = frozen.sources["test"].annotations, frozen.kept("test")
    originals = [f"train {known.copy_of[index]}" for index in kept]
    there = set(ids)
    rows = [row for row, original in enumerate(originals) if original in there]
    if not rows:
        raise UserError(
            "copy detection: none of the test images' originals is among the training images; name parts of one data set"
        )
    whitened = len(database) >= WHITENED_FROM
    whole = torch.cat([database, copies[rows]])
    scores = copy_detection(
        learn_whitening(database)(whole) if whitened else whole,
        ids + [copy_ids[row] for row in rows],
        [None] * len(ids) + [originals[row] for row in rows],
    )["all"]
    how = (
        "whitened on the database"
        if whitened
        else f"not whitened (the database has fewer than {WHITENED_FROM:,} images)"
    )
    metrics = {"mAP": scores["mAP"], "micro-AP": scores["micro_AP"], "recall@1": scores["recall@1"]}
    protocol = f"image vector beside GeM of the patches, {how}, cosine; {len(rows):,} edited test images search {len(ids):,} training images"
    return TaskResult(
        metrics,
        protocol,
        details={"left out": len(kept) - len(rows)},
        images={"train": len(ids), "test": len(rows)},
    )


def _descriptors(frozen: FrozenFeatures, split: str) -> tuple[Tensor, list[str]]:
    vectors, known = frozen.vectors(split), frozen.sources[split].annotations
    descriptors = copy_descriptors(vectors[frozen.main_vector_name], vectors["gem"])
    return descriptors, [f"{split} {known.image_ids[index]}" for index in frozen.kept(split)]


def _by_class(frozen: FrozenFeatures, figures: list[float]) -> dict[str, float | None]:
    """Figures by class name or number; None for NaN, which JSON has not."""
    names = frozen.sources["test"].class_names or [str(number) for number in range(len(figures))]
    return {
        name: None if math.isnan(figure) else figure for name, figure in zip(names, figures, strict=False)
    }


def _both(frozen: FrozenFeatures, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Vectors and labels of the training images that are no test images, then of the test
    images."""
    rows = frozen.training_rows()
    return (
        frozen.vectors("train")[name][rows],
        frozen.labels("train")[rows],
        frozen.vectors("test")[name],
        frozen.labels("test"),
    )


def _counted(frozen: FrozenFeatures) -> dict[str, int]:
    """How many images `_both` gives."""
    return {"train": len(frozen.training_rows()), "test": len(frozen.kept("test"))}


def _check_images(path: str, truth: GroundTruth, frozen: FrozenFeatures) -> None:
    for split, names in (("train", truth.imlist), ("test", truth.qimlist)):
        source, kept = frozen.sources[split], frozen.kept(split)
        if len(names) != len(source) or len(kept) != len(source):
            raise UserError(
                f"{path} names {len(names)} {split} images, of which {len(kept)} were read; give exactly its images, in its order"
            )
        for index in kept:
            if Path(names[index]).stem not in source.id_of(index) and Path(source.id_of(index)).suffix:
                raise UserError(
                    f"{path}: image {index} should be {names[index]}, but is {source.id_of(index)}; sort the images as in the file"
                )
