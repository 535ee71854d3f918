import math
import textwrap
import time

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from encoders.evaluation.knn import knn_accuracies, knn_accuracy, knn_predict
from vision_core.errors import UserError


def clusters(count, classes, width, seed, noise=2.5):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + noise * torch.randn(count, width, generator=generator), labels


def unit(rows):
    rows = rows.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 10.0), (200, 0.5)])
def test_predictions_are_those_of_scikit_learn(k, temperature):
    bank, labels = clusters(600, 7, 16, seed=0)
    queries, _ = clusters(300, 7, 16, seed=1)
    # for unit vectors |a - b|^2 = 2 - 2 a.b
    reference = KNeighborsClassifier(
        k, weights=lambda distance: np.exp((1 - distance**2 / 2) / temperature), algorithm="brute"
    )
    expected = reference.fit(unit(bank), labels.numpy()).predict(unit(queries))
    predicted = knn_predict(bank, labels, queries, k, temperature, chunk=64)
    assert predicted.tolist() == expected.tolist()


def test_predictions_are_those_of_a_plain_loop():
    bank, labels = clusters(60, 4, 8, seed=0)
    queries, _ = clusters(40, 4, 8, seed=1)
    expected = []
    for query in unit(queries):
        similarities = sorted(
            ((float(query @ row), int(label)) for row, label in zip(unit(bank), labels, strict=True)),
            reverse=True,
        )
        votes = [0.0] * 4
        for similarity, label in similarities[:9]:
            votes[label] += math.exp(similarity / 0.07)
        expected.append(votes.index(max(votes)))
    assert knn_predict(bank, labels, queries, k=9).tolist() == expected


def unit_row(row):
    length = math.sqrt(sum(float(value) ** 2 for value in row)) or 1.0
    return [float(value) / length for value in row]


def by_the_docstring(bank, labels, query, k, temperature=0.07):
    """What the loop in `knn_predict`'s docstring answers."""
    loop = textwrap.dedent(knn_predict.__doc__.split("For one query this is")[1].split("`chunk` queries")[0])
    names = {
        "bank": bank.tolist(),
        "bank_labels": labels.tolist(),
        "query": query.tolist(),
        "k": k,
        "temperature": temperature,
    }
    names |= {"math": math, "unit": unit_row}
    exec(loop, names)
    return names["answer"]


@pytest.mark.parametrize("k", [1, 3, 4, 9, 60])
def test_ties_are_broken_as_the_docstring_says(k):
    """Rows of whole numbers, most of them twice and thrice in the bank, under labels that differ:
    ties at every place."""
    generator = torch.Generator().manual_seed(k)
    bank = torch.randint(0, 3, (60, 3), generator=generator).float()
    labels = torch.randint(0, 5, (60,), generator=generator)
    queries = torch.randint(0, 3, (80, 3), generator=generator).float()
    expected = [by_the_docstring(bank, labels, query, k) for query in queries]
    for chunk in (1, 7, 1024):
        assert knn_predict(bank, labels, queries, k, chunk=chunk).tolist() == expected
    wanted = torch.tensor(expected)
    assert knn_accuracies(bank, labels, queries, wanted, ks=(k,))[k]["top1"] == 100
    assert knn_accuracy(bank, labels, queries, wanted, k) == 100


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]])
def test_of_equal_votes_at_equal_distance_the_lowest_class_wins_in_both_functions(order):
    bank, labels, query = torch.eye(4), torch.tensor(order), torch.ones(1, 4)
    assert knn_predict(bank, labels, query, k=4).item() == 0
    assert knn_accuracies(bank, labels, query, torch.tensor([0]), ks=(4,))[4]["top1"] == 100
    assert knn_predict(bank, labels, query, k=1).item() == order[0], "the first of the bank is the nearest"


def test_of_equal_votes_the_class_with_the_nearest_image_wins():
    """Under a temperature that makes all votes alike to twelve digits."""
    bank, labels = torch.tensor([[1.0, 0.1], [1.0, 0.0]]), torch.tensor([0, 1])
    assert knn_predict(bank, labels, torch.tensor([[1.0, 0.0]]), k=2, temperature=1e12).item() == 1


def test_neither_float_noise_nor_the_banks_size_decides():
    """The same images in another type, turned by an orthogonal matrix, and with far ones behind
    them."""
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.eye(6).repeat(3, 1), torch.ones(5, 6)
    labels = torch.arange(18) % 6
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    expected = knn_predict(bank, labels, queries, k=7)
    assert torch.equal(knn_predict(bank.double() @ turn, labels, queries.double() @ turn, k=7), expected)
    far = torch.cat([bank, -torch.ones(4000, 6)])
    assert torch.equal(
        knn_predict(far, torch.cat([labels, torch.zeros(4000, dtype=torch.long)]), queries, k=7), expected
    )


def test_weights_count():
    """One neighbour at similarity 1 against two at 0.9: exp(0.1 / 0.07) = 4.2 > 2, but with a
    temperature of 1 two votes win."""
    near, far = torch.tensor([1.0, 0.0]), torch.tensor([0.9, math.sqrt(1 - 0.81)])
    bank, labels = torch.stack([near, far, far]), torch.tensor([2, 0, 0])
    assert knn_predict(bank, labels, near[None] * 7, k=3).item() == 2
    assert knn_predict(bank, labels, near[None] * 7, k=3, temperature=1.0).item() == 0


def test_length_and_chunks_do_not_matter():
    bank, labels = clusters(200, 5, 8, seed=0)
    queries, _ = clusters(50, 5, 8, seed=1)
    expected = knn_predict(bank, labels, queries, k=10)
    assert torch.equal(knn_predict(bank * 1e3, labels, queries * 1e-3, k=10, chunk=7), expected)


def test_accuracy_is_percent_and_unknown_classes_are_errors():
    bank, labels = clusters(100, 3, 8, seed=0)
    assert knn_accuracy(bank, labels, bank, labels, k=1) == 100.0
    assert knn_accuracy(bank, labels, bank[:4], torch.tensor([*labels[:3].tolist(), 17]), k=1) == 75.0


def test_tiny_temperatures_stay_finite():
    bank, labels = clusters(100, 3, 8, seed=0)
    assert torch.equal(knn_predict(bank, labels, bank, k=5, temperature=1e-3), labels)


def test_bad_input():
    bank, labels = clusters(30, 3, 8, seed=0)
    with pytest.raises(UserError, match="30 features and 29 labels"):
        knn_predict(bank, labels[:-1], bank)
    for k in (0, 31):
        with pytest.raises(UserError, match=f"k={k} is not possible with a bank of 30"):
            knn_predict(bank, labels, bank, k=k)
    for bad in (math.nan, math.inf):
        broken = bank.clone()
        broken[3, 2] = bad
        for arguments in ((broken, labels, bank), (bank, labels, broken)):
            with pytest.raises(UserError, match="not finite"):
                knn_predict(*arguments)
    with pytest.raises(UserError, match="30 queries and 1 labels"):
        knn_accuracy(bank, labels, bank, labels[:1])


@pytest.mark.slow
def test_speed():
    """40,000 x 384 against 8,000 queries on two cores."""
    bank, labels = clusters(40_000, 100, 384, seed=0)
    queries, _ = clusters(8_000, 100, 384, seed=1)
    started = time.perf_counter()
    knn_predict(bank, labels, queries)
    assert time.perf_counter() - started < 20


def test_accuracies_of_every_k_are_scikit_learns():
    generator = torch.Generator().manual_seed(3)
    bank, queries = (torch.randn(300, 8, generator=generator), torch.randn(80, 8, generator=generator))
    labels, query_labels = torch.arange(300) % 7, torch.arange(80) % 7
    accuracies = knn_accuracies(bank, labels, queries, query_labels, ks=(1, 10, 20, 1000))
    assert list(accuracies) == [1, 10, 20]
    for k, scores in accuracies.items():
        # scikit-learn gives distances 1 - cosine; exp((1 - d) / T) overflows nothing here
        classifier = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(
            bank.double().numpy(), labels
        )
        assert scores["top1"] == pytest.approx(
            100 * classifier.score(queries.double().numpy(), query_labels), abs=1e-9
        )
        assert scores["top1"] == pytest.approx(knn_accuracy(bank, labels, queries, query_labels, k))
        shares = classifier.predict_proba(queries.double().numpy())
        best = np.argsort(-shares, axis=1, kind="stable")[:, :5]
        hits = [
            (row == label) & (shares[i, row] > 0)
            for i, (row, label) in enumerate(zip(best, query_labels.tolist(), strict=True))
        ]
        assert scores["top5"] == pytest.approx(
            100 * np.mean([hit.any() for hit in hits]), abs=1.3
        )  # ties at the fifth place


def test_a_bank_of_one_class():
    with pytest.raises(UserError, match="one label, so there is nothing to tell apart"):
        knn_accuracies(
            torch.randn(9, 3),
            torch.ones(9, dtype=torch.long),
            torch.randn(2, 3),
            torch.ones(2, dtype=torch.long),
        )
