import json
import math

import pytest
import torch
from sklearn.metrics import average_precision_score

from encoders.evaluation.retrieval import (
    average_precision,
    label_retrieval,
    precision_at,
    rank_relevance,
    read_ground_truth,
    revisited_retrieval,
    trapezoidal_average_precision,
)
from vision_core.errors import UserError


def random_features(count, seed, width=8):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def trapezoids(relevant):
    """The area under the points (recall, precision), which starts at (0, 1), rank by rank."""
    area, found, recall, precision = 0.0, 0, 0.0, 1.0
    for rank, is_relevant in enumerate(relevant, start=1):
        found += is_relevant
        here, at = found / sum(relevant), found / rank
        area += (here - recall) * (precision + at) / 2
        recall, precision = here, at
    return area


def test_average_precision_is_that_of_scikit_learn():
    relevant = torch.rand(20, 50, generator=torch.Generator().manual_seed(0)) < 0.2
    scores = torch.linspace(1, 0, 50)
    expected = [average_precision_score(row, scores) for row in relevant]
    assert average_precision(relevant).tolist() == pytest.approx(expected)


def test_the_trapezoidal_one_is_the_area():
    relevant = torch.rand(20, 50, generator=torch.Generator().manual_seed(1)) < 0.2
    assert trapezoidal_average_precision(relevant).tolist() == pytest.approx(
        [trapezoids(row) for row in relevant.tolist()]
    )


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_one_relevant_item(rank):
    relevant = torch.zeros(9, dtype=torch.bool)
    relevant[rank - 1] = True
    assert average_precision(relevant).item() == 1 / rank
    assert trapezoidal_average_precision(relevant).item() == (
        1 if rank == 1 else pytest.approx(1 / (2 * rank))
    )


def test_nothing_relevant_is_not_a_number():
    nothing = torch.zeros(5, dtype=torch.bool)
    assert math.isnan(average_precision(nothing)) and math.isnan(trapezoidal_average_precision(nothing))


def test_ties_count_against():
    relevant = torch.tensor([True, False, True, False])
    assert rank_relevance(torch.tensor([1.0, 1.0, 2.0, 0.0]), relevant).tolist() == [True, False, True, False]
    assert rank_relevance(torch.zeros(4), relevant).tolist() == [False, False, True, True]


def test_label_retrieval_is_that_of_scikit_learn_query_by_query():
    features, labels = (
        random_features(60, 0),
        torch.randint(6, (60,), generator=torch.Generator().manual_seed(1)),
    )
    labels[7] = 99
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    expected = []
    for query in (index for index in range(60) if index != 7):
        others = [index for index in range(60) if index != query]
        expected.append(
            average_precision_score(labels[others] == labels[query], (unit[others] @ unit[query]).numpy())
        )
    scores = label_retrieval(features * 5, labels, chunk=13)
    assert scores["mAP"] == pytest.approx(100 * sum(expected) / 59)
    assert (scores["queries"], scores["queries_left_out"]) == (59, 1)
    assert label_retrieval(features, labels) == pytest.approx(scores)


def test_the_query_never_finds_itself():
    """Two images of each class that are opposite to one another: the other one comes last; with
    itself in the ranking AP would be higher."""
    angles = torch.arange(6) * math.pi / 3
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert label_retrieval(features, torch.tensor([0, 1, 2, 0, 1, 2]))["mAP"] == pytest.approx(100 / 5)


def test_a_collapsed_encoder_is_last():
    scores = label_retrieval(torch.ones(40, 4), torch.arange(40) // 2)
    assert scores["mAP"] == pytest.approx(100 / 39)


def test_label_retrieval_refuses_bad_input():
    features = random_features(6, 0)
    with pytest.raises(UserError, match="6 features and 5 labels"):
        label_retrieval(features, torch.zeros(5))
    with pytest.raises(UserError, match="no two images share a label"):
        label_retrieval(features, torch.arange(6))
    features[4, 1] = math.nan
    with pytest.raises(UserError, match="row 4 are not finite"):
        label_retrieval(features, torch.zeros(6))


GND = [
    {"easy": [0, 3], "hard": [5], "junk": [1, 7]},
    {"easy": [], "hard": [2, 4, 9], "junk": [0]},
    {"easy": [6], "hard": [], "junk": []},
]
POSITIVE = {"easy": ("easy",), "medium": ("easy", "hard"), "hard": ("hard",)}
IGNORED = {"easy": ("hard", "junk"), "medium": ("junk",), "hard": ("easy", "junk")}


@pytest.mark.parametrize("setup", ["easy", "medium", "hard"])
def test_the_revisited_protocol_is_that_of_a_plain_loop(setup):
    queries, features = random_features(3, 3), random_features(30, 4)
    unit_queries, unit = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (queries, features))
    precisions, at = [], {1: [], 5: [], 10: []}
    for query, entry in zip(unit_queries, GND, strict=True):
        positive = {index for name in POSITIVE[setup] for index in entry[name]}
        ignored = {index for name in IGNORED[setup] for index in entry[name]}
        ranking = [
            index
            for index in sorted(range(30), key=lambda index: -float(query @ unit[index]))
            if index not in ignored
        ]
        relevant = [index in positive for index in ranking]
        if not positive:
            continue
        precisions.append(trapezoids(relevant))
        for k, values in at.items():
            depth = min(k, max(rank for rank, is_relevant in enumerate(relevant, 1) if is_relevant))
            values.append(sum(relevant[:depth]) / depth)
    scores = revisited_retrieval(queries, features, GND)[setup]
    assert scores["mAP"] == pytest.approx(100 * sum(precisions) / len(precisions))
    for k, values in at.items():
        assert scores[f"mP@{k}"] == pytest.approx(100 * sum(values) / len(values))
    assert (scores["queries"], scores["queries_left_out"]) == (len(precisions), 3 - len(precisions))


def test_what_is_ignored_moves_no_rank():
    """The query's own photograph as junk, in front of everything: the first relevant one is still
    at rank 1."""
    query = torch.tensor([[1.0, 0.0]])
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    scores = revisited_retrieval(query, features, [{"easy": [1], "hard": [2], "junk": [0]}])
    assert [scores[setup]["mAP"] for setup in ("easy", "medium", "hard")] == [100.0, 100.0, 100.0]
    seen = revisited_retrieval(query, features, [{"easy": [1], "hard": [2], "junk": []}])
    assert seen["easy"]["mAP"] == pytest.approx(100 * (0 + 1 / 2) / 2)


def test_precision_stops_at_the_last_relevant_one():
    relevant = torch.tensor([True, True, False, True, False, False])
    assert [precision_at(relevant, k) for k in (1, 3, 5, 10)] == pytest.approx([1, 2 / 3, 3 / 4, 3 / 4])


def test_the_revisited_protocol_refuses_bad_input():
    queries, features = random_features(2, 0), random_features(9, 1)
    with pytest.raises(UserError, match="2 queries and ground truth for 3"):
        revisited_retrieval(queries, features, GND)
    with pytest.raises(UserError, match="no query has anything that is hard"):
        revisited_retrieval(queries[:1], features, [{"easy": [6], "hard": [], "junk": []}])
    features[2] = math.inf
    with pytest.raises(UserError, match="not finite"):
        revisited_retrieval(queries, features, GND[:2])


@pytest.fixture
def write(tmp_path):
    def write(values):
        path = tmp_path / "gnd.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return path

    return write


def ground_truth(**changes):
    entry = {"easy": [0, 3], "hard": [5], "junk": [1], "bbx": [1.0, 2.0, 3.0, 4.0]}
    values = {
        "imlist": [f"image_{number}" for number in range(6)],
        "qimlist": ["q"],
        "gnd": [entry | changes.pop("entry", {})],
    }
    return values | changes


def test_ground_truth_is_read(write):
    truth = read_ground_truth(write(ground_truth()))
    assert truth.imlist[5] == "image_5" and truth.qimlist == ("q",)
    assert truth.gnd == ({"easy": (0, 3), "hard": (5,), "junk": (1,)},)
    assert (
        revisited_retrieval(random_features(1, 0), random_features(6, 1), truth.gnd)["hard"]["queries"] == 1
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("\x80\x04}q", "cannot be read as JSON"),
        ([1], "needs the lists imlist, qimlist and gnd"),
        ({"imlist": [], "qimlist": []}, "needs the lists imlist, qimlist and gnd"),
        (ground_truth(qimlist=["q", "r"]), "names 2 queries and gnd has 1"),
        (ground_truth(gnd=[[1]]), "query q needs the lists easy, hard and junk"),
        (ground_truth(entry={"junk": None}), "query q needs the lists easy, hard and junk"),
        (ground_truth(entry={"hard": [6]}), "query q names image 6; imlist has the images 0 to 5"),
        (ground_truth(entry={"hard": [-1]}), "names image -1"),
        (ground_truth(entry={"hard": ["image_2"]}), "names image 'image_2'"),
        (ground_truth(entry={"hard": [3]}), "names image 3 twice"),
    ],
)
def test_ground_truth_that_does_not_fit(write, values, message):
    with pytest.raises(UserError, match=message):
        read_ground_truth(write(values))


def test_a_pickle_or_no_file_is_no_ground_truth(tmp_path):
    (tmp_path / "gnd.pkl").write_bytes(b"\x80\x04\x95\x0f\x00")
    for name in ("gnd.pkl", "none.json"):
        with pytest.raises(UserError, match="pickles are not read"):
            read_ground_truth(tmp_path / name)
