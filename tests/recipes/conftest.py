"""A small encoder, small data sets, and processors with many chat templates, as users have them."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from encoders.preprocess import PUBLISHED_MARGIN, save_image_processor
from fusion import FusionProcessor, fuse_encoders
from fusion.chat_templates import CHAT_TEMPLATES, chat_template_for
from fusion.tiny import tiny_tokenizer

SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 8, "image_size": 32}


@pytest.fixture(scope="session")
def save_run():
    def save(folder, channels=3):
        """What a run of pretraining leaves."""
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(**SHAPE, num_channels=channels, layerscale_value=0.5)).save_pretrained(folder)
        save_image_processor(folder, (32, 32), [0.5] * channels, [0.25] * channels, PUBLISHED_MARGIN)
        return folder

    return save


@pytest.fixture(scope="session")
def encoder(save_run, tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def weights():
    return lambda folder: {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """Parquet files with images whose hue tells which of 3 classes, their masks (the right half is class 1) and depths; one training image is cut short."""
    folder, generator = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 21)):
        rows = []
        for index in range(count):
            pixels = generator.integers(0, 90, (40, 48, 3), dtype=np.uint8)
            pixels[..., index % 3] += 100
            pixels[:, 24:] += 60
            mask = np.zeros((40, 48), np.uint8)
            mask[:, 24:] = 1
            row = {"image": png(pixels), "mask": png(mask), "depth": png((1000 + 2000 * mask.astype(np.uint16)).astype(np.uint16))}
            rows.append(
                row | {"label": index % 3, "image_id": f"{part}{index}", "target_image_id": f"train{index}" if part == "test" else ""}
            )
        if part == "train":
            rows[11]["image"]["bytes"] = rows[11]["image"]["bytes"][:300]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{part}-00000-of-00001.parquet")
    return folder


# What a chat template may write that its tokenizer has as a token of its own; a text between such tokens (a role, say) is none.
TOKEN = re.compile(r"<\|[^<>|' ]+\|>|<｜[^<>｜']+｜>|</?[a-z_]+>|<[|/]?[a-z_]+\|?>|\[/?[A-Z_]+\]")


@pytest.fixture(scope="session")
def template_named():
    """The text of a chat template: one of ours, one of `layouts`, or one that trl ships."""

    def read(name):
        if name in CHAT_TEMPLATES:
            return CHAT_TEMPLATES[name]
        folders = (Path(__file__).parent / "layouts", Path(trl.__file__).parent / "chat_templates")
        return next(path for path in (folder / f"{name}.jinja" for folder in folders) if path.is_file()).read_text()

    trl = pytest.importorskip("trl", reason="trl ships the chat templates")
    return read


def own_tokens(template):
    """What a template writes that its tokenizer has as tokens, beside those of the tokenizer of bytes."""
    return sorted(set(TOKEN.findall(template)) - {"<image>"} - tiny_tokenizer().get_vocab().keys())


@pytest.fixture(scope="session")
def tokens_of():
    return own_tokens


@pytest.fixture(scope="session")
def chat_processor():
    """A processor with a chat template and a tokenizer of bytes that has the template's own tokens besides, or those given."""
    image_processor = fuse_encoders(["tiny:dinov2"], hidden_size=64, connector="mlp", grid=8)[1]

    def make(template, tokens=None, tokenizer=None):
        if tokenizer is None:
            tokenizer = tiny_tokenizer()
            tokens = own_tokens(template) if tokens is None else tokens
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
        tokenizer.add_tokens(list(tokens or ()))
        return FusionProcessor(image_processor, tokenizer, chat_template_for(template, tokenizer))

    return make
