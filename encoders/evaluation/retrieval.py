"""Instance retrieval: mean average precision of rankings by cosine similarity."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vision_core.errors import UserError
from vision_core.files.text_files import parse_json, read_bytes
from vision_core.printable import shortened

# What is relevant to one query: under "easy", "hard" and "junk" the numbers of database images.
Relevance = Mapping[str, Sequence[int]]
DIFFICULTIES = ("easy", "hard", "junk")
SHOWN_OF_A_VALUE = 60  # characters, in a message
PRECISION_DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalSetup:
    """Which difficulties are relevant in a setup, and which count nowhere: those images are taken
    out of the ranking first."""

    relevant: tuple[str, ...]
    ignored: tuple[str, ...]


SETUPS = {
    "easy": RetrievalSetup(("easy",), ("hard", "junk")),
    "medium": RetrievalSetup(("easy", "hard"), ("junk",)),
    "hard": RetrievalSetup(("hard",), ("easy", "junk")),
}


@dataclass(frozen=True)
class GroundTruth:
    """The revisited Oxford and Paris annotation: names of the database and query images, and what
    each query should find."""

    imlist: tuple[str, ...]
    qimlist: tuple[str, ...]
    gnd: tuple[Relevance, ...]


def average_precision(relevant: Tensor) -> Tensor:
    """AP of rankings `[..., n]` (bool, best first), float64 `[...]` in 0..1: sum_r relevant_r *
    precision@r / sum_r relevant_r; NaN without a relevant one."""
    ranks = torch.arange(1, relevant.shape[-1] + 1, device=relevant.device)
    precision = relevant.cumsum(-1).double() / ranks
    return (precision * relevant).sum(-1) / relevant.sum(-1)


def trapezoidal_average_precision(relevant: Tensor) -> Tensor:
    """As `average_precision`, with the mean of the precisions at rank r and before it (1 at the
    first rank) in place of precision@r.

    This is the area under the precision-recall curve by trapezoids: the AP of Oxford Buildings
    (Philbin et al. 2007), of revisited Oxford and Paris, and of Copydays in DINO's code. With one
    relevant item at rank r > 1 it is 1 / 2r, where `average_precision` is 1 / r.
    """
    ranks = torch.arange(1, relevant.shape[-1] + 1, device=relevant.device)
    found = relevant.cumsum(-1).double()
    before = torch.where(ranks == 1, 1.0, (found - 1) / (ranks - 1).clamp_min(1))
    return ((before + found / ranks) / 2 * relevant).sum(-1) / relevant.sum(-1)


def rank_relevance(similarity: Tensor, relevant: Tensor) -> Tensor:
    """`relevant [..., n]` (bool) in the order of falling `similarity [..., n]`; among equals the
    irrelevant come first.

    So an encoder that says the same of every image finds nothing, whatever the order of the images
    is.
    """
    irrelevant_first = relevant.byte().argsort(dim=-1, stable=True)
    similarity = similarity.gather(-1, irrelevant_first)
    relevant = relevant.gather(-1, irrelevant_first)
    return relevant.gather(-1, similarity.argsort(dim=-1, descending=True, stable=True))


@torch.no_grad()
def label_retrieval(
    features: Tensor, labels: Tensor, chunk: int = 256, progress: bool = False
) -> dict[str, float]:
    """Scores of images `features [n, D]` that search one another; those with the same label
    (`labels [n]`) are relevant.

    Returns {"mAP": percent, "queries": n, "queries_left_out": n}; an image that is alone with its
    label is left out as a query. `chunk` queries are ranked at a time. UserError is raised for
    features that are not finite, for another number of labels, and where no two images share one.
    """
    _check_labels(features, labels)
    features = unit_rows("retrieval", features)
    labels = labels.to(features.device)
    precisions = [torch.empty(0, dtype=torch.double, device=features.device)]
    chunks = torch.arange(len(features), device=features.device).split(chunk)
    for rows in tqdm(chunks, "retrieval", disable=not progress):
        precisions.append(_precisions_among_others(features, labels, rows))
    return _mean_precision(torch.cat(precisions), "no two images share a label")


def _check_labels(features: Tensor, labels: Tensor) -> None:
    if len(features) != len(labels):
        raise UserError(
            f"retrieval: {len(features)} features and {len(labels)} labels; give one label per image"
        )


def _precisions_among_others(features: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """The average precisions of some rows of `features [n, D]` that search all the others."""
    similarity = features[rows] @ features.T
    relevant = labels[rows, None] == labels
    own = (torch.arange(len(rows), device=rows.device), rows)
    similarity[own] = -torch.inf  # last of all, where it changes no rank
    relevant[own] = False
    return average_precision(rank_relevance(similarity, relevant))


@torch.no_grad()
def revisited_retrieval(
    queries: Tensor, features: Tensor, gnd: Sequence[Relevance]
) -> dict[str, dict[str, float]]:
    """Revisited Oxford and Paris (Radenovic et al. 2018): `queries [q, D]` search `features [n,
    D]`; `gnd` holds q `Relevance`.

    Returns {name of a setup: {"mAP", "mP@1", "mP@5", "mP@10": percent, "queries",
    "queries_left_out"}}; a query with nothing relevant in a setup is left out of it. AP is the
    trapezoidal one and mP@k `precision_at`, as in the published evaluation. Raises UserError for
    features that are not finite, lengths that differ, or a setup in which no query has anything
    relevant.
    """
    if len(queries) != len(gnd):
        raise UserError(
            f"retrieval: {len(queries)} queries and ground truth for {len(gnd)}; give one entry per query"
        )
    similarity = unit_rows("retrieval", queries) @ unit_rows("retrieval", features).T
    return {name: _setup_scores(similarity, gnd, setup) for name, setup in SETUPS.items()}


def precision_at(relevant: Tensor, k: int) -> float:
    """Share of relevant items among the first k of a ranking `[n]` (bool), or among those down to
    the last relevant one where that is less."""
    depth = min(k, int(relevant.nonzero().max()) + 1)
    return relevant[:depth].double().mean().item()


def read_ground_truth(path: str | os.PathLike) -> GroundTruth:
    """Ground truth from JSON: {"imlist": [name], "qimlist": [name], "gnd": [{"easy": [number],
    "hard": [number], "junk": [number]}]}.

    It has the structure of the published gnd_roxford5k.pkl and gnd_rparis6k.pkl (other keys, such
    as bbx, are passed over). Those are pickles, which can run code when they are read, so this
    project does not; write them as JSON once, where you trust them. Raises UserError for what does
    not fit.
    """
    name = f"{path} cannot be read as JSON"
    cure = "write the published ground truth as JSON, pickles are not read"
    values = parse_json(read_bytes(path, name, cure), name, cure, finite=True)
    lists = [values.get(key) for key in ("imlist", "qimlist", "gnd")] if isinstance(values, dict) else []
    if len(lists) != 3 or not all(isinstance(each, list) for each in lists):
        raise UserError(
            f"{path} does not hold a ground truth: it needs the lists imlist, qimlist and gnd; "
            "write the published ones as JSON"
        )
    images, queries, gnd = lists
    for image_name in (*images, *queries):
        if not isinstance(image_name, str):
            found = shortened(reprlib.repr(image_name), SHOWN_OF_A_VALUE)
            raise UserError(f"{path}: imlist and qimlist hold names, not {found}; write each as a text")
    if len(queries) != len(gnd):
        raise UserError(
            f"{path}: qimlist names {len(queries)} queries and gnd has {len(gnd)} entries; "
            "give one entry per query"
        )
    entries = []
    for query, entry in zip(queries, gnd, strict=True):
        entries.append(_read_entry(f"{path}: the ground truth of query {query}", entry, len(images)))
    return GroundTruth(tuple(images), tuple(queries), tuple(entries))


def unit_rows(task: str, features: Tensor) -> Tensor:
    """`features [n, D]` in float32, every row of length 1. Raises UserError, which names the task,
    for values that are not finite."""
    check_finite(task, features)
    return F.normalize(features.float(), dim=-1)


def check_finite(task: str, features: Tensor) -> None:
    """Raise UserError, which names the task, where `features [n, D]` are not finite."""
    wrong = (~torch.isfinite(features)).any(-1)
    if wrong.any():
        row = wrong.nonzero()[0].item()
        raise UserError(
            f"{task}: the features of row {row} are not finite; extract them in float32, or from another checkpoint"
        )


def _setup_scores(similarity: Tensor, gnd: Sequence[Relevance], setup: RetrievalSetup) -> dict[str, float]:
    """The scores of a setup from `similarity [q, n]` and q entries of the ground truth."""
    precisions = [torch.empty(0, dtype=torch.double, device=similarity.device)]
    found = []  # the rankings of queries that have something relevant
    for row, entry in zip(similarity, gnd, strict=True):
        relevant = _marked(row, entry, setup.relevant)
        counted = ~_marked(row, entry, setup.ignored)
        ranking = rank_relevance(row[counted], relevant[counted])
        precisions.append(trapezoidal_average_precision(ranking)[None])
        if ranking.any():
            found.append(ranking)
    scores = _mean_precision(
        torch.cat(precisions), f"no query has anything that is {' or '.join(setup.relevant)}"
    )
    for k in PRECISION_DEPTHS:
        scores[f"mP@{k}"] = 100 * sum(precision_at(ranking, k) for ranking in found) / len(found)
    return scores


def _marked(row: Tensor, entry: Relevance, difficulties: Sequence[str]) -> Tensor:
    """`[n]` bool: which images have one of the difficulties for the query of this row."""
    marked = torch.zeros_like(row, dtype=torch.bool)
    for difficulty in difficulties:
        marked[list(entry[difficulty])] = True
    return marked


def _mean_precision(precisions: Tensor, otherwise: str) -> dict[str, float]:
    """The mean of the precisions that are not NaN. Raises UserError where there are none.
    otherwise: why, in words."""
    judged = precisions[~precisions.isnan()]
    if not len(judged):
        raise UserError(
            f"retrieval: {otherwise}, so nothing can be judged; give other images or ground truth"
        )
    return {
        "mAP": 100 * judged.mean().item(),
        "queries": len(judged),
        "queries_left_out": len(precisions) - len(judged),
    }


def _read_entry(where: str, entry: Any, num_images: int) -> Relevance:
    """One query's entry. Raises UserError, which says where, for what does not fit."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), list) for name in DIFFICULTIES):
        raise UserError(
            f"{where} needs the lists easy, hard and junk; give each of them, empty where it has nothing"
        )
    numbers = [*entry["easy"], *entry["hard"], *entry["junk"]]
    for number in numbers:
        if type(number) is not int or not 0 <= number < num_images:
            found = shortened(reprlib.repr(number), SHOWN_OF_A_VALUE)
            raise UserError(f"{where} names image {found}; imlist has the images 0 to {num_images - 1}")
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise UserError(f"{where} names image {twice} twice; an image is easy, hard or junk, once")
    return {name: tuple(entry[name]) for name in DIFFICULTIES}
