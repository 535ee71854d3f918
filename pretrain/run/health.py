"""Measures whether a run learns: figures of the teacher on a fixed set of probe images, and alarms
that say what they mean.

Every figure is measured through the teacher, in float32. With p the teacher's distribution over K
prototypes:

    teacher_entropy    mean H(p)                                 0: one prototype an image, ln K: says nothing
    information        H(mean p) - mean H(p), in nats            what a prototype tells of the image;
                                                                 0 in every collapse (DINO, sec. 5.3)
    prototypes_in_use  exp(H(mean p)) / min(K, probe images)     1 at most; always 1 under Sinkhorn-Knopp
    feature_spread     mean std of L2-normalised CLS x sqrt(D)   1 spread evenly over the sphere,
                                                                 0 collapsed (SimSiam, sec. 4.1)
    feature_cosine     mean cosine of two images' CLS            1 collapsed
    rankme             effective rank of the CLS features        RankMe (Garrido et al. 2023, eq. 1), not centred
    teacher_sum        sum of its parameters' absolute values    does not change where the teacher does not
"""

import math
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.evaluation.features import draw_subset
from encoders.preprocess import centre_view, normalise
from pretrain.crop_groups import forward_crop_groups
from pretrain.self_distillation import SelfDistillation
from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.one_kind import OneKind
from vision_core.images.source import ImageRecord, ImageSource, ImageStream, UnreadableSample
from vision_core.processes.distributed import gather_objects, gather_rows, rank, world_size
from vision_core.unreadable import cure

NUM_PROBES = 512
PROBE_BATCH = 64
CHECKS_PER_RUN = 25
CHECKS_IN_A_ROW = 2

UNIFORM_LOSS = 0.01  # share of ln K
UNIFORM_INFORMATION = 0.05  # nats
FEW_PROTOTYPES = 0.05
LOST_SPREAD = 0.4  # share of its first value
SAME_DIRECTION = 0.95
LOST_RANK = 0.5  # share of its greatest value
GRADIENT_JUMP = 10.0  # times its median

# The alarms, with what each means and how to cure it, for `str.format` with the figures.
MEANINGS = {
    "uniform": (
        "the loss stands at ln K ({dino_loss:.3f}) and the teacher says the same of every image "
        "(information {information:.3f} nats): lower teacher_temp below student_temp, lower learning_rate, "
        "or lengthen warmup_steps"
    ),
    "few_prototypes": (
        "the teacher uses {prototypes_in_use:.1%} of the prototypes that it could: a low loss says nothing "
        "now; use centering=sinkhorn_knopp, lower center_momentum, or raise teacher_temp"
    ),
    "features": (
        "the features of all images grow alike (cosine {feature_cosine:.2f}, spread {feature_spread:.2f}): "
        "lower learning_rate, raise koleo_loss_weight, and look whether the crops of one image still show it"
    ),
    "rank": (
        "the features have fallen to {rankme:.0f} effective dimensions, less than half of what they had: "
        "lower learning_rate, raise koleo_loss_weight"
    ),
    "gradients": (
        "the gradient norm is {gradient_norm:.1f}, ten times its median: lower learning_rate or "
        "max_grad_norm, look for broken images"
    ),
    "teacher": "the teacher has not moved since the last check: lower ema_momentum, raise learning_rate",
}


def alarm_text(alarm: str, figures: dict[str, float]) -> str:
    """What an alarm means, with the figures that raised it."""
    return MEANINGS[alarm].format(**figures)


def draw_probes(
    source: ImageSource | ImageStream,
    size: tuple[int, int],
    seed: int,
    count: int = NUM_PROBES,
    note: Callable[[list[UnreadableSample]], None] | None = None,
) -> Tensor:
    """This process's share of `count` images that stay the same all through a run:
    `[count / processes, C, *size]`, as they are stored.

    Those of a stream are its first images. Unreadable images are left out; `note` is told those of
    all processes. All shares are as long as the smallest one. Raises UserError where a share is
    empty, or holds images of two kinds.
    """
    if isinstance(source, ImageStream):
        records = _first_records(source, count)
    else:
        records = _drawn_records(source, count, seed)
    images, unreadable = _read_views(records, size)
    shares = gather_objects((len(images), unreadable))
    smallest = min(number for number, _ in shares)
    if not smallest:
        raise UserError(_no_probes_text(source, unreadable))
    if note is not None:
        of_all: list[UnreadableSample] = []
        for _, samples in shares:
            of_all += samples
        note(of_all)
    return torch.stack(images[:smallest])


@torch.no_grad()
def health_figures(
    method: SelfDistillation, probes: Tensor, mean: list[float], std: list[float], teacher_temp: float
) -> dict[str, float]:
    """The figures that the head of this module names. All processes call it, each with its own
    probes; all get the figures of all probes.

    Probes that overflow in the teacher are left out. Call it between two steps: what softmax
    centering remembers is forgotten.
    """
    cls = gather_rows(_teacher_cls(method, probes, mean, std))  # [P, D]
    cls = cls[cls.isfinite().all(1)]
    targets = method.dino_centering(method.teacher["dino_head"](cls), teacher_temp)  # [P, K]
    method.dino_centering.discard()
    # in float64, where a sum notices that any of the parameters has moved
    teacher_sum = sum(float(parameter.double().abs().sum()) for parameter in method.teacher.parameters())
    return target_figures(targets) | feature_figures(cls) | {"teacher_sum": teacher_sum}


def _teacher_cls(method: SelfDistillation, probes: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """The teacher's CLS features of this process's probes, float32 `[p, D]`."""
    device = next(method.parameters()).device
    parts: list[Tensor] = []
    for batch in probes.split(PROBE_BATCH):
        pixels = normalise(batch, mean, std).to(device)  # [b, C, H, W]
        (tokens,) = forward_crop_groups(method.teacher["backbone"], [pixels])  # [b, 1 + R + N, D]
        parts.append(tokens[:, 0].float())
    return torch.cat(parts)


def target_figures(targets: Tensor) -> dict[str, float]:
    """teacher_entropy, information and prototypes_in_use of `[P, K]` distributions."""
    entropy = float(_entropy(targets).mean())
    entropy_of_mean = float(_entropy(targets.mean(0)))
    return {
        "teacher_entropy": entropy,
        "information": entropy_of_mean - entropy,
        "prototypes_in_use": min(math.exp(entropy_of_mean) / max(min(targets.shape), 1), 1.0),
    }


def feature_figures(features: Tensor) -> dict[str, float]:
    """feature_spread, feature_cosine and rankme of `[P, D]` features.

    The mean cosine of different rows is (|sum of rows|^2 - P) / (P (P - 1)) for rows of length 1.
    """
    count, width = features.shape
    rows = F.normalize(features, dim=1)
    values = torch.linalg.svdvals(features)
    shares = values / values.sum().clamp_min(1e-12) + 1e-7  # the paper's epsilon
    return {
        "feature_spread": float(rows.std(0, correction=0).mean()) * math.sqrt(width),
        "feature_cosine": float(rows.sum(0).square().sum() - count) / max(count * (count - 1), 1),
        "rankme": float(torch.exp(-(shares * shares.log()).sum())),
    }


class HealthWatch:
    """Looks at the figures of one check after another and names what is wrong.

    An alarm needs `CHECKS_IN_A_ROW` sick checks, none of them within the first `quiet_steps`. Its
    state is part of a checkpoint.
    """

    def __init__(self, num_prototypes: int, quiet_steps: int) -> None:
        self.uniform_loss = math.log(num_prototypes)
        self.quiet_steps = quiet_steps
        self.first_spread = 0.0
        self.greatest_rank = 0.0
        self.last_cosine = 0.0
        self.last_teacher = 0.0
        self.gradient_norms: list[float] = []
        self.streaks: dict[str, int] = {}

    def look_at(self, step: int, figures: dict[str, float]) -> list[str]:
        """The names of the alarms, keys of `MEANINGS`, that this check completes.

        figures: those of `health_figures` with dino_loss (mean of its terms, before its weight) and
        gradient_norm beside them.
        """
        self.first_spread = self.first_spread or figures["feature_spread"]
        self.greatest_rank = max(self.greatest_rank, figures["rankme"])
        signs = self._signs(figures)
        self.gradient_norms.append(figures["gradient_norm"])
        self.last_cosine = figures["feature_cosine"]
        self.last_teacher = figures["teacher_sum"]
        if step <= self.quiet_steps:
            return []
        streaks: dict[str, int] = {}
        for name, is_sick in signs.items():
            streaks[name] = self.streaks.get(name, 0) + 1 if is_sick else 0
        self.streaks = streaks
        return [name for name, streak in streaks.items() if streak == CHECKS_IN_A_ROW]

    def _signs(self, figures: dict[str, float]) -> dict[str, bool]:
        """Whether this check alone raises each alarm."""
        distance_to_uniform = abs(figures["dino_loss"] - self.uniform_loss)
        loss_is_uniform = distance_to_uniform < UNIFORM_LOSS * self.uniform_loss
        spread_is_lost = figures["feature_spread"] < LOST_SPREAD * self.first_spread
        cosine = figures["feature_cosine"]
        directions_meet = cosine > SAME_DIRECTION and cosine > self.last_cosine
        gradients_jump = bool(self.gradient_norms) and (
            figures["gradient_norm"] > GRADIENT_JUMP * median(self.gradient_norms)
        )
        return {
            "uniform": loss_is_uniform and figures["information"] < UNIFORM_INFORMATION,
            "few_prototypes": figures["prototypes_in_use"] < FEW_PROTOTYPES,
            "features": spread_is_lost or directions_meet,
            "rank": figures["rankme"] < LOST_RANK * self.greatest_rank,
            "gradients": gradients_jump,
            "teacher": figures["teacher_sum"] == self.last_teacher,
        }

    def state_dict(self) -> dict:
        """Plain numbers, exact in JSON."""
        state = dict(vars(self))
        del state["uniform_loss"]
        del state["quiet_steps"]
        return state

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken."""
        vars(self).update(state)


def _read_views(
    records: Iterator[ImageRecord | UnreadableSample], size: tuple[int, int]
) -> tuple[list[Tensor], list[UnreadableSample]]:
    """The centres of the images `[C, *size]`, and what could not be read."""
    images: list[Tensor] = []
    unreadable: list[UnreadableSample] = []
    kind = OneKind()
    for record in records:
        if isinstance(record, ImageRecord):
            kind.look_at(record.image, record.id)
            images.append(centre_view(record.image, size))
        else:
            unreadable.append(record)
    return images, unreadable


def _no_probes_text(source: ImageSource | ImageStream, unreadable: list[UnreadableSample]) -> str:
    why = ""
    if unreadable:
        reason = unreadable[0].reason
        why = f" ({reason}: {cure(reason)})"
    return (
        f"no readable image among the first draws from {source.description}{why}; look at the files, "
        "or give more images"
    )


def _entropy(probabilities: Tensor) -> Tensor:
    """The entropy of each row in nats, with 0 ln 0 = 0: `[..., K]` -> `[...]`."""
    return -torch.special.xlogy(probabilities, probabilities).sum(-1)


def _first_records(stream: ImageStream, count: int) -> Iterator[ImageRecord | UnreadableSample]:
    """The stream's records until this process has its share of `count` images."""
    missing = count // world_size()
    if not missing:
        return
    for record in stream.records(rank(), world_size(), 0):
        yield record
        if isinstance(record, ImageRecord):
            missing -= 1
        if not missing:
            return


def _drawn_records(source: ImageSource, count: int, seed: int) -> Iterator[ImageRecord | UnreadableSample]:
    """This process's share of a fixed random draw of images."""
    for index in draw_subset(len(source), count, seed, "probes")[rank() :: world_size()]:
        try:
            yield source[index]
        except UnreadableImage as error:
            yield UnreadableSample(source.id_of(index), error.reason)
