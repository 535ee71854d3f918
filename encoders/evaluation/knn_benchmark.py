"""A k-NN benchmark drawn once and held in memory, so that a run can be judged at intervals."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from encoders.adapters.raw_pixels import resized_pixels
from encoders.base import Encoder
from encoders.evaluation.baselines import channel_range, colour_histogram, to_unit_range
from encoders.evaluation.features import draw_subset, extract_features
from encoders.evaluation.knn import check_k, knn_accuracy
from encoders.evaluation.same_classes import classes_problem, numbers_in_bank
from encoders.evaluation.used_images import check_share, content_hash, found_in, none_readable
from encoders.preprocess import ImageTransform, margin_for
from vision_core.errors import UserError
from vision_core.images.held_out import draw_files
from vision_core.images.one_kind import OneKind
from vision_core.images.source import ImageSource, UnreadableSample
from vision_core.runs.data_facts import image_facts
from vision_core.unreadable import UnreadableImage

BATCH_SIZE = 128
BASELINES = {"raw_pixels": resized_pixels, "colour_histogram": colour_histogram}


class _ToldToStop(Exception):
    """Raised between two batches of an evaluation that is to end."""


class LabelledImages(NamedTuple):
    """Images in memory.

    Attributes:
        images: `[n, C, H, W]` uint8 or float32.
        labels: `[n]`.
        contents: `[n, 2]` hashes.
        bad: the images that were left out because they cannot be read.
        margin: the largest with which an image was cropped.
    """

    images: Tensor
    labels: Tensor
    contents: Tensor
    bad: list[UnreadableSample]
    margin: float

    @property
    def unreadable(self) -> int:
        """How many images could not be read."""
        return len(self.bad)

    def only(self, chosen: Tensor) -> "LabelledImages":
        """Those of the images for which `[n]` bool is true."""
        return self._replace(
            images=self.images[chosen], labels=self.labels[chosen], contents=self.contents[chosen]
        )

    def with_numbers(self, numbers: dict[int, int]) -> "LabelledImages":
        """The same images with `numbers[label]` for each label."""
        labels = [numbers[label] for label in self.labels.tolist()]
        return self._replace(labels=torch.tensor(labels))


class KnnBenchmark:
    """k-NN of queries in a bank, both drawn by `seed`; from one and the same source they are
    disjoint.

    A query never finds itself: what the bank has of the queries, by its content, is left out of the
    bank.

    Args:
        transform: the size at which images are judged, the encoder's normalisation, how much is cut
            off around the centre.
        max_bad_fraction: the share of unreadable images, of the bank or of the queries, above which
            UserError is raised.
        origin: where the bank comes from, in words, if that needs saying.

    Attributes:
        bank, queries: the images, before normalisation; labels are numbers of the bank's classes.
        bad: what could not be read.
        in_bank: how many queries were in the bank.
        sizes: {"bank", "queries", "classes", "k", "unreadable"}, of the images that are used.
        margin: the largest that an image was given; 1 where no image was cropped.
        description: the same in words.
    """

    def __init__(
        self,
        bank_source: ImageSource,
        query_source: ImageSource,
        *,
        bank_size: int,
        num_queries: int,
        transform: ImageTransform,
        k: int = 20,
        seed: int = 0,
        progress: bool = False,
        max_bad_fraction: float = 1.0,
        origin: str = "",
    ) -> None:
        bank, queries = draw_bank_and_queries(bank_source, query_source, bank_size, num_queries, seed)
        check_k(k, len(bank))
        kind = OneKind()
        self.bank = load_images(bank_source, bank, transform, progress, kind)
        self.queries = load_images(query_source, queries, transform, progress, kind)
        self.bad = [*self.bank.bad, *self.queries.bad]
        check_share(self.bank.bad, len(bank), max_bad_fraction, "images of the k-NN bank")
        check_share(self.queries.bad, len(queries), max_bad_fraction, "k-NN queries")
        self.queries = self.queries.with_numbers(numbers_in_bank(bank_source, query_source))
        self.in_bank = self._leave_queries_out_of_the_bank(bank_source.description)
        check_k(k, len(self.bank.labels))
        self.transform = transform
        self.k = k
        self.origin = origin
        self.data = [image_facts("eval_dataset", query_source), image_facts("eval_bank_dataset", bank_source)]
        self.margin = max(self.bank.margin, self.queries.margin)
        self.sizes = {
            "bank": len(self.bank.labels),
            "queries": len(self.queries.labels),
            "classes": len(set(self.bank.labels.tolist())),
            "k": k,
            "unreadable": len(self.bad),
        }

    def _leave_queries_out_of_the_bank(self, description: str) -> int:
        """Take the queries out of the bank, and give how many were there. Raises UserError where
        the bank has nothing else."""
        is_query = found_in(self.bank.contents, self.queries.contents)
        if is_query.all():
            raise UserError(
                f"k-NN: all {len(is_query):,} images drawn for the bank, of {description}, are queries too; "
                "name other images by --eval_bank_dataset, or lower --knn_num_queries"
            )
        num_queries = int(found_in(self.queries.contents, self.bank.contents).sum())
        if num_queries:
            self.bank = self.bank.only(~is_query)
        return num_queries

    @property
    def description(self) -> str:
        """The sizes in words."""
        bank, queries, classes, k, _ = self.sizes.values()
        words = f"bank {bank:,}, queries {queries:,}, {classes} classes, k = {k}"
        if self.bad:
            words += f", {len(self.bad)} unreadable images left out"
        if self.in_bank:
            words += (
                f"; {self.in_bank:,} of {queries:,} queries are in the bank; "
                "those images were left out of the bank"
            )
        return f"{words}; {self.origin}" if self.origin else words

    def evaluate(
        self, encoder: Encoder, told_to_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Accuracy in percent of the encoder's CLS token and of the mean of its patch tokens; {}
        once `told_to_stop()`, asked before each batch."""
        try:
            bank = extract_features(encoder, self._pixels(self.bank, told_to_stop))
            queries = extract_features(encoder, self._pixels(self.queries, told_to_stop))
        except _ToldToStop:
            return {}
        return {name: self._accuracy(bank[name], queries[name]) for name in bank}

    def evaluate_baselines(self) -> dict[str, float]:
        """Accuracy in percent of raw pixels and of the colour histogram, both of images scaled to
        0..1 by the bank's range."""
        accuracies = {}
        for name, baseline in BASELINES.items():
            bank = self._baseline_features(self.bank, baseline)
            queries = self._baseline_features(self.queries, baseline)
            accuracies[name] = self._accuracy(bank, queries)
        return accuracies

    def _baseline_features(self, part: LabelledImages, baseline: Callable[[Tensor], Tensor]) -> Tensor:
        low, high = channel_range(self.bank.images)
        batches = part.images.split(BATCH_SIZE)
        return torch.cat([baseline(to_unit_range(batch, low, high)) for batch in batches])

    def _pixels(self, part: LabelledImages, told_to_stop: Callable[[], bool]) -> Iterator[Tensor]:
        for batch in part.images.split(BATCH_SIZE):
            if told_to_stop():
                raise _ToldToStop
            yield self.transform.pixels(batch)

    def _accuracy(self, bank: Tensor, queries: Tensor) -> float:
        return knn_accuracy(bank, self.bank.labels, queries, self.queries.labels, self.k)


def draw_bank_and_queries(
    bank_source: ImageSource, query_source: ImageSource, bank_size: int, num_queries: int, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of the bank and of the queries, a function of `seed`; where both sources are one
    object, no file is in both.

    There may then be fewer queries than `num_queries`, since files are not divided.

    Raises UserError for sources without labels or with other classes, and where nothing is left for
    the bank.
    """
    _check_labels(bank_source, query_source)
    queries = draw_subset(len(query_source), len(query_source), seed, "knn queries")
    bank = draw_subset(len(bank_source), len(bank_source), seed, "knn bank")
    if bank_source is query_source:
        taken = draw_files(query_source, queries, num_queries, len(query_source) - 1)
        queries = [index for index in queries if index in taken]
        bank = [index for index in bank if index not in taken]
        _check_division(bank_source, bank, queries, num_queries)
    return bank[:bank_size], queries[:num_queries]


def _check_division(source: ImageSource, bank: list[int], queries: list[int], num_queries: int) -> None:
    if not queries or not bank:
        raise UserError(
            f"k-NN: {num_queries} queries leave nothing of {source.description} for the bank; "
            "lower them, or name images of more files"
        )


def _check_labels(bank_source: ImageSource, query_source: ImageSource) -> None:
    """Raise UserError for sources without labels, or with labels of other classes."""
    for source in (bank_source, query_source):
        if source.labels is None:
            raise UserError(
                f"k-NN needs labels, and {source.description} has none; "
                "name labelled images, or in pretraining --eval_dataset none"
            )
    problem = classes_problem(bank_source, query_source)
    if problem:
        raise UserError(
            f"k-NN: {problem}; name images of the same classes for both, by --eval_dataset and --eval_bank_dataset"
        )


def load_images(
    source: ImageSource,
    indices: list[int],
    transform: ImageTransform,
    progress: bool = False,
    kind: OneKind | None = None,
) -> LabelledImages:
    """The views of `source[indices]`; unreadable images are left out and named.

    kind: of images that these are compared with. Raises UserError where images are of two kinds,
    and where none can be read.
    """
    kind = kind or OneKind()
    images = torch.empty(0)
    labels, contents, bad = [], [], []
    largest = 1.0
    for index in tqdm(indices, desc="reading images to judge by", disable=not progress, leave=False):
        try:
            record = source[index]
        except UnreadableImage as error:
            bad.append(UnreadableSample(source.id_of(index), error.reason))
            continue
        kind.look_at(record.image, record.id)
        largest = max(largest, margin_for(record.image, transform.size, transform.margin))
        view = transform.view(record.image)
        if not labels:  # one tensor for all, since a list and its stack would take twice the memory
            images = view.new_empty(len(indices), *view.shape)
        images[len(labels)] = view
        labels.append(record.label)
        contents.append(content_hash(view))
    if not labels:
        raise none_readable(source.description, bad)
    return LabelledImages(images[: len(labels)], torch.tensor(labels), torch.stack(contents), bad, largest)
