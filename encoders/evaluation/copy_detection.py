"""Copy detection: does an edited image find the one that it was made from?

It follows the evaluation of DINO on Copydays (Caron et al. 2021, section 4.2.1): the descriptor of
an image is its CLS token beside the GeM of its patches (`copy_descriptors`), all descriptors are
whitened (`learn_whitening`, there on 20,000 other images), and copies search by cosine similarity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from encoders.evaluation.retrieval import average_precision, check_finite, rank_relevance, unit_rows
from vision_core.errors import UserError

LEAST_VARIANCE = 1e-5  # of the greatest; below it a direction is noise


def gem(patch_map: Tensor, power: float = 4.0) -> Tensor:
    """Generalised mean over the patches, `[B, C]` of `[B, C, h, w]`: mean(x^p)^(1/p) (Radenovic et
    al. 2019).

    Values below 1e-6 count as 1e-6, as in DINO's copy detection: maps of a ViT are negative in
    about half of their channels, of which GeM then sees only the patches with positive values.
    """
    return patch_map.float().clamp_min(1e-6).pow(power).mean((2, 3)).pow(1 / power)


def copy_descriptors(cls: Tensor, patch_gem: Tensor) -> Tensor:
    """CLS tokens `[n, D]` beside `gem` `[n, C]`: `[n, D + C]`, each at its own scale, as
    published."""
    return torch.cat([cls.float(), patch_gem.float()], dim=1)


@dataclass(frozen=True)
class Whitening:
    """An affine map of descriptors: mean `[D]`, projection `[D, K]`."""

    mean: Tensor
    projection: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """`[n, K]` of `[n, D]`."""
        return (features.to(self.mean) - self.mean) @ self.projection


def learn_whitening(features: Tensor, exponent: float = 0.5) -> Whitening:
    """PCA whitening from `features [n, D]`: (x - mean) V diag(d^-exponent), with eigenvectors V and
    eigenvalues d of the covariance.

    exponent 0.5 gives every direction the variance 1, 0 only turns. Directions with less than 1e-5
    of the greatest variance are left out. DINO's code raises them to that, which multiplies noise
    where images are fewer than dimensions, and does not centre the covariance. Give it many more
    images than dimensions, and not the copies themselves. Raises UserError for fewer than two
    images, values that are not finite, or all images alike.
    """
    check_finite("whitening", features)
    if len(features) < 2:
        raise UserError(
            f"whitening: {len(features)} images say nothing about directions; "
            "give thousands, or leave the whitening out"
        )
    rows = features.double()
    mean = rows.mean(0)
    variances, directions = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    kept = variances > LEAST_VARIANCE * variances.max()
    if not kept.any() or variances.max() <= torch.finfo(torch.float32).eps * mean.square().max():
        raise UserError(
            "whitening: all images have the same features: the encoder has collapsed; take another checkpoint"
        )
    return Whitening(mean.float(), (directions[:, kept] * variances[kept] ** -exponent).float())


def copy_detection(
    features: Tensor,
    image_ids: Sequence[str],
    copy_of: Sequence[str | None],
    transforms: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Scores of copies that search among all images that are not copies.

    Args:
        features: `[n, D]`, of originals, distractors and copies alike; compared by cosine.
        image_ids: n different names.
        copy_of: per image the id of its original. None, an empty text or the image's own id says
            that it is not a copy and so belongs to the database.
        transforms: how each copy was made (entries of other images are not read), for a row each.

    Returns: {"all": scores, "<transform>": scores, ...}, with `copy_scores` of all copies and of
        those of each transform.

    Raises UserError for lengths that differ, ids that are there twice, an original that is not in
    the database, no copies, features that are not finite.
    """
    pairs = _pairs(len(features), image_ids, copy_of)
    features = unit_rows("copy detection", features)
    similarity = features[pairs.copies] @ features[pairs.database].T
    positives = torch.zeros_like(similarity, dtype=torch.bool)
    positives[torch.arange(len(pairs.copies)), pairs.originals] = True
    results = {"all": copy_scores(similarity, positives)}
    if transforms is not None:
        if len(transforms) != len(image_ids):
            raise UserError(
                f"copy detection: {len(image_ids)} images and {len(transforms)} transforms; give one per image"
            )
        rows_by_transform: dict[str, list[int]] = {}
        for row, index in enumerate(pairs.copies):
            rows_by_transform.setdefault(transforms[index], []).append(row)
        for name, rows in rows_by_transform.items():
            results[name] = copy_scores(similarity[rows], positives[rows])
    return results


@torch.no_grad()
def copy_scores(similarity: Tensor, positives: Tensor) -> dict[str, float]:
    """{"mAP", "recall@1", "micro_AP": percent, "queries": q} of `similarity [q, n]` against
    `positives [q, n]` (bool).

    mAP and recall@1 are means over the queries that have a positive; with one each, AP is 1 / rank
    and mAP the mean reciprocal rank. (DINO's figures for Copydays are of
    `trapezoidal_average_precision` within the first 20.) micro_AP is the AP of all q * n pairs in
    one ranking (Douze et al. 2021, the image similarity challenge): one threshold must serve all
    queries, and queries without a positive count as false alarms. Ties count as errors.
    """
    ranked = rank_relevance(similarity, positives)[positives.any(1)]
    pairs = rank_relevance(similarity.flatten(), positives.flatten())
    return {
        "mAP": 100 * average_precision(ranked).mean().item(),
        "recall@1": 100 * ranked[:, 0].double().mean().item(),
        "micro_AP": 100 * average_precision(pairs).item(),
        "queries": len(ranked),
    }


class CopyPairs(NamedTuple):
    """Rows of the copies, rows of the database, and for each copy its original's place in the
    database."""

    copies: list[int]
    database: list[int]
    originals: list[int]


def _pairs(count: int, image_ids: Sequence[str], copy_of: Sequence[str | None]) -> CopyPairs:
    """Who was made from whom. Raises UserError as `copy_detection` does."""
    _check_ids(count, image_ids, copy_of)
    copies = [row for row in range(count) if copy_of[row] and copy_of[row] != image_ids[row]]
    if not copies:
        raise UserError("copy detection: no image is a copy of another; name data with copy_of")
    database = sorted(set(range(count)) - set(copies))
    places = {image_ids[row]: place for place, row in enumerate(database)}
    originals = []
    for row in copies:
        if copy_of[row] not in places:
            why = "is a copy itself" if copy_of[row] in image_ids else "is not in the database"
            raise UserError(
                f"copy detection: {image_ids[row]} is a copy of {copy_of[row]}, which {why}; "
                "add the original to the images"
            )
        originals.append(places[copy_of[row]])
    return CopyPairs(copies, database, originals)


def _check_ids(count: int, image_ids: Sequence[str], copy_of: Sequence[str | None]) -> None:
    if not count == len(image_ids) == len(copy_of):
        raise UserError(
            f"copy detection: {count} features, {len(image_ids)} image_ids and {len(copy_of)} copy_of; "
            "give one each per image"
        )
    if len(set(image_ids)) < count:
        twice = next(name for name in image_ids if image_ids.count(name) > 1)
        raise UserError(f"copy detection: image_ids has {twice} twice; give every image its own id")
