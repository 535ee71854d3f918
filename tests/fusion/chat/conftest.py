"""Processors with many chat templates, as users have them."""

import re
from pathlib import Path

import pytest

from fusion import FusionProcessor, fuse_encoders
from fusion.chat_templates import CHAT_TEMPLATES, chat_template_for
from fusion.tiny import tiny_tokenizer

# What a chat template may write that its tokenizer has as a token of its own; a text between such
# tokens (a role, say) is none.
TOKEN = re.compile(r"<\|[^<>|' ]+\|>|<｜[^<>｜']+｜>|</?[a-z_]+>|<[|/]?[a-z_]+\|?>|\[/?[A-Z_]+\]")


@pytest.fixture(scope="session")
def template_named():
    """The text of a chat template: one of ours, one of `layouts`, or one that trl ships."""

    def read(name):
        if name in CHAT_TEMPLATES:
            return CHAT_TEMPLATES[name]
        folders = (Path(__file__).parent / "layouts", Path(trl.__file__).parent / "chat_templates")
        return next(
            path for path in (folder / f"{name}.jinja" for folder in folders) if path.is_file()
        ).read_text()

    trl = pytest.importorskip("trl", reason="trl ships the chat templates")
    return read


def own_tokens(template):
    """What a template writes that its tokenizer has as tokens, beside those of the tokenizer of
    bytes."""
    return sorted(set(TOKEN.findall(template)) - {"<image>"} - tiny_tokenizer().get_vocab().keys())


@pytest.fixture(scope="session")
def tokens_of():
    return own_tokens


@pytest.fixture(scope="session")
def chat_processor():
    """A processor with a chat template and a tokenizer of bytes that has the template's own tokens
    besides, or those given."""
    image_processor = fuse_encoders(["tiny:dinov2"], hidden_size=64, connector="mlp", grid=8)[1]

    def make(template, tokens=None, tokenizer=None):
        if tokenizer is None:
            tokenizer = tiny_tokenizer()
            tokens = own_tokens(template) if tokens is None else tokens
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False
        )
        tokenizer.add_tokens(list(tokens or ()))
        return FusionProcessor(image_processor, tokenizer, chat_template_for(template, tokenizer))

    return make
