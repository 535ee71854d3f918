"""`encoder.transform`: which forms of an image it takes, and that its pixels are the published ones
at every size."""

import io

import numpy as np
import open_clip
import pytest
import tifffile
import timm
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from transformers import AutoImageProcessor

from encoders import load_encoder
from encoders.adapters.image_processors import transform_from_processor
from encoders.adapters.open_clip_encoder import transform_from_preprocess
from encoders.adapters.timm_encoder import published_transform
from encoders.base import Encoder
from encoders.preprocess import PUBLISHED_MARGIN, ImageTransform, save_image_processor
from vision_core.errors import UserError

SIZES = [(32, 32), (50, 200), (223, 223), (224, 224), (225, 225), (300, 200), (640, 480)]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"height": 224, "width": 224}
PROCESSORS = {
    "DINOv2": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 256}, "crop_size": SQUARE, "resample": 3, **IMAGENET},
    ),
    "DINOv3": ("DINOv3ViTImageProcessor", {}),
    "SigLIP": ("SiglipImageProcessor", {"size": SQUARE, "resample": 3}),
    "SigLIP 2": ("SiglipImageProcessor", {"size": {"height": 256, "width": 256}, "resample": 2}),
    "CLIP": ("CLIPImageProcessor", {}),
    "ViTMAE": ("ViTImageProcessor", {"resample": 3, **IMAGENET}),
    "I-JEPA": ("ViTImageProcessor", IMAGENET),
    "ConvNeXt 224": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    "ConvNeXt 384": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "InternVL": ("GotOcr2ImageProcessor", {"size": {"height": 448, "width": 448}}),
    "TIPSv2": ("Tipsv2ImageProcessor", {}),
    "RADIO": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 432}, "crop_size": {"height": 432, "width": 432}, "do_normalize": False},
    ),
    "Lanczos": ("ViTImageProcessor", {"resample": 1}),
}
# crop_pct below and above 1, squashed with and without a crop, bilinear, and a size of its own
TIMM_MODELS = [
    "vit_small_patch14_dinov2",
    "resnet50",
    "convnext_tiny.in12k_ft_in1k_384",
    "volo_d1_224",
    "vit_pe_core_base_patch16_224",
]
TIMM_MODELS += ["mobilenetv3_small_100", "resnetv2_50x1_bit.goog_in21k", "eva02_tiny_patch14_336"]


def picture(height, width, mode="RGB"):
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def greatest_difference(ours, theirs):
    return max((ours(picture(*size))[0] - theirs(picture(*size))).abs().max().item() for size in SIZES)


@pytest.mark.parametrize("family", PROCESSORS)
def test_the_pixels_are_those_of_transformers(family, tmp_path):
    class_name, options = PROCESSORS[family]
    getattr(transformers, class_name)(**options).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    transform = transform_from_processor(processor)
    assert (
        greatest_difference(transform, lambda image: processor(image, return_tensors="pt")["pixel_values"][0])
        < 1e-4
    )


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_the_pixels_are_those_of_timm(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    transform = published_transform(model, False)
    theirs = create_transform(**resolve_data_config({}, model=model))
    assert transform.size == tuple(resolve_data_config({}, model=model)["input_size"][-2:])
    assert greatest_difference(transform, theirs) < 1e-5


@pytest.mark.parametrize(("crop_pct", "mode"), [(1.15, "center"), (0.9, "squash"), (0.95, "center")])
def test_the_pixels_are_those_of_timm_with_borders_and_squashed_crops(crop_pct, mode):
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    model.pretrained_cfg.update(crop_pct=crop_pct, crop_mode=mode)
    theirs = create_transform(**resolve_data_config({}, model=model))
    assert greatest_difference(published_transform(model, False), theirs) < 1e-5


@pytest.mark.parametrize(
    "said",
    [
        {"size": 224},
        {"size": 256, "resize_mode": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3},
        {"size": (224, 224), "interpolation": "bilinear"},
        {"size": 224, "interpolation": "random"},
        {"size": (224, 336)},
    ],
)
def test_the_pixels_are_those_of_open_clip(said):
    theirs = image_transform_v2(PreprocessCfg(**said), is_train=False)
    assert greatest_difference(transform_from_preprocess(said), theirs) < 1e-5
    assert (
        ImageTransform.from_dict(transform_from_preprocess({"size": 8}).to_dict()).mean
        == open_clip.OPENAI_DATASET_MEAN
    )


def test_the_pixels_of_a_published_file_are_those_of_its_repository():
    """facebookresearch/dinov2 `data/transforms.py: make_classification_eval_transform`."""
    theirs = Compose(
        [Resize(256, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(*IMAGENET.values())]
    )
    ours = ImageTransform((224, 224), margin=PUBLISHED_MARGIN, preprocess="published", resampler="pillow")
    assert greatest_difference(ours, theirs) < 1e-5


def test_small_pictures_can_be_looked_at_whole():
    published = ImageTransform((64, 64), (0.0,), (1.0,), margin=PUBLISHED_MARGIN, preprocess="published")
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, 0] = 255  # a border that the published crop cuts off
    assert published(image).max() < 1 and ImageTransform.from_dict(published.to_dict()) == published
    encoder = load_encoder("tiny:dinov2", preprocess="whole")
    assert encoder.transform.preprocess == "whole"
    whole = ImageTransform((64, 64), (0.0,), (1.0,), margin=PUBLISHED_MARGIN, preprocess="whole")
    assert torch.equal(whole(image)[0], image / 255)
    old = {
        name: value
        for name, value in whole.to_dict().items()
        if name not in ("preprocess", "resampler", "num_channels")
    }
    assert ImageTransform.from_dict(old) == whole  # what was saved before the choice existed


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("tiny:siglip")


def encoded(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_every_form_of_one_picture_gives_the_same_pixels(encoder, tmp_path):
    image = picture(50, 70)
    image.save(tmp_path / "a.png")
    values = np.array(image)
    planes = torch.from_numpy(values).permute(2, 0, 1).contiguous()
    expected = encoder.transform([planes])
    forms = [
        image,
        values,
        np.moveaxis(values, 2, 0),
        planes,
        planes.permute(1, 2, 0),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
    ]
    forms += [encoded(image), bytearray(encoded(image))]
    for form in forms:
        assert torch.equal(encoder.transform(form), expected)
        assert torch.equal(encoder.transform([form, form]), expected.expand(2, -1, -1, -1))
    assert torch.equal(encoder.transform(planes.expand(2, -1, -1, -1)), expected.expand(2, -1, -1, -1))
    assert torch.equal(encoder.transform(form for form in forms[:2]), expected.expand(2, -1, -1, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_are_pictures_of_0_to_1(encoder, dtype):
    planes = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    floats = (planes.double() / 255).to(dtype)
    torch.testing.assert_close(encoder.transform(floats), encoder.transform(planes), rtol=0, atol=2e-2)
    if dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(
            encoder.transform(floats.numpy()), encoder.transform(planes), rtol=0, atol=1e-5
        )
    grey = encoder.transform(floats[0])
    assert torch.equal(grey, encoder.transform(floats[:1].expand(3, -1, -1)))


def test_an_upright_photograph_and_alpha(encoder):
    stream, image = io.BytesIO(), picture(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(stream, "PNG", exif=exif)
    upright = encoder.transform(image.transpose(Image.Transpose.ROTATE_270))
    assert torch.equal(encoder.transform(stream.getvalue()), upright)
    assert torch.equal(encoder.transform(Image.open(io.BytesIO(stream.getvalue()))), upright)
    assert torch.equal(encoder.transform(image.convert("RGBA")), encoder.transform(image))


LARGE = torch.randint(0, 256, (3, 40, 40))
REFUSED = {
    "int64": (
        LARGE,
        "values of type int64, whose white is not known; where all values are 0 to 255, convert them to uint8",
    ),
    "uint16": (LARGE.to(torch.uint16) * 200, r"type uint16.*take image.astype\('float32'\) / 65535"),
    "uint16 array": (LARGE.numpy().astype(np.uint16), "type uint16"),
    "int8": (LARGE.to(torch.int8), "type int8"),
    "bool": (LARGE > 100, "True and False"),
    "objects": (np.array([[object()]]), "type object"),
    "floats of 0 to 255": (
        LARGE.float(),
        "values from 0 to 255, and pictures are 0 to 1 here; for values of 0 to 255 divide by 255",
    ),
    "uint16 as float": (LARGE.float() * 257, "divide by the value of white"),
    "normalised": (
        torch.randn(3, 40, 40) * 2,
        "normalised pixels go to the encoder itself, without transform",
    ),
    "NaN": (torch.full((3, 8, 8), torch.nan), "not finite"),
    "four channels": (torch.zeros(4, 40, 40), r"the shape \[4, 40, 40\]; this encoder takes \[3, H, W\]"),
    "no channel": (torch.zeros(40), r"the shape \[40\]"),
    "nothing": ([], "there is no image in the list"),
    "a number": (3, "an image is of type int; give a path"),
    "None in a list": ([None], "image 1 of the list: an image is of type NoneType"),
    "no file": ("nowhere.png", "nowhere.png cannot be read"),
    "the second": ([LARGE.byte(), LARGE], "image 2 of the list: an image has values of type int64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_in_a_sentence(encoder, name):
    given, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        encoder.transform(given)
    assert "\n" not in str(caught.value)


class Bands(Encoder):
    """As much of an encoder as has a number of channels."""

    def __init__(self, num_channels, mean):
        super().__init__(ImageTransform((16, 16), mean, (100.0,), preprocess="published", resampler="pillow"))
        self.num_channels = num_channels


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_bands_keep_their_scale(channels, tmp_path):
    transform = Bands(channels, (1000.0,)).transform
    bands = np.random.default_rng(0).uniform(-500, 9000, (channels, 16, 16)).astype(np.float32)
    expected = torch.from_numpy((bands[None] - 1000) / 100)
    np.save(tmp_path / "a.npy", bands)
    for form in (
        bands,
        torch.from_numpy(bands),
        np.moveaxis(bands, 0, 2),
        [bands],
        bands[None],
        tmp_path / "a.npy",
        str(tmp_path / "a.npy"),
    ):
        torch.testing.assert_close(transform(form), expected)
    whole_numbers = (bands % 256).astype(np.uint8)
    torch.testing.assert_close(
        transform(whole_numbers), torch.from_numpy((whole_numbers[None] / 255 - 1000) / 100).float()
    )
    with pytest.raises(UserError, match="give float32 in the scale of the encoder's mean and std"):
        transform(bands.astype(np.uint16))
    with pytest.raises(UserError, match=rf"the shape \[5, 16, 16\]; this encoder takes \[{channels}, H, W\]"):
        transform(np.zeros((5, 16, 16), np.float32))


def test_one_channel_of_a_picture_is_its_luminance():
    transform = Bands(1, (0.0,)).transform
    image = picture(16, 16)
    assert torch.equal(transform(image), transform(encoded(image)))
    with pytest.raises(UserError, match="a PIL image has no 4 channels"):
        Bands(4, (0.0,)).transform(image)
    with pytest.raises(UserError, match="has 16 bits; give its path"):
        transform(Image.fromarray(np.zeros((16, 16), np.uint16)))


def test_three_bands_of_another_range_are_taken_as_they_are():
    """Decibels of a radar, say: the transform says that its numbers are no pictures of 0 to 1."""
    decibels = torch.rand(3, 32, 32) * 20 - 25
    transform = ImageTransform((32, 32), mean=(-15.0, -20.0, -18.0), std=(5.0, 5.0, 5.0), pictures=False)
    pixels = transform(decibels)
    means = torch.tensor(transform.mean).view(3, 1, 1)
    torch.testing.assert_close(pixels[0], (decibels - means) / 5)


def test_three_bands_around_zero_are_numbers_too_as_arrays_and_as_files(tmp_path):
    """Log ratios: their mean lies in 0 to 1, so it could not tell."""
    ratios = np.random.default_rng(0).normal(0, 3, (3, 32, 32)).astype(np.float32)
    save_image_processor(tmp_path, (32, 32), [0.0] * 3, [3.0] * 3, 1.0, in_own_scale=True)
    transform = transform_from_processor(AutoImageProcessor.from_pretrained(tmp_path))
    tifffile.imwrite(tmp_path / "ratios.tif", ratios, photometric="minisblack", planarconfig="separate")
    for form in (ratios, tmp_path / "ratios.tif", (tmp_path / "ratios.tif").read_bytes()):
        torch.testing.assert_close(transform(form)[0], torch.from_numpy(ratios / 3))
    with pytest.raises(UserError, match="make an image of uint8"):
        ImageTransform((32, 32))(tmp_path / "ratios.tif")


def test_files_are_read_with_the_options_of_the_run(tmp_path):
    """Against numpy: grey of 12 bits divided by its white, bands chosen in order; a transform of
    before these keys loads."""
    values = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "plate.tif", values)
    save_image_processor(tmp_path, (32, 32), [0.5] * 3, [0.25] * 3, 1.0, True, "scale=4095")
    transform = transform_from_processor(AutoImageProcessor.from_pretrained(tmp_path))
    expected = torch.from_numpy((values / 4095 - 0.5) / 0.25).float().expand(3, -1, -1)
    for form in (tmp_path / "plate.tif", (tmp_path / "plate.tif").read_bytes()):
        torch.testing.assert_close(transform(form)[0], expected, rtol=0, atol=1e-5)
    old = ImageTransform((32, 32)).to_dict()
    del old["pictures"], old["pixel_options"]
    assert ImageTransform.from_dict(old) == ImageTransform((32, 32))
