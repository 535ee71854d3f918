"""A folder of pictures and of floats without a scale: whatever makes batches of it refuses it in
one line, and takes it with `?scale=`."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from encoders import load_encoder
from encoders.evaluation.feature_cache import cached_features, unreadable_left_out
from encoders.evaluation.features import vector_features
from encoders.evaluation.knn_benchmark import KnnBenchmark, load_images
from encoders.preprocess import ImageTransform
from pretrain.batches.crops import StepMasks, make_loader
from pretrain.batches.image_draws import ImageDraws
from pretrain.batches.multicrop import MultiCrop
from pretrain.batches.order import BatchLayout
from pretrain.run.health import draw_probes
from vision_core.errors import UserError
from vision_core.images.open_source import open_source

TRANSFORM = ImageTransform((32, 32))
CROPS = {"local_crop_scale": (0.2, 0.4), "global_crop_scale": (0.4, 1.0)}


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            tmp_path / f"{'ab'[number % 2]}/{number}.png"
        )
    for number in range(3):
        values = random.uniform(0, 2999, (40, 40, 3)).astype(np.float32)
        tifffile.imwrite(tmp_path / f"{'ab'[number % 2]}/float{number}.tif", values, photometric="rgb")
    return tmp_path


def crops_of(source):
    masks = StepMasks((4, 4), 9, 0, 0.5, (0.1, 0.5), True)
    multicrop = MultiCrop((32, 32), (16, 16), 1, **CROPS, known_range=source.pixel_options.scale is not None)
    return list(make_loader(source, multicrop, masks, BatchLayout(9, 1, 1, 0), 0, 0, 1, 0))


def knn_of(source):
    return load_images(source, list(range(len(source))), TRANSFORM).images


def features_of(source, folder, resampler="tensor"):
    transform = ImageTransform((32, 32), preprocess="published", resampler=resampler)
    return cached_features(
        load_encoder("tiny:dinov2"),
        source,
        vector_features,
        "vectors",
        folder,
        transform=transform,
        batch_size=2,
    )


def drawn_from(source):
    data = ImageDraws(source, lambda image, epoch, index: image)
    return [data[index] for index in range(len(data))]


USES = {
    "k-NN": lambda source, folder: knn_of(source),
    "features": features_of,
    "features of views that are floats": lambda source, folder: features_of(source, folder, "tensor_float"),
    "batches": lambda source, folder: list(
        unreadable_left_out(source, list(range(len(source))), TRANSFORM, 2, False, print)
    ),
    "health": lambda source, folder: draw_probes(source, (32, 32), 0),
    "DINOv2": lambda source, folder: crops_of(source),
    "SigLIP and MAE": lambda source, folder: drawn_from(source),
}


@pytest.mark.parametrize("use", USES)
def test_two_kinds_are_refused_and_one_scale_makes_them_one(folder, tmp_path_factory, use):
    cache = tmp_path_factory.mktemp("cache")
    with pytest.raises(
        UserError,
        match=r"^the data mixes pictures of 8 bits \(.*\.png\) and numbers .*float\d\.tif\); give \?scale=",
    ) as refused:
        USES[use](open_source(f"folder:{folder}"), cache)
    assert "\n" not in str(refused.value)
    USES[use](open_source(f"folder:{folder}?scale=0,3000"), cache)


def test_bank_and_queries_are_of_one_kind(folder, tmp_path_factory):
    numbers = tmp_path_factory.mktemp("numbers")
    for path in folder.rglob("*.tif"):
        (numbers / path.parent.name).mkdir(exist_ok=True)
        path.rename(numbers / path.parent.name / path.name)
    pictures, queries = open_source(f"folder:{folder}"), open_source(f"folder:{numbers}")
    with pytest.raises(UserError, match="the data mixes pictures"):
        KnnBenchmark(pictures, queries, bank_size=6, num_queries=3, k=1, transform=TRANSFORM)


def test_floats_alone_keep_their_numbers(folder):
    for path in folder.rglob("*.png"):
        path.unlink()
    images = knn_of(open_source(f"folder:{folder}"))
    assert images.dtype == torch.float32 and images.max() > 2000
