"""In whatever form an image is given, its pixels and its `pixel_values` are those of its file in
training."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import pipeline

from encoders.preprocess import ImageTransform
from fusion.image_processing_fusion import FusionImageProcessor
from vision_core.errors import UserError
from vision_core.images.any_image import image_tensor
from vision_core.images.decode import decode_image

tifffile = pytest.importorskip("tifffile")
NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
COLOUR = Image.fromarray(NOISE).resize((40, 24), Image.Resampling.BICUBIC, (0, 0, 10, 6))
VALUES = np.array(COLOUR)
GREY = VALUES[..., 0].copy()
GREY_16 = GREY.astype(np.uint16) * 201 + 3_000
COLOUR_16 = VALUES.astype(np.uint16) * 201 + 3_000
TRANSFORMS = [
    ImageTransform((32, 32), (0.1, 0.5, 0.9), (0.2, 0.3, 0.4), interpolation="bicubic").to_dict(),
    ImageTransform((16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), interpolation="bilinear").to_dict(),
]


def pillow(image: Image.Image | np.ndarray, format: str, **options) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, format, **options)
    return stream.getvalue()


def tiff(values: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def tiff_with_overview() -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(VALUES, photometric="rgb", metadata=None)
        writer.write(255 - VALUES[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    return stream.getvalue()


def turned(image: Image.Image | np.ndarray, format: str, orientation: int, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return pillow(image, format, exif=exif, **options)


def animated(format: str, **options) -> bytes:
    frames = [COLOUR, COLOUR.transpose(Image.Transpose.ROTATE_180), Image.new("RGB", COLOUR.size, "red")]
    return pillow(frames[0], format, save_all=True, append_images=frames[1:], **options)


def colour_png_16() -> bytes:
    """Pillow writes none: PNG specification, colour type 2, 16 bits, no filter."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = COLOUR_16.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in COLOUR_16.astype(">u2"))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


PALETTE = COLOUR.quantize(16)
FILES = {
    "jpeg": pillow(COLOUR, "JPEG"),
    "jpeg_grey": pillow(GREY, "JPEG"),
    "jpeg_cmyk": pillow(COLOUR.convert("CMYK"), "JPEG"),
    "jpeg_of_a_phone": pillow(
        COLOUR, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 24), "red")]
    ),
    "png": pillow(COLOUR, "PNG"),
    "png_alpha": pillow(np.dstack([VALUES, GREY]), "PNG"),
    "png_transparent_colour": pillow(COLOUR, "PNG", transparency=tuple(VALUES[3, 3].tolist())),
    "png_grey": pillow(GREY, "PNG"),
    "png_grey_alpha": pillow(np.dstack([GREY, 255 - GREY]), "PNG"),
    "png_palette": pillow(PALETTE, "PNG"),
    "png_palette_transparent_index": pillow(PALETTE, "PNG", transparency=3),
    "png_palette_alphas": pillow(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "png_one_bit": pillow(COLOUR.convert("1"), "PNG"),
    "png_grey_16": pillow(GREY_16, "PNG"),
    "png_grey_16_turned": turned(GREY_16, "PNG", 6),
    "png_colour_16": colour_png_16(),
    "apng": animated("PNG"),
    "webp": pillow(COLOUR, "WEBP", lossless=True),
    "webp_alpha": pillow(np.dstack([VALUES, GREY]), "WEBP", lossless=True, exact=True),
    "webp_animated": animated("WEBP", lossless=True),
    "gif": pillow(PALETTE, "GIF"),
    "gif_transparent": pillow(PALETTE, "GIF", transparency=3),
    "gif_animated": animated("GIF"),
    "bmp": pillow(COLOUR, "BMP"),
    "tiff": pillow(COLOUR, "TIFF"),
    "tiff_lzw": pillow(COLOUR, "TIFF", compression="tiff_lzw"),
    "tiff_palette_alpha": pillow(PALETTE.convert("PA"), "TIFF"),
    "tiff_ycbcr": pillow(COLOUR.convert("YCbCr"), "TIFF"),
    "tiff_cmyk": pillow(COLOUR.convert("CMYK"), "TIFF"),
    "tiff_pages_of_channels": tiff(VALUES.transpose(2, 0, 1), photometric="minisblack", metadata=None),
    "tiff_imagej_channels": tiff(COLOUR_16.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}),
    "tiff_ome_channels": tiff(
        COLOUR_16.transpose(2, 0, 1), ome=True, photometric="minisblack", metadata={"axes": "CYX"}
    ),
    "tiff_planes": tiff(VALUES.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
    "tiff_planes_16": tiff(COLOUR_16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
    "tiff_overviews": tiff_with_overview(),
    "tiff_grey_16": tiff(GREY_16, photometric="minisblack"),
    "tiff_grey_16_big_endian": tiff(GREY_16, photometric="minisblack", byteorder=">"),
    "tiff_grey_16_lzw": pillow(GREY_16, "TIFF", compression="tiff_lzw"),
    "tiff_colour_16": tiff(COLOUR_16, photometric="rgb"),
    "tiff_white_is_zero": tiff(255 - GREY, photometric="miniswhite"),
    "tiff_white_is_zero_16": tiff(65535 - GREY_16, photometric="miniswhite"),
    "tiff_white_is_zero_16_zlib": tiff(65535 - GREY_16, photometric="miniswhite", compression="zlib"),
    "tiff_imagej": tiff(GREY, imagej=True),
    "tiff_imagej_16": tiff(GREY_16, imagej=True),
    "tiff_ome": tiff(VALUES, ome=True, photometric="rgb"),
    "tiff_ome_16": tiff(GREY_16, ome=True, photometric="minisblack"),
}
FILES |= {f"jpeg_turned_{number}": turned(COLOUR, "JPEG", number) for number in range(1, 9)}
FILES |= {f"png_palette_turned_{number}": turned(PALETTE, "PNG", number, transparency=3) for number in (3, 6)}
FILES |= {f"webp_turned_{number}": turned(COLOUR, "WEBP", number, lossless=True) for number in (2, 8)}
FILES |= {
    f"tiff_turned_{number}": turned(COLOUR, "TIFF", number, compression="tiff_lzw") for number in (5, 6)
}
FILES |= {"tiff_grey_16_turned": turned(GREY_16, "TIFF", 6), "tiff_grey_turned": turned(GREY, "TIFF", 8)}

# what was written, where no decoder comes between it and the pixels
ARRAYS = {
    **dict.fromkeys(("png", "webp", "bmp", "tiff", "tiff_lzw", "tiff_ome", "webp_animated", "apng"), VALUES),
    **dict.fromkeys(("tiff_pages_of_channels", "tiff_planes", "tiff_overviews"), VALUES),
    **dict.fromkeys(("png_grey", "tiff_imagej", "tiff_white_is_zero"), GREY),
    **dict.fromkeys(
        ("png_grey_16", "tiff_grey_16", "tiff_grey_16_big_endian", "tiff_grey_16_lzw", "tiff_imagej_16"),
        GREY_16,
    ),
    **dict.fromkeys(("tiff_ome_16", "tiff_white_is_zero_16", "tiff_white_is_zero_16_zlib"), GREY_16),
    **dict.fromkeys(
        ("png_colour_16", "tiff_colour_16", "tiff_imagej_channels", "tiff_ome_channels", "tiff_planes_16"),
        COLOUR_16,
    ),
}
# What Pillow 13 copies is another image: the copy does not say that white is zero, where Pillow
# maps a file into memory it takes rows for columns, it has the first of several pages, and of
# planes of 16 bits it makes noise.
NO_COPIES = {
    *("tiff_white_is_zero_16", "tiff_white_is_zero_16_zlib", "tiff_grey_16_turned", "tiff_grey_turned"),
    *("tiff_pages_of_channels", "tiff_imagej_channels", "tiff_ome_channels", "tiff_planes_16"),
}


def opened(path: Path) -> Image.Image:
    return Image.open(path)


def loaded(path: Path) -> Image.Image:
    image = Image.open(path)
    image.load()
    return image


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


OF_FILES = {
    "path": lambda path: path,
    "text": str,
    "file_url": lambda path: path.as_uri(),
    "data_url": lambda path: f"data:image/png;base64,{base64_of(path)}",
    "base64": base64_of,
    "bytes": Path.read_bytes,
    "opened": opened,
    "loaded": loaded,
}
OF_COPIES = {
    "copy": lambda path: opened(path).copy(),
    "set_upright": lambda path: ImageOps.exif_transpose(opened(path)),
}
OF_ARRAYS = {
    "array": lambda values: values,
    "array_channels_first": lambda values: np.ascontiguousarray(np.atleast_3d(values).transpose(2, 0, 1)),
    "array_channels_last": np.atleast_3d,
    "tensor": torch.from_numpy,
    "tensor_channels_first": lambda values: torch.from_numpy(np.atleast_3d(values)).permute(2, 0, 1),
}
CELLS = [
    *[(name, form) for name in FILES for form in OF_FILES],
    *[(name, form) for name in FILES for form in OF_COPIES if name not in NO_COPIES],
    *[(name, form) for name in ARRAYS for form in OF_ARRAYS],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("an image's files")
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def processor():
    return FusionImageProcessor(TRANSFORMS, grid=4)


@pytest.fixture(scope="module")
def trained(processor):
    """Of each file: training's pixels, and what the processor makes of them."""
    pixels = {name: decode_image(data) for name, data in FILES.items()}
    return {name: (image, processor(image)["pixel_values"]) for name, image in pixels.items()}


@pytest.mark.parametrize(("name", "form"), CELLS)
def test_pixels_equal_trainings(folder, processor, trained, name, form):
    """Pixels: 0 differences over the image fixtures, and none in what the processor makes of
    them."""

    def given():
        return (
            OF_ARRAYS[form](ARRAYS[name])
            if form in OF_ARRAYS
            else (OF_FILES | OF_COPIES)[form](folder / name)
        )

    pixels, pixel_values = trained[name]
    image = image_tensor(given())
    assert image.dtype == torch.uint8 and image.is_contiguous() and torch.equal(image, pixels)
    batch = processor([given()])
    assert batch["image_sizes"].tolist() == [list(pixels.shape[1:])]
    for ours, theirs in zip(batch["pixel_values"], pixel_values, strict=True):
        assert torch.equal(ours, theirs)


def test_the_files_hold_what_their_names_say(folder):
    """Pillow sees each as its own mode, so no two cells above test the same branch by accident."""
    modes = {opened(folder / name).mode for name in FILES}
    assert {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"} <= modes
    assert decode_image(FILES["jpeg_turned_6"]).shape == (3, 40, 24)
    assert decode_image(FILES["tiff_white_is_zero_16"]).unique().numel() > 50


REFUSED = {
    "float": tiff(GREY.astype(np.float32) / 255, photometric="minisblack"),
    "int16": tiff(GREY.astype(np.int16), photometric="minisblack"),
    "int32": tiff(GREY.astype(np.int32), photometric="minisblack"),
    "int8": tiff(np.full((24, 40), -5, np.int8), photometric="minisblack"),
}


@pytest.mark.parametrize("form", OF_FILES)
@pytest.mark.parametrize("name", REFUSED)
def test_values_of_no_known_scale_are_refused_in_every_form(tmp_path, processor, name, form):
    (tmp_path / name).write_bytes(REFUSED[name])
    with pytest.raises(UserError, match=r"unsupported_mode .*save it as grey of 8 or 16 bits, or as RGB"):
        processor(OF_FILES[form](tmp_path / name))


@pytest.mark.parametrize("form", OF_FILES)
def test_the_first_of_several_pages_is_no_picture(tmp_path, processor, form):
    (tmp_path / "pages").write_bytes(tiff(np.stack([VALUES, 255 - VALUES]), photometric="rgb", metadata=None))
    with pytest.raises(
        UserError,
        match="several_images pages=2.; it holds more than one image: save each as a file of its own",
    ):
        processor(OF_FILES[form](tmp_path / "pages"))


def test_a_page_that_a_user_turned_to_is_taken(tmp_path):
    (tmp_path / "pages.tiff").write_bytes(
        tiff(np.stack([VALUES, 255 - VALUES]), photometric="rgb", metadata=None)
    )
    picture = Image.open(tmp_path / "pages.tiff")
    picture.seek(1)
    for given in (picture, picture.copy()):
        assert np.array_equal(image_tensor(given).numpy(), 255 - VALUES.transpose(2, 0, 1))


def chat(image, key):
    content = [{"type": "image", key: image}, {"type": "text", "text": "what is it?"}]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def model_and_processor(vlm):
    return vlm()


CHAT_FORMS = {
    "path": "path",
    "text": "url",
    "file_url": "url",
    "data_url": "url",
    "base64": "base64",
    "opened": "image",
    "bytes": "image",
}


@pytest.mark.parametrize("form", CHAT_FORMS)
@pytest.mark.parametrize(
    "name", ["jpeg_turned_6", "png_grey_16", "tiff_white_is_zero_16", "png_palette_turned_6"]
)
def test_images_within_chat_messages(folder, model_and_processor, form, name):
    processor = model_and_processor[1]
    turns = chat(OF_FILES[form](folder / name), CHAT_FORMS[form])
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(turns, **options)
    expected = processor.image_processor(decode_image(FILES[name]))
    assert inputs["image_sizes"].tolist() == expected["image_sizes"].tolist()
    assert all(map(torch.equal, inputs["pixel_values"], expected["pixel_values"]))


def test_the_pipeline_sees_a_chats_image_as_training_does(folder, model_and_processor, monkeypatch):
    model, processor = model_and_processor
    seen = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: seen.append(inputs) or generate(**inputs))
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    ask(text=chat(str(folder / "png_grey_16"), "url"), max_new_tokens=2)
    expected = processor.image_processor(decode_image(FILES["png_grey_16"]))["pixel_values"]
    assert all(map(torch.equal, seen[0]["pixel_values"], expected))


def test_lists_and_batches_of_images(processor):
    batch = np.stack([VALUES, 255 - VALUES])
    expected = processor([VALUES, 255 - VALUES])["pixel_values"]
    for several in (batch, torch.from_numpy(batch), [[batch[0]], [batch[1]]], [batch], (batch[0], batch[1])):
        assert all(map(torch.equal, processor(several)["pixel_values"], expected))


def test_nothing_is_downloaded(processor, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    for url in ("http://127.0.0.1:9/cat.png", "HTTPS://example.org/cat.png"):
        with pytest.raises(
            UserError, match="cat.png is not downloaded here; fetch it yourself and give its bytes"
        ):
            processor(url)
