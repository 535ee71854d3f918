import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier

from encoders.evaluation.linear import BATCH, REFERENCE_BATCH, train_heads
from encoders.evaluation.multi_label import (
    average_precision,
    knn_mean_average_precision,
    mean_average_precision,
    multi_label_probe,
    several_classes_error,
)
from vision_core.errors import UserError


def drawn(images: int, seed: int, width: int = 12, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Features from which each of `classes` can be told along a direction of its own, and the
    marks."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, width, generator=generator)
    return features, features[:, :classes] > 0.5


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_average_precision_is_that_of_scikit_learn(levels: int) -> None:
    """With scores that are equal, too."""
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (60, 7), generator=generator).float()
    marks = torch.rand(60, 7, generator=generator) < torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.95, 1.0])
    marks[0, 0] = True
    ours = average_precision(scores, marks)
    theirs = [
        average_precision_score(marks[:, number].numpy(), scores[:, number].numpy()) for number in range(7)
    ]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-12)
    assert mean_average_precision(scores, marks) == pytest.approx(100 * np.mean(theirs))
    assert mean_average_precision(scores, marks) == pytest.approx(
        100 * average_precision_score(marks.numpy(), scores.numpy())
    )


def test_a_class_without_an_image_is_left_out() -> None:
    scores, marks = torch.rand(9, 3), torch.zeros(9, 3, dtype=torch.bool)
    marks[:4, 0] = marks[2:, 2] = True
    figures = average_precision(scores, marks)
    assert figures[1].isnan() and not figures[[0, 2]].isnan().any()
    assert mean_average_precision(scores, marks) == pytest.approx(100 * figures[[0, 2]].mean().item())


def test_heads_learn_by_the_gradient_of_binary_cross_entropy() -> None:
    """Against torch's SGD on a layer with the same start, batch for batch (all images in one)."""
    features, marks = drawn(40, 0)
    weight, bias = train_heads(
        features, marks.float(), 4, 25, seed=3, rates=(0.1, 0.5), error_of=several_classes_error
    )
    for head, rate in enumerate((0.1, 0.5)):
        layer = torch.nn.Linear(12, 4)
        with torch.no_grad():
            layer.weight.copy_((0.01 * torch.randn(12, 4, generator=torch.Generator().manual_seed(3))).T)
            layer.bias.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate * BATCH / REFERENCE_BATCH, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (1 + math.cos(math.pi * step / 25)) / 2
        )
        for _ in range(25):
            optimizer.zero_grad()
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                layer(features), marks.float(), reduction="none"
            )
            losses.sum(1).mean().backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(weight[head].T, layer.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bias[head], layer.bias.detach(), rtol=1e-4, atol=1e-5)


def test_the_probe_finds_what_can_be_told_and_chance_where_nothing_can() -> None:
    (features, marks), (test_features, test_marks) = drawn(400, 0), drawn(200, 1)
    found = multi_label_probe(
        [features], features, marks, [test_features], test_features, test_marks, iterations=2000
    )
    reference = OneVsRestClassifier(LogisticRegression()).fit(features.numpy(), marks.numpy())
    wanted = 100 * average_precision_score(
        test_marks.numpy(), reference.decision_function(test_features.numpy())
    )
    assert found.mean_ap == pytest.approx(wanted, abs=2) and found.mean_ap > 97
    assert len(found.table) == 26 and len(found.class_ap) == 4
    assert found.chosen["held_out_mAP"] == max(row["held_out_mAP"] for row in found.table)
    noise, test_noise = drawn(400, 5)[0], drawn(200, 6)[0]
    blind = multi_label_probe([noise], noise, marks, [test_noise], test_noise, test_marks, iterations=50)
    assert blind.mean_ap < 100 * test_marks.float().mean().item() + 15


def test_neighbours_vote_for_all_their_classes() -> None:
    """Against the loop of the formula."""
    (bank, marks), (queries, query_marks) = drawn(50, 2), drawn(20, 3)
    found = knn_mean_average_precision(bank, marks, queries, query_marks, ks=(3, 10, 200))
    assert list(found) == [3, 10]
    near = (
        torch.nn.functional.normalize(queries, dim=1).double()
        @ torch.nn.functional.normalize(bank, dim=1).double().T
    )
    scores = torch.zeros(20, 4, dtype=torch.double)
    for row, similarity in enumerate(near):
        best = similarity.argsort(descending=True)[:10]
        weights = (similarity[best] / 0.07).exp()
        scores[row] = (weights[:, None] * marks[best]).sum(0) / weights.sum()
    assert found[10] == pytest.approx(
        100 * average_precision_score(query_marks.numpy(), scores.numpy()), abs=1e-3
    )


def test_what_is_impossible_is_said() -> None:
    features, marks = drawn(10, 0)
    nothing = torch.zeros_like(marks)
    with pytest.raises(UserError, match="no test image has a class"):
        multi_label_probe([features], features, marks, [features], features, nothing)
    with pytest.raises(UserError, match="fewer than two training images have a class"):
        multi_label_probe([features], features, nothing, [features], features, marks)


def test_the_program_judges_lists_of_classes(runs, tmp_path) -> None:
    """Names in another order in each part, an image without a class, a class that no test image
    has."""
    from PIL import Image

    def part(name: str, rows: list[list[str]], column: str) -> None:
        images = []
        for number, row in enumerate(rows):
            path = tmp_path / "picture.png"
            colour = [
                200 * ("red" in row) + number % 40,
                200 * ("green" in row) + number % 40,
                200 * ("blue" in row),
            ]
            Image.new("RGB", (16, 16), tuple(colour)).save(path)
            images.append({"bytes": path.read_bytes(), "path": None})
        pq.write_table(
            pa.table({"image": images, column: pa.array(rows, pa.list_(pa.string()))}),
            tmp_path / f"{name}.parquet",
        )

    part("train", [["red"], ["green", "red"], [], ["blue"], ["green"], ["never", "blue"]] * 10, "tags")
    part("test", [["green"], ["red"], [], ["green", "red"], ["blue"]] * 4, "tags")
    common = ("--encoder", "raw_pixels", "--linear_iterations", "200", "--cache_dir", tmp_path / "cache")
    script, data = "recipes/evaluate_encoder.py", f"parquet:{tmp_path}/{{split}}.parquet?label=tags"
    printed = runs.finish(
        runs.start(
            script, *common, "--dataset", data, "--tasks", "multi_label", "--output_dir", tmp_path / "out"
        )
    )
    result = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["multi_label"]
    assert result["metrics"]["mAP"] > 90 and "multi_label" in printed
    assert (
        result["details"]["AP of each class"]["never"] is None
        and result["details"]["classes without a test image"] == 1
    )
    assert "mAP over 3 classes, 1 left out that no test image has" in result["protocol"]
    said = runs.error(script, *common, "--dataset", data, "--tasks", "knn", "--output_dir", tmp_path / "no")
    described = "60 images in 1 parquet files, 4 classes, several classes an image: for the task multi_label"
    assert f"knn needs label, which {described}" in said


def test_test_images_are_not_learnt_from(runs, tmp_path) -> None:
    """The same images in both parts but one: the one is left of the training images, and all is
    counted."""
    from PIL import Image

    rows = []
    for number in range(8):
        path = tmp_path / "picture.png"
        Image.new("RGB", (16, 16), (30 * number, 0, 0)).save(path)
        rows.append({"image": {"bytes": path.read_bytes(), "path": None}, "tags": [("a", "b")[number % 2]]})
    for name, some in (("train", rows), ("test", rows[:4])):
        columns = {
            "image": [row["image"] for row in some],
            "tags": pa.array([row["tags"] for row in some], pa.list_(pa.string())),
        }
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    arguments = (
        "--encoder",
        "raw_pixels",
        "--linear_iterations",
        "20",
        "--cache_dir",
        tmp_path / "cache",
        "--tasks",
        "multi_label",
    )
    data = ("--dataset", f"parquet:{tmp_path}/{{split}}.parquet?label=tags", "--output_dir", tmp_path / "out")
    runs.finish(runs.start("recipes/evaluate_encoder.py", *arguments, *data))
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        report["results"]["multi_label"]["images"] == {"train": 4, "test": 4}
        and report["test_images_in_training"] == 4
    )
