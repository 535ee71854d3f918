from pathlib import Path

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.evaluation.features import draw_subset, extract_features
from encoders.evaluation.knn_benchmark import KnnBenchmark, draw_bank_and_queries, load_images
from encoders.evaluation.used_images import found_in
from encoders.preprocess import PUBLISHED_MARGIN, ImageTransform, centre_view, normalise
from vision_core.errors import UserError
from vision_core.images.open_source import open_source

CIFAR = Path(__file__).resolve().parents[3] / "../shared/data/cifar10"
TRANSFORM = ImageTransform((32, 32), (0.5,) * 3, (0.25,) * 3, margin=PUBLISHED_MARGIN)
SETTINGS = {"transform": TRANSFORM}


def pictures(count, seed, channels=3, dtype=torch.uint8):
    """Noise whose brightness tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = [index % 4 for index in range(count)]
    images = [torch.rand(channels, 40 + label, 36, generator=generator) * 60 + 40 * label for label in labels]
    return [image.to(dtype) for image in images], labels


def test_one_source_is_cut_in_two(memory_source):
    source = memory_source(*pictures(50, 0))
    bank, queries = draw_bank_and_queries(source, source, 1000, 12, seed=3)
    assert len(queries) == 12 and sorted(bank + queries) == list(range(50))
    assert (bank, queries) == draw_bank_and_queries(source, source, 1000, 12, seed=3)
    assert queries != draw_bank_and_queries(source, source, 1000, 12, seed=4)[1]
    smaller, same_queries = draw_bank_and_queries(source, source, 20, 12, seed=3)
    assert smaller == bank[:20] and same_queries == queries
    other = memory_source(*pictures(30, 1))
    bank, queries = draw_bank_and_queries(source, other, 1000, 1000, seed=3)
    assert len(bank) == 50 and len(queries) == 30


@pytest.mark.parametrize(("num_queries", "found"), [(60, 60), (50, 40), (12, 12)])
def test_no_file_is_in_the_bank_and_in_the_queries(memory_source, num_queries, found):
    """Six volumes of twenty slices: half of the images as queries touched every volume, and left
    nothing for the bank."""
    source = memory_source([None] * 120, [index // 20 % 2 for index in range(120)])
    source.file_of = lambda index: f"volume {index // 20}"
    bank, queries = draw_bank_and_queries(source, source, 1000, num_queries, seed=3)
    assert len(queries) == found and len(bank) == 120 - 20 * -(-found // 20)
    assert not {index // 20 for index in bank} & {index // 20 for index in queries}
    source.file_of = lambda index: "one volume"
    with pytest.raises(UserError, match="queries leave nothing .* lower them, or name images of more files"):
        draw_bank_and_queries(source, source, 1000, num_queries, seed=3)


def test_the_draw_of_images_that_are_files_is_that_of_earlier_versions(memory_source):
    source = memory_source(*pictures(50, 0))
    bank, queries = draw_bank_and_queries(source, source, 1000, 12, seed=3)
    assert queries == draw_subset(50, 12, 3, "knn queries")
    assert bank == [index for index in draw_subset(50, 50, 3, "knn bank") if index not in queries]


def test_unreadable_images_are_left_out_and_counted(memory_source):
    images, labels = pictures(20, 0)
    images[3] = images[7] = None
    loaded = load_images(memory_source(images, labels), [7, 3, 5, 6], ImageTransform((32, 32)))
    assert loaded.unreadable == 2 and loaded.labels.tolist() == [1, 2] and loaded.images.dtype == torch.uint8
    assert torch.equal(loaded.images[1], centre_view(images[6], (32, 32), 1.0))
    source = memory_source(images, labels)
    benchmark = KnnBenchmark(source, source, bank_size=15, num_queries=5, k=3, **SETTINGS)
    assert benchmark.sizes["bank"] + benchmark.sizes["queries"] == 18 and benchmark.sizes["unreadable"] == 2
    assert benchmark.description.endswith("4 classes, k = 3, 2 unreadable images left out")
    with pytest.raises(UserError, match="none of 2 images of images in memory could be read"):
        load_images(source, [3, 7], TRANSFORM)


@pytest.mark.parametrize(("side", "margin"), [(8, 1.0), (32, 1.0), (40, 256 / 224)])
def test_the_margin_is_the_one_that_images_were_given(memory_source, side, margin):
    images = [torch.full((3, side, side), number, dtype=torch.uint8) for number in range(6)]
    source = memory_source(images, [0, 1] * 3)
    benchmark = KnnBenchmark(source, source, bank_size=4, num_queries=2, k=1, **SETTINGS)
    assert benchmark.margin == margin


def test_an_evaluation_that_is_told_to_stop_ends_before_its_next_batch_and_has_no_result(
    memory_source, tiny_model
):
    source, model = memory_source(*pictures(60, 0)), TransformersEncoder(tiny_model(2), TRANSFORM)
    benchmark = KnnBenchmark(
        source, memory_source(*pictures(40, 1)), bank_size=60, num_queries=40, k=1, **SETTINGS
    )
    model_is_training, asked = model.model.training, []

    def told_at_the_second_batch() -> bool:
        asked.append(True)
        return len(asked) == 2

    assert benchmark.evaluate(model, told_at_the_second_batch) == {} and len(asked) == 2
    assert model.model.training == model_is_training and set(benchmark.evaluate(model)) == {
        "cls",
        "patch_mean",
    }


def test_evaluation_is_features_and_neighbours(memory_source, tiny_model):
    bank_source, query_source, model = (
        memory_source(*pictures(60, 0)),
        memory_source(*pictures(40, 1)),
        TransformersEncoder(tiny_model(2), TRANSFORM),
    )
    benchmark = KnnBenchmark(bank_source, query_source, bank_size=60, num_queries=40, k=1, **SETTINGS)
    accuracies = benchmark.evaluate(model)
    # the published view by hand, in the sources' own order; k = 1 needs no weights
    sets = []
    for source in (bank_source, query_source):
        views = torch.stack([centre_view(image, (32, 32), 256 / 224) for image in source.images])
        sets.append(extract_features(model, normalise(views, [0.5] * 3, [0.25] * 3)))
    for name, accuracy in accuracies.items():
        classifier = KNeighborsClassifier(1, metric="cosine").fit(sets[0][name].numpy(), bank_source.labels)
        assert accuracy == pytest.approx(
            100 * classifier.score(sets[1][name].numpy(), query_source.labels), abs=1e-4
        )
    assert set(accuracies) == {"cls", "patch_mean"}


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_baselines_do_not_depend_on_the_scale_of_multi_band_data(memory_source, channels):
    images, labels = pictures(80, 0, channels, torch.float32)
    accuracies = []
    for scale in (1.0, 40.0):
        source = memory_source([image * scale - 100 for image in images], labels)
        benchmark = KnnBenchmark(
            source,
            source,
            bank_size=60,
            num_queries=20,
            k=5,
            transform=ImageTransform((32, 32), (0.0,), (1.0,)),
        )
        accuracies.append(benchmark.evaluate_baselines())
    assert accuracies[0] == accuracies[1]
    assert accuracies[0]["colour_histogram"] > 90  # brightness tells the class


def test_a_query_never_finds_itself(memory_source):
    """The bank holds 3 of the 10 queries under other names, one of them twice."""
    images, labels = pictures(60, 0)
    others, other_labels = pictures(7, 1)
    shared = [images[5], images[6], images[7]]
    bank = memory_source([*images[:30], images[5]], [*labels[:30], labels[5]])
    queries = memory_source([*others, *shared], [*other_labels, *labels[5:8]])
    benchmark = KnnBenchmark(bank, queries, bank_size=100, num_queries=100, k=1, **SETTINGS)
    assert benchmark.sizes["bank"] == 31 - 4 and benchmark.sizes["queries"] == 10 and benchmark.in_bank == 3
    assert (
        "; 3 of 10 queries are in the bank; those images were left out of the bank" in benchmark.description
    )
    assert not found_in(benchmark.bank.contents, benchmark.queries.contents).any()
    alone = KnnBenchmark(
        memory_source(images[8:30], labels[8:30]),
        memory_source(others, other_labels),
        bank_size=99,
        num_queries=99,
        k=1,
        **SETTINGS,
    )
    assert alone.in_bank == 0 and "queries are in" not in alone.description
    with pytest.raises(
        UserError, match="all 3 images drawn for the bank, of images in memory, are queries too"
    ):
        KnnBenchmark(
            memory_source(shared, labels[5:8]),
            memory_source(shared, labels[5:8]),
            bank_size=9,
            num_queries=99,
            k=1,
            **SETTINGS,
        )
    with pytest.raises(UserError, match="k=28 is not possible with a bank of 27"):
        KnnBenchmark(bank, queries, bank_size=100, num_queries=100, k=28, **SETTINGS)


def test_too_many_unreadable_images_of_either_part_stop_it(memory_source):
    images, labels = pictures(40, 0)
    broken = [None] * 3 + pictures(16, 1)[0][3:]
    for sources, part in (
        ((images, broken), "3 of 16 k-NN queries"),
        ((broken, images[:16]), "3 of 16 images of the k-NN bank"),
    ):
        bank, queries = (memory_source(each, (labels * 2)[: len(each)]) for each in sources)
        with pytest.raises(
            UserError, match=f"{part} could not be read, more than max_bad_fraction=0.01: . .broken"
        ):
            KnnBenchmark(bank, queries, bank_size=99, num_queries=99, k=1, max_bad_fraction=0.01, **SETTINGS)
        assert {
            each.id for each in KnnBenchmark(bank, queries, bank_size=99, num_queries=99, k=1, **SETTINGS).bad
        } == {"0", "1", "2"}


def test_classes_have_the_banks_numbers_and_other_classes_are_refused(memory_source):
    images, labels = pictures(40, 0)
    bank, queries = (
        memory_source(images, labels),
        memory_source(pictures(8, 1)[0], [number % 2 for number in range(8)]),
    )
    bank.class_names, queries.class_names = ["a", "b", "c", "d"], ["c", "b"]
    benchmark = KnnBenchmark(bank, queries, bank_size=40, num_queries=8, k=1, **SETTINGS)
    assert sorted(benchmark.queries.labels.tolist()) == [1] * 4 + [2] * 4
    queries.class_names = ["cat", "dog"]
    with pytest.raises(
        UserError, match="the queries' classes cat, dog .* are not among a, b, c, d .*--eval_bank_dataset"
    ):
        KnnBenchmark(bank, queries, bank_size=40, num_queries=8, k=1, **SETTINGS)


def test_bad_input(memory_source):
    images, labels = pictures(20, 0)
    source = memory_source(images, labels)
    with pytest.raises(UserError, match="k-NN needs labels, and images in memory has none"):
        KnnBenchmark(source, memory_source(images, None), bank_size=9, num_queries=9, **SETTINGS)
    with pytest.raises(UserError, match="25 queries leave nothing"):
        KnnBenchmark(source, source, bank_size=9, num_queries=25, **SETTINGS)
    with pytest.raises(UserError, match="k=20 is not possible with a bank of 9"):
        KnnBenchmark(source, source, bank_size=9, num_queries=9, **SETTINGS)


@pytest.mark.slow
def test_raw_pixels_of_cifar10():
    """Bank of 10,000, 2,000 queries, k = 20: the project's reference is 38.1 %; draws differ by
    about a point."""
    if not CIFAR.is_dir():
        pytest.skip("../shared/data/cifar10 is not there")
    bank, queries = (
        open_source(f"parquet:{CIFAR}/train*.parquet"),
        open_source(f"parquet:{CIFAR}/test*.parquet"),
    )
    benchmark = KnnBenchmark(bank, queries, bank_size=10_000, num_queries=2_000, **SETTINGS)
    assert benchmark.evaluate_baselines()["raw_pixels"] == pytest.approx(38.1, abs=2)
