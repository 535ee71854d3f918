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

Relevance = Mapping[
    str, Sequence[int]
]  # of one query: "easy", "hard" and "junk", each numbers of database images
SHOWN = 60  # characters of a value, in a message
SETUPS = {
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
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

    The area under the precision-recall curve by trapezoids: the AP of Oxford Buildings (Philbin et
    al. 2007), of revisited Oxford and Paris, and of Copydays in DINO's code. With one relevant item
    at rank r > 1 it is 1 / 2r, where `average_precision` is 1 / r.
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
    similarity, relevant = (similarity.gather(-1, irrelevant_first), relevant.gather(-1, irrelevant_first))
    return relevant.gather(-1, similarity.argsort(dim=-1, descending=True, stable=True))


@torch.no_grad()
def label_retrieval(
    features: Tensor, labels: Tensor, chunk: int = 256, progress: bool = False
) -> dict[str, float]:
    """Every image of `features [n, D]` searches the others; those with its label (`labels [n]`) are
    relevant.

    Returns {"mAP": percent, "queries": n, "queries_left_out": n}; an image that is alone with its
    label is left out as a query. `chunk` queries are ranked at a time. Raises UserError for
    features that are not finite, another number of labels, or where no two images share one.
    """
    if len(features) != len(labels):
        raise UserError(
            f"retrieval: {len(features)} features and {len(labels)} labels; give one label per image"
        )
    features = unit_rows("retrieval", features)
    labels = labels.to(features.device)
    precisions = []
    for rows in tqdm(
        torch.arange(len(features), device=features.device).split(chunk), "retrieval", disable=not progress
    ):
        similarity, relevant = features[rows] @ features.T, labels[rows, None] == labels
        own = (torch.arange(len(rows), device=rows.device), rows)
        similarity[own], relevant[own] = -torch.inf, False  # last of all, where it changes no rank
        precisions.append(average_precision(rank_relevance(similarity, relevant)))
    return _mean_precision(
        torch.cat(precisions) if precisions else torch.empty(0), "no two images share a label"
    )


@torch.no_grad()
def revisited_retrieval(
    queries: Tensor, features: Tensor, gnd: Sequence[Relevance]
) -> dict[str, dict[str, float]]:
    """Revisited Oxford and Paris (Radenovic et al. 2018): `queries [q, D]` search `features [n,
    D]`; `gnd` holds q `Relevance`.

    Easy: the easy ones are relevant, hard and junk count nowhere. Medium: easy and hard; junk counts nowhere. Hard: hard; easy and junk count nowhere.
    What counts nowhere is taken out of the ranking first. Per setup {"mAP", "mP@1", "mP@5", "mP@10": percent, "queries", "queries_left_out"}: a query
    with nothing relevant in a setup is left out of it. AP is the trapezoidal one and mP@k `precision_at`, as in the published evaluation.

    Raises UserError for features that are not finite, lengths that differ, or a setup in which no
    query has anything relevant.
    """
    if len(queries) != len(gnd):
        raise UserError(
            f"retrieval: {len(queries)} queries and ground truth for {len(gnd)}; give one entry per query"
        )
    similarity = unit_rows("retrieval", queries) @ unit_rows("retrieval", features).T
    return {setup: _judge_setup(similarity, gnd, *SETUPS[setup]) for setup in SETUPS}


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
    name, cure = (
        f"{path} cannot be read as JSON",
        "write the published ground truth as JSON, pickles are not read",
    )
    values = parse_json(read_bytes(path, name, cure), name, cure, finite=True)
    lists = [values.get(key) for key in ("imlist", "qimlist", "gnd")] if isinstance(values, dict) else []
    if len(lists) != 3 or not all(isinstance(each, list) for each in lists):
        raise UserError(
            f"{path} is no ground truth: it needs the lists imlist, qimlist and gnd; write the published ones as JSON"
        )
    images, queries, gnd = lists
    strange = next((each for each in (*images, *queries) if not isinstance(each, str)), None)
    if strange is not None:
        raise UserError(
            f"{path}: imlist and qimlist hold names, not {shortened(reprlib.repr(strange), SHOWN)}; write each as a text"
        )
    if len(queries) != len(gnd):
        raise UserError(
            f"{path}: qimlist names {len(queries)} queries and gnd has {len(gnd)} entries; give one entry per query"
        )
    return GroundTruth(
        tuple(images),
        tuple(queries),
        tuple(_read_entry(path, *each, len(images)) for each in zip(queries, gnd, strict=True)),
    )


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


def _judge_setup(
    similarity: Tensor, gnd: Sequence[Relevance], positive: tuple[str, ...], ignored: tuple[str, ...]
) -> dict[str, float]:
    rankings = []
    for row, entry in zip(similarity, gnd, strict=True):
        relevant, counted = (torch.zeros_like(row, dtype=torch.bool), torch.ones_like(row, dtype=torch.bool))
        relevant[[index for name in positive for index in entry[name]]] = True
        counted[[index for name in ignored for index in entry[name]]] = False
        rankings.append(rank_relevance(row[counted], relevant[counted]))
    precisions = (
        torch.stack([trapezoidal_average_precision(ranking) for ranking in rankings])
        if rankings
        else torch.empty(0)
    )
    scores = _mean_precision(precisions, f"no query has anything that is {' or '.join(positive)}")
    found = [ranking for ranking in rankings if ranking.any()]
    return scores | {
        f"mP@{k}": 100 * sum(precision_at(ranking, k) for ranking in found) / len(found) for k in (1, 5, 10)
    }


def _mean_precision(precisions: Tensor, otherwise: str) -> dict[str, float]:
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


def _read_entry(path: str | os.PathLike, query: str, entry: Any, num_images: int) -> Relevance:
    where = f"{path}: the ground truth of query {query}"
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(name), list) for name in ("easy", "hard", "junk")
    ):
        raise UserError(
            f"{where} needs the lists easy, hard and junk; give each of them, empty where it has nothing"
        )
    numbers = [number for name in ("easy", "hard", "junk") for number in entry[name]]
    for number in numbers:
        if type(number) is not int or not 0 <= number < num_images:
            raise UserError(
                f"{where} names image {shortened(reprlib.repr(number), SHOWN)}; imlist has the images 0 to {num_images - 1}"
            )
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise UserError(f"{where} names image {twice} twice; an image is easy, hard or junk, once")
    return {name: tuple(entry[name]) for name in ("easy", "hard", "junk")}
