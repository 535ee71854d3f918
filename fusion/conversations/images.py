"""Where an image of a row comes from: a file in a folder, bytes in a table, a data URL, or an
address on request."""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from torch import Tensor

from fusion.conversations.conversation import BadRow, decoded, quoted, shortened
from vision_core.files.regular_files import data_roots, is_inside, read_regular_file
from vision_core.images.decode import MAX_PIXELS, UnreadableImage

SECONDS_WITHOUT_AN_ANSWER = 20
SECONDS_OF_A_DOWNLOAD = 120
MAX_DOWNLOAD_BYTES = 64 * 2**20
IN_A_URL = "%/:=&?~#+!$,;'@()*[]"  # what is left as it stands; the rest is percent-encoded


class ImageReader:
    """Reads the images of a source.

    folder: where paths lead, which must stay inside it; None where the source has no folder.
    http: whether addresses are fetched. max_pixels: larger images are refused.
    follow_links: whether a path inside the folder may be a link to a place outside.
    """

    def __init__(
        self,
        folder: Path | None,
        http: bool = False,
        follow_links: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.folder, self.http = folder, http
        self.follow_links, self.max_pixels = follow_links, max_pixels

    def read(self, given: Any, what: str, where: str) -> Tensor:
        """`[3, H, W]` uint8 of an image as a row has it: a text, bytes, or an object with `bytes`,
        `path` or `url`.

        what: what messages call it, for example "image 2". Raises BadRow.
        """
        if isinstance(given, Mapping):
            given = given.get("bytes") or given.get("path") or given.get("url")
            if not given:
                raise BadRow(f"{where}: {what} is an object without bytes, path and url; give one of them")
        if isinstance(given, bytes):
            return self._decoded(given, f"{where}: {what}")
        if not isinstance(given, str):
            raise BadRow(
                f"{where}: {what} is {type(given).__name__}, not a path, a URL or bytes; give one of them"
            )
        scheme = given[:8].partition(":")[0].lower()
        if scheme == "data":
            return self._decoded(_data_of_url(given, what, where), f"{where}: {what}")
        if scheme in ("http", "https"):
            return self._fetched(given, what, where)
        path = _path_of_url(given, what, where) if scheme == "file" else given
        return self._decoded(self._file(path, what, where), f"{where}: {shortened(path)}")

    def _decoded(self, data: bytes, where: str) -> Tensor:
        return decoded(data, where, self.max_pixels)

    def _fetched(self, url: str, what: str, where: str) -> Tensor:
        if not self.http:
            cure = "download it, or let it be fetched whenever it is read by ?http=true"
            raise BadRow(f"{where}: {what} is at {shortened(url)}; {cure}")
        return self._decoded(fetch(url, where), f"{where}: {shortened(url)}")

    def _file(self, name: str, what: str, where: str) -> bytes:
        if self.folder is None:
            cure = f"embed the images, or name the folder of {shortened(name)} by images="
            raise BadRow(f"{where}: {what} is not in the table (no bytes); {cure}")
        path = os.path.join(self.folder, name)
        try:
            self._check_written_path(path)
            return read_regular_file(path, *data_roots(self.folder, self.follow_links))
        except UnreadableImage as error:
            raise BadRow(f"{where}: {_unreadable(error.reason, name, path, self.folder)}") from None

    def _check_written_path(self, path: str) -> None:
        """A row names files of the folder alone, wherever the links in it may lead. Raises
        UnreadableImage."""
        if self.follow_links and not is_inside(os.path.abspath(path), os.path.abspath(self.folder)):
            raise UnreadableImage("outside_the_data_folder")


def fetch(url: str, where: str) -> bytes:
    """What an http or https address gives: at most 64 MiB, within two minutes. Raises BadRow.

    Redirects stay within http and https.
    """
    cure = "mend the address, or download the images"
    deadline = time.monotonic() + SECONDS_OF_A_DOWNLOAD
    data = bytearray()
    try:
        request = Request(quote(url, safe=IN_A_URL), headers={"User-Agent": "vision-encoder-fusion"})
        with _opener().open(request, timeout=SECONDS_WITHOUT_AN_ANSWER) as answer:
            while chunk := answer.read1(2**16):
                data += chunk
                if len(data) > MAX_DOWNLOAD_BYTES:
                    raise BadRow(
                        f"{where}: {shortened(url)} gives more than {MAX_DOWNLOAD_BYTES // 2**20} MiB; {cure}"
                    )
                if time.monotonic() > deadline:
                    raise BadRow(
                        f"{where}: {shortened(url)} took more than {SECONDS_OF_A_DOWNLOAD} s; {cure}"
                    )
    except BadRow:
        raise
    except (OSError, ValueError, HTTPException) as error:
        raise BadRow(
            f"{where}: {shortened(url)} cannot be fetched ({shortened(str(error))}); {cure}"
        ) from None
    return bytes(data)


def _opener() -> OpenerDirector:
    """urllib's, without its handlers for files, FTP and data: a redirect leads to nothing but http
    and https."""
    opener = OpenerDirector()
    of_addresses = (ProxyHandler, HTTPHandler, HTTPSHandler)
    of_answers = (HTTPRedirectHandler, HTTPDefaultErrorHandler, HTTPErrorProcessor)
    for handler in (*of_addresses, *of_answers):
        opener.add_handler(handler())
    return opener


def _data_of_url(url: str, what: str, where: str) -> bytes:
    """The bytes of `data:image/png;base64,...` (RFC 2397)."""
    head, comma, encoded = url.partition(",")
    if not comma or not head[5:].lower().startswith("image/") or not head.lower().endswith(";base64"):
        raise BadRow(f"{where}: {what} is {shortened(url)}, not data:image/...;base64,...; write it so")
    try:
        return base64.b64decode(b"".join(unquote_to_bytes(encoded).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        shown = f"{shortened(url)} ({error})"
        raise BadRow(
            f"{where}: {what} is a data URL whose base64 is damaged: {shown}; encode it anew"
        ) from None


def _path_of_url(url: str, what: str, where: str) -> str:
    """The path of a `file://` URL, percent-decoded; the rule for paths is asked about it
    afterwards."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is None or parts.netloc not in ("", "localhost"):
        raise BadRow(
            f"{where}: {what} is {shortened(url)}, of another machine; write file:///PATH, or the path alone"
        )
    return unquote(parts.path)


def _unreadable(reason: str, name: str, path: str, folder: Path) -> str:
    if reason == "outside_the_data_folder":
        out = f"{shortened(name)} leads out of the image folder {folder}"
        if is_inside(os.path.abspath(path), os.path.abspath(folder)):
            return f"{out} by a link; add follow_links=true to the options of the source"
        return f"{out}; give paths inside it"
    if len(name) > 255 and not name.startswith(("/", ".")) and set(name).isdisjoint(" .\n"):
        return f"an image is {quoted(name)}, no path; in front of base64 goes data:image/png;base64,"
    why = reason.replace("_", " ")
    return f"{shortened(path)} cannot be read ({why}); mend the path, or name another folder by images="
