"""Load from the Hugging Face hub where it can be reached, and from its cache at once where it
cannot.

Without a network every library tries each file several times over half a minute, and some of them
several files. Whether the Hub answers is asked once here.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from vision_core.errors import UserError

PATIENCE = 4.0  # seconds for the name and the connection
ASKED_ANEW = 60.0  # seconds after which an answer is asked for again
NOT_THERE = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)

FORBIDDEN = constants.HF_HUB_OFFLINE  # by the environment

_answer: tuple[float, bool] | None = None


@contextmanager
def hub_or_cache(place: str, called: str | None = None) -> Iterator[None]:
    """Inside, files of the Hub come from the network or, where there is none, at once from the
    cache. Where `place` exists on this machine the Hub is not asked, and nothing changes.

    Args:
        place: a path, or a name on the Hub.
        called: what messages call it; default: `place`.

    Raises UserError, which begins with `called`, in place of a UserError whose cause is a file that
    is neither on the network nor in the cache.
    """
    if os.path.exists(place):
        yield
        return
    before = constants.HF_HUB_OFFLINE
    offline = before or not _hub_answers()
    _set_offline(offline)
    try:
        yield
    except UserError as error:
        if not offline or not _is_of_the_network(error):
            raise
        raise UserError(_not_in_the_cache(called or place)) from error
    finally:
        _set_offline(before)


def _not_in_the_cache(called: str) -> str:
    why = f"there is no network ({_host()[0]} cannot be reached)"
    if FORBIDDEN:
        why = "HF_HUB_OFFLINE=1 forbids the network"
    return (
        f"{called} cannot be loaded: it is not in the cache, and {why}; "
        "name a local folder, or fill the cache where there is a network"
    )


def _set_offline(offline: bool) -> None:
    """huggingface_hub, transformers, timm and open_clip look at the first each time, datasets at a
    copy of its own."""
    constants.HF_HUB_OFFLINE = offline
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = offline


def _hub_answers() -> bool:
    global _answer
    if _answer is None or time.monotonic() - _answer[0] > ASKED_ANEW:
        _answer = time.monotonic(), _connects()
    return _answer[1]


def _connects() -> bool:
    """Whether a connection can be made. A proxy is taken to work: it answers for whatever stands
    behind it."""
    host, port = _host()
    if "https" in getproxies() and not proxy_bypass(host):
        return True
    made: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
            made.append(True)
        except OSError:
            made.append(False)

    asking = threading.Thread(
        target=connect, daemon=True
    )  # a name server that is silent cannot be given a time limit
    asking.start()
    asking.join(PATIENCE)
    return made == [True]


def _host() -> tuple[str, int]:
    address = urlsplit(constants.ENDPOINT)
    return address.hostname or "", address.port or (80 if address.scheme == "http" else 443)


def _is_of_the_network(error: BaseException) -> bool:
    """Whether a file that was neither in the cache nor to be had stands at the beginning of a chain
    of errors."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        if isinstance(each, NOT_THERE):
            return True
        seen.add(id(each))
        each = each.__cause__ or each.__context__
    return False
