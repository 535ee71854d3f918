"""Without a network a name is refused at once and what is in the cache is loaded at once, whichever
library reads it."""

import shutil
import socket
import time

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from encoders.adapters.tiny import tiny_encoder
from encoders.load import load_encoder
from fusion.assemble import load_language_model
from fusion.conversations.tables import open_table
from vision_core import hub
from vision_core.errors import UserError
from vision_core.hub import hub_or_cache
from vision_core.images.open_source import open_source

SECONDS = 12  # an import of timm or datasets on a busy machine; the libraries' retries take 25 to 47


@pytest.fixture
def endpoint(monkeypatch):
    """`endpoint(port)`: the Hub is this machine's port, and nothing forbids the network."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def endpoint(port):
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "FORBIDDEN", False)
        monkeypatch.setattr(hub, "_answer", None)

    return endpoint


@pytest.fixture
def no_network(endpoint):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint(port)  # nobody listens there any more


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_encoder, "hf:facebook/dinov2-small"),
        (load_encoder, "untrained:hf:facebook/dinov2-small"),
        (load_encoder, "timm:vit_small_patch14_dinov2.lvd142m"),
        (load_encoder, "open_clip:ViT-B-32/laion2b_s34b_b79k"),
        (open_source, "hf:uoft-cs/cifar10"),
        (lambda name: open_table("hf", name.removeprefix("hf:"), {}), "hf:me/conversations"),
        (load_language_model, "Qwen/Qwen3-0.6B"),
    ],
)
def test_a_name_that_is_nowhere_is_refused_once_and_at_once(no_network, capfd, load, name):
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        load(name)
    assert time.monotonic() - began < SECONDS
    said = str(refused.value)
    assert (
        "is not in the cache, and there is no network (127.0.0.1 cannot be reached)" in said
        and name.removeprefix("untrained:") in said
    )
    assert "Retrying" not in capfd.readouterr().err and constants.HF_HUB_OFFLINE is False


def test_what_is_in_the_cache_is_loaded(no_network, tmp_path, monkeypatch):
    """In the layout of huggingface_hub's cache."""
    repository = tmp_path / "models--me--small"
    commit = "0" * 40
    encoder = tiny_encoder("dinov2")
    encoder.model.save_pretrained(repository / "snapshots" / commit)
    from encoders.preprocess import PUBLISHED_MARGIN, save_image_processor

    side = encoder.transform.size
    save_image_processor(
        repository / "snapshots" / commit,
        side,
        encoder.transform.mean,
        encoder.transform.std,
        PUBLISHED_MARGIN,
    )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    assert load_encoder("hf:me/small").width == encoder.width
    assert time.monotonic() - began < SECONDS
    shutil.rmtree(repository)


def test_a_hub_that_answers_is_asked(endpoint):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint(server.getsockname()[1])
        with hub_or_cache("hf:me/small"):
            assert constants.HF_HUB_OFFLINE is False
        with pytest.raises(UserError, match="^its own words$"), hub_or_cache("hf:me/small"):
            raise UserError("its own words") from LocalEntryNotFoundError("a file")


def test_other_errors_keep_their_words(no_network):
    with pytest.raises(UserError, match="^its own words$"), hub_or_cache("hf:me/small"):
        raise UserError("its own words")
    with pytest.raises(KeyError), hub_or_cache("hf:me/small"):
        raise KeyError("a mistake of ours")
    assert constants.HF_HUB_OFFLINE is False


def test_forbidden_by_the_environment_is_said():
    """As in all tests."""
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=1 forbids the network"):
        load_encoder("hf:me/small")
