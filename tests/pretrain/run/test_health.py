"""The figures against plain loops and known cases; the alarms against made-up courses."""

import math

import pytest
import torch

from pretrain.backbone import build_backbone
from pretrain.heads import ProjectionHead
from pretrain.run.health import (
    CHECKS_IN_A_ROW,
    HealthWatch,
    alarm_text,
    draw_probes,
    feature_figures,
    health_figures,
    target_figures,
)
from pretrain.self_distillation import SelfDistillation
from vision_core.images.open_source import open_source
from vision_core.images.source import ImageRecord, ImageStream, UnreadableSample

HEALTHY = {
    "teacher_entropy": 0.2, "information": 2.0, "prototypes_in_use": 0.3, "feature_spread": 0.8,
    "feature_cosine": 0.3, "rankme": 50.0,
    "dino_loss": 5.0, "gradient_norm": 1.0, "teacher_sum": 1.0,
}  # fmt: skip


def test_target_figures_are_the_formulas():
    targets = torch.softmax(
        torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 1
    )
    targets[0] = torch.tensor([0, 1, 0, 0, 0])

    def entropy(row):
        return -sum(p * math.log(p) for p in row if p > 0)

    mean_row = [sum(row[k] for row in targets.tolist()) / 7 for k in range(5)]
    mean_entropy = sum(entropy(row) for row in targets.tolist()) / 7
    figures = target_figures(targets)
    assert figures["teacher_entropy"] == pytest.approx(mean_entropy, rel=1e-12)
    assert figures["information"] == pytest.approx(entropy(mean_row) - mean_entropy, rel=1e-12)
    assert figures["prototypes_in_use"] == pytest.approx(math.exp(entropy(mean_row)) / 5, rel=1e-12)


def test_feature_figures_are_the_formulas():
    features = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in features.tolist()]
    stds = []
    for d in range(4):
        mean = sum(row[d] for row in rows) / 9
        stds.append(math.sqrt(sum((row[d] - mean) ** 2 for row in rows) / 9))
    cosines = [
        sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        for i in range(9)
        for j in range(9)
        if i != j
    ]
    values = torch.linalg.svdvals(features)
    shares = [float(value / values.sum()) + 1e-7 for value in values]
    figures = feature_figures(features)
    assert figures["feature_spread"] == pytest.approx(sum(stds) / 4 * 2, rel=1e-9)
    assert figures["feature_cosine"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-9)
    assert figures["rankme"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-9)


def test_known_features_have_known_figures():
    """Independent ones fill the sphere; a constant with a little noise has one dimension; eight
    clusters have eight."""
    generator = torch.Generator().manual_seed(0)
    even = feature_figures(torch.randn(512, 192, generator=generator))
    assert (
        even["feature_spread"] == pytest.approx(1, abs=0.01)
        and abs(even["feature_cosine"]) < 0.01
        and even["rankme"] > 170
    )
    same = feature_figures(torch.ones(512, 192) + 1e-3 * torch.randn(512, 192, generator=generator))
    assert same["feature_spread"] < 0.02 and same["feature_cosine"] > 0.999 and same["rankme"] < 1.2
    centres = torch.randn(8, 192, generator=generator).repeat(64, 1)
    assert feature_figures(centres)["rankme"] == pytest.approx(8, abs=0.5)


def test_uniform_targets_use_every_prototype_once():
    assert target_figures(torch.full((3, 8), 1 / 8))["prototypes_in_use"] == 1


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_probes_are_no_crash(rows):
    target_figures(torch.zeros(rows, 4)), feature_figures(torch.zeros(rows, 4))


def small_method(centering="softmax"):
    torch.manual_seed(0)
    backbone = build_backbone(16, 1, 2, patch_size=4, image_size=8, num_channels=3, layerscale_value=1.0)
    return SelfDistillation(backbone, ProjectionHead(16, 12, 16, 8), centering=centering)


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn_knopp"])
def test_a_look_changes_nothing(centering):
    method = small_method(centering)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    probes = draw_probes(open_source("scenes?size=32&count=20"), (8, 8), 0)
    assert probes.shape == (20, 3, 8, 8) and probes.dtype == torch.uint8
    figures = health_figures(method, probes, [0.5] * 3, [0.2] * 3, 0.07)
    assert figures == health_figures(method, probes, [0.5] * 3, [0.2] * 3, 0.07)
    method.update_centers()
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())
    if centering == "sinkhorn_knopp":
        assert figures["prototypes_in_use"] == pytest.approx(1, abs=1e-3)


def test_the_teacher_sum_notices_one_number():
    method = small_method()
    probes = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    before = health_figures(method, probes, [0.5] * 3, [0.2] * 3, 0.07)["teacher_sum"]
    with torch.no_grad():
        next(method.teacher.parameters()).flatten()[0] += 1e-6
    assert health_figures(method, probes, [0.5] * 3, [0.2] * 3, 0.07)["teacher_sum"] != before


def test_probes_that_overflow_are_left_out():
    probes = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    poisoned = torch.cat([probes, torch.full((1, 3, 8, 8), 3e38)])
    method = small_method()
    assert health_figures(method, poisoned, [0.0] * 3, [0.1] * 3, 0.07) == pytest.approx(
        health_figures(method, probes, [0.0] * 3, [0.1] * 3, 0.07)
    )


def test_probes_of_a_stream_are_its_first_readable_images():
    class Stream(ImageStream):
        def records(self, rank, world_size, epoch, start=None):
            yield UnreadableSample("0", "truncated")
            for number in range(1, 9):
                yield ImageRecord(str(number), torch.full((3, 10, 10), number, dtype=torch.uint8))

    assert draw_probes(Stream(), (8, 8), 0, count=3)[:, 0, 0, 0].tolist() == [1, 2, 3]


SICK = {
    "uniform": {"dino_loss": math.log(100), "information": 0.01},
    "few_prototypes": {"prototypes_in_use": 0.04},
    "features": {"feature_spread": 0.3},
    "rank": {"rankme": 20.0},
    "gradients": {"gradient_norm": 11.0},
    "teacher": {"teacher_sum": 1.0},
}


def course(watch, checks, sick_from, change):
    """Steps 10, 20, ...; the teacher moves unless `change` says otherwise. Returns {step:
    alarms}."""
    told = {}
    for check in range(1, checks + 1):
        figures = HEALTHY | {"teacher_sum": float(check)} | (change if check >= sick_from else {})
        alarms = watch.look_at(10 * check, figures)
        if alarms:
            told[10 * check] = alarms
    return told


def test_a_healthy_course_raises_no_alarm():
    assert course(HealthWatch(100, quiet_steps=20), 50, 99, {}) == {}


@pytest.mark.parametrize("name", SICK)
def test_each_sickness_is_told_once_when_it_has_lasted(name):
    watch = HealthWatch(100, quiet_steps=20)
    told = course(watch, 20, 8, SICK[name])
    first = 8 + CHECKS_IN_A_ROW - 1 + (name == "teacher")  # a teacher stands still from the second look on
    assert told == {10 * first: [name]}
    assert "\n" not in alarm_text(name, HEALTHY | SICK[name])


def test_growing_alike_is_an_alarm_and_being_alike_from_the_start_is_none():
    watch = HealthWatch(100, quiet_steps=0)
    assert course(watch, 10, 1, {"feature_cosine": 0.97}) == {}
    watch, told = HealthWatch(100, quiet_steps=0), []
    for check in range(6):
        told += watch.look_at(
            check + 1, HEALTHY | {"teacher_sum": float(check), "feature_cosine": 0.9 + 0.015 * check}
        )
    assert told == ["features"]


def test_nothing_is_told_in_the_quiet_steps():
    assert course(HealthWatch(100, quiet_steps=200), 20, 1, SICK["few_prototypes"]) == {}


def test_a_resumed_watch_says_the_same():
    whole = course(HealthWatch(100, quiet_steps=20), 20, 8, SICK["features"])
    first, second = HealthWatch(100, quiet_steps=20), HealthWatch(100, quiet_steps=20)
    told = course(first, 8, 8, SICK["features"])
    second.load_state_dict(first.state_dict())
    for check in range(9, 21):
        alarms = second.look_at(10 * check, HEALTHY | {"teacher_sum": float(check)} | SICK["features"])
        told |= {10 * check: alarms} if alarms else {}
    assert told == whole != {}
