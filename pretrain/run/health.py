"""Whether a run learns: figures of the teacher on a fixed set of probe images, and alarms that say
what they mean.

Every figure is measured through the teacher, in float32. With p the teacher's distribution over K
prototypes:

    teacher_entropy    mean H(p)                                 0: one prototype an image, ln K: says nothing
    information        H(mean p) - mean H(p), in nats            what a prototype tells of the image; 0 in every collapse (DINO, sec. 5.3)
    prototypes_in_use  exp(H(mean p)) / min(K, probe images)     1 at most; always 1 under Sinkhorn-Knopp
    feature_spread     mean std of L2-normalised CLS x sqrt(D)   1 spread evenly over the sphere, 0 collapsed (SimSiam, sec. 4.1)
    feature_cosine     mean cosine of two images' CLS            1 collapsed
    rankme             effective rank of the CLS features        RankMe (Garrido et al. 2023, eq. 1), not centred
    teacher_sum        sum of the absolute values of its parameters: stands still where the teacher does
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

UNIFORM_LOSS = 0.01  # of ln K
UNIFORM_INFORMATION = 0.05  # nats
FEW_PROTOTYPES = 0.05
LOST_SPREAD = 0.4  # of its first value
SAME_DIRECTION = 0.95
LOST_RANK = 0.5  # of its greatest value
GRADIENT_JUMP = 10.0  # times its median


def draw_probes(
    source: ImageSource | ImageStream,
    size: tuple[int, int],
    seed: int,
    count: int = NUM_PROBES,
    note: Callable[[list[UnreadableSample]], None] | None = None,
) -> Tensor:
    """This process's share of `count` images that stay the same all through a run: `[count /
    processes, C, *size]`, as they are stored.

    Of a stream they are its first images. Unreadable images are left out, `note` is told those of
    all processes, and all shares are cut to the smallest one. Raises UserError where a share is
    empty, or holds images of two kinds.
    """
    records = (
        _stream_records(source, count)
        if isinstance(source, ImageStream)
        else _drawn_records(source, count, seed)
    )
    images: list[Tensor] = []
    bad: list[UnreadableSample] = []
    kind = OneKind()
    for record in records:
        if isinstance(record, ImageRecord):
            kind.look_at(record.image, record.id)
            images.append(centre_view(record.image, size))
        else:
            bad.append(record)
    shares = gather_objects((len(images), bad))
    smallest = min(number for number, _ in shares)
    if not smallest:
        why = f" ({bad[0].reason}: {cure(bad[0].reason)})" if bad else ""
        raise UserError(
            f"no readable image among the first draws from {source.description}{why}; look at the files, or give more images"
        )
    if note is not None:
        note([sample for _, samples in shares for sample in samples])
    return torch.stack(images[:smallest])


@torch.no_grad()
def health_figures(
    method: SelfDistillation, probes: Tensor, mean: list[float], std: list[float], teacher_temp: float
) -> dict[str, float]:
    """The figures of the module's head. All processes call it, each with its own probes; all get
    the figures of all probes.

    Probes that overflow in the teacher are left out. Call it between two steps: what softmax
    centering remembers is forgotten.
    """
    device = next(method.parameters()).device
    parts = [
        forward_crop_groups(method.teacher["backbone"], [normalise(batch, mean, std).to(device)])[0][
            :, 0
        ].float()
        for batch in probes.split(PROBE_BATCH)
    ]
    cls = gather_rows(torch.cat(parts))
    cls = cls[cls.isfinite().all(1)]
    targets = method.dino_centering(method.teacher["dino_head"](cls), teacher_temp)
    method.dino_centering.discard()
    # in float64, where a sum notices that any of the parameters has moved
    teacher_sum = sum(float(parameter.double().abs().sum()) for parameter in method.teacher.parameters())
    return target_figures(targets) | feature_figures(cls) | {"teacher_sum": teacher_sum}


def target_figures(targets: Tensor) -> dict[str, float]:
    """teacher_entropy, information and prototypes_in_use of `[n, K]` distributions."""
    entropy, entropy_of_mean = float(_entropy(targets).mean()), float(_entropy(targets.mean(0)))
    return {
        "teacher_entropy": entropy,
        "information": entropy_of_mean - entropy,
        "prototypes_in_use": min(math.exp(entropy_of_mean) / max(min(targets.shape), 1), 1.0),
    }


def feature_figures(features: Tensor) -> dict[str, float]:
    """feature_spread, feature_cosine and rankme of `[n, D]` features.

    The mean cosine of different rows is (|sum of rows|^2 - n) / (n (n - 1)) for rows of length 1.
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
        self.uniform_loss, self.quiet_steps = math.log(num_prototypes), quiet_steps
        self.first_spread, self.greatest_rank = 0.0, 0.0
        self.last_cosine, self.last_teacher = 0.0, 0.0
        self.gradient_norms: list[float] = []
        self.streaks: dict[str, int] = {}

    def look_at(self, step: int, figures: dict[str, float]) -> list[str]:
        """The names of the alarms, keys of `MEANINGS`, that this check completes.

        `figures` are those of `health_figures` with dino_loss (mean of its terms, before its
        weight) and gradient_norm beside them.
        """
        self.first_spread = self.first_spread or figures["feature_spread"]
        self.greatest_rank = max(self.greatest_rank, figures["rankme"])
        signs = {
            "uniform": abs(figures["dino_loss"] - self.uniform_loss) < UNIFORM_LOSS * self.uniform_loss
            and figures["information"] < UNIFORM_INFORMATION,
            "few_prototypes": figures["prototypes_in_use"] < FEW_PROTOTYPES,
            "features": figures["feature_spread"] < LOST_SPREAD * self.first_spread
            or (figures["feature_cosine"] > SAME_DIRECTION and figures["feature_cosine"] > self.last_cosine),
            "rank": figures["rankme"] < LOST_RANK * self.greatest_rank,
            "gradients": bool(self.gradient_norms)
            and figures["gradient_norm"] > GRADIENT_JUMP * median(self.gradient_norms),
            "teacher": figures["teacher_sum"] == self.last_teacher,
        }
        self.gradient_norms.append(figures["gradient_norm"])
        self.last_cosine, self.last_teacher = figures["feature_cosine"], figures["teacher_sum"]
        if step <= self.quiet_steps:
            return []
        self.streaks = {name: self.streaks.get(name, 0) + 1 if sick else 0 for name, sick in signs.items()}
        return [name for name, streak in self.streaks.items() if streak == CHECKS_IN_A_ROW]

    def state_dict(self) -> dict:
        """Plain numbers, exact in JSON."""
        return {
            name: value for name, value in vars(self).items() if name not in ("uniform_loss", "quiet_steps")
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken."""
        vars(self).update(state)


MEANINGS: dict[str, Callable[[dict[str, float]], str]] = {
    "uniform": lambda figures: (
        f"the loss stands at ln K ({figures['dino_loss']:.3f}) and the teacher says the same of every image (information "
        f"{figures['information']:.3f} nats): lower teacher_temp below student_temp, lower learning_rate, or lengthen warmup_steps"
    ),
    "few_prototypes": lambda figures: (
        f"the teacher uses {figures['prototypes_in_use']:.1%} of the prototypes that it could: a low loss says nothing now; use "
        "centering=sinkhorn_knopp, lower center_momentum, or raise teacher_temp"
    ),
    "features": lambda figures: (
        f"the features of all images grow alike (cosine {figures['feature_cosine']:.2f}, spread {figures['feature_spread']:.2f}): "
        "lower learning_rate, raise koleo_loss_weight, and look whether the crops of one image still show it"
    ),
    "rank": lambda figures: (
        f"the features have fallen to {figures['rankme']:.0f} effective dimensions, less than half of what they had: lower "
        "learning_rate, raise koleo_loss_weight"
    ),
    "gradients": lambda figures: (
        f"the gradient norm is {figures['gradient_norm']:.1f}, ten times its median: lower learning_rate or max_grad_norm, look for "
        "broken images"
    ),
    "teacher": lambda figures: (
        "the teacher has not moved since the last check: lower ema_momentum, raise learning_rate"
    ),
}


def _entropy(probabilities: Tensor) -> Tensor:
    """[..., K] -> [...], in nats, with 0 ln 0 = 0."""
    return -torch.special.xlogy(probabilities, probabilities).sum(-1)


def _stream_records(stream: ImageStream, count: int) -> Iterator[ImageRecord | UnreadableSample]:
    """Until this process has its share of images."""
    wanted = count // world_size()
    for record in stream.records(rank(), world_size(), 0) if wanted else ():
        yield record
        wanted -= isinstance(record, ImageRecord)
        if not wanted:
            return


def _drawn_records(source: ImageSource, count: int, seed: int) -> Iterator[ImageRecord | UnreadableSample]:
    for index in draw_subset(len(source), count, seed, "probes")[rank() :: world_size()]:
        try:
            yield source[index]
        except UnreadableImage as error:
            yield UnreadableSample(source.id_of(index), error.reason)
