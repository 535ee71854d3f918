"""Reads an image of a row: a file in a folder, bytes in a table, a data URL, or an address.

Addresses are fetched only where the source says so.
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote as quote_url
from urllib.parse import unquote, unquote_to_bytes, urlsplit
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

from fusion.conversations.conversation import BadRow, decode_row_image, one_line, quote
from vision_core.files.regular_files import data_roots, is_inside, read_regular_file
from vision_core.images.decode import MAX_PIXELS, UnreadableImage

SECONDS_WITHOUT_AN_ANSWER = 20
SECONDS_OF_A_DOWNLOAD = 120
MAX_DOWNLOAD_BYTES = 64 * 2**20
SAFE_IN_A_URL = "%/:=&?~#+!$,;'@()*[]"  # other characters are percent-encoded


class ImageReader:
    """Reads the images of a source.

    folder: paths lead into it and must stay inside; None where the source has no folder.
    http: whether addresses are fetched.
    follow_links: whether a path inside the folder may be a link to a place outside.
    max_pixels: larger images are refused.
    """

    def __init__(
        self,
        folder: Path | None,
        http: bool = False,
        follow_links: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.folder = folder
        self.http = http
        self.follow_links = follow_links
        self.max_pixels = max_pixels

    def read(self, given: Any, what: str, where: str) -> Tensor:
        """The image `[3, H, W]` uint8. Raises BadRow.

        given: the image as a row has it: a text, bytes, or an object with `bytes`, `path` or `url`.
        what: the name of the image in messages, for example "image 2".
        """
        if isinstance(given, Mapping):
            given = given.get("bytes") or given.get("path") or given.get("url")
            if not given:
                raise BadRow(f"{where}: {what} is an object without bytes, path and url; give one of them")
        if isinstance(given, bytes):
            return self._decode(given, f"{where}: {what}")
        if not isinstance(given, str):
            kind = type(given).__name__
            raise BadRow(f"{where}: {what} is {kind}, not a path, a URL or bytes; give one of them")
        scheme = given[:8].partition(":")[0].lower()
        if scheme == "data":
            return self._decode(_data_of_url(given, what, where), f"{where}: {what}")
        if scheme in ("http", "https"):
            return self._decode(self._fetch(given, what, where), f"{where}: {one_line(given)}")
        path = _path_of_url(given, what, where) if scheme == "file" else given
        return self._decode(self._read_file(path, what, where), f"{where}: {one_line(path)}")

    def _decode(self, data: bytes, where: str) -> Tensor:
        return decode_row_image(data, where, self.max_pixels)

    def _fetch(self, url: str, what: str, where: str) -> bytes:
        if not self.http:
            cure = "download it, or let it be fetched whenever it is read by ?http=true"
            raise BadRow(f"{where}: {what} is at {one_line(url)}; {cure}")
        return fetch(url, where)

    def _read_file(self, name: str, what: str, where: str) -> bytes:
        if self.folder is None:
            cure = f"embed the images, or name the folder of {one_line(name)} by images="
            raise BadRow(f"{where}: {what} is not in the table (no bytes); {cure}")
        path = os.path.join(self.folder, name)
        try:
            self._check_path_of_row(path)
            return read_regular_file(path, *data_roots(self.folder, self.follow_links))
        except UnreadableImage as error:
            raise BadRow(f"{where}: {_fault_of_file(error.reason, name, path, self.folder)}") from None

    def _check_path_of_row(self, path: str) -> None:
        """Raises UnreadableImage for a path that itself leads out of the folder.

        A row may name only files of the folder, wherever the links in it may lead.
        """
        if self.follow_links and not is_inside(os.path.abspath(path), os.path.abspath(self.folder)):
            raise UnreadableImage("outside_the_data_folder")


def fetch(url: str, where: str) -> bytes:
    """The bytes at an http or https address: at most 64 MiB, within two minutes. Raises BadRow.

    Redirects stay within http and https.
    """
    cure = "mend the address, or download the images"
    try:
        request = Request(quote_url(url, safe=SAFE_IN_A_URL), headers={"User-Agent": "vision-encoder-fusion"})
        with _opener().open(request, timeout=SECONDS_WITHOUT_AN_ANSWER) as answer:
            return _download(answer)
    except _TooMuch as error:
        raise BadRow(f"{where}: {one_line(url)} {error}; {cure}") from None
    except (OSError, ValueError, HTTPException) as error:
        raise BadRow(f"{where}: {one_line(url)} cannot be fetched ({one_line(str(error))}); {cure}") from None


class _TooMuch(Exception):
    """A download that is too large or too slow; the message has the address as its subject."""


def _download(answer: HTTPResponse) -> bytes:
    """All bytes of an answer. Raises _TooMuch."""
    deadline = time.monotonic() + SECONDS_OF_A_DOWNLOAD
    data = bytearray()
    for chunk in iter(partial(answer.read1, 2**16), b""):
        data += chunk
        if len(data) > MAX_DOWNLOAD_BYTES:
            raise _TooMuch(f"gives more than {MAX_DOWNLOAD_BYTES // 2**20} MiB")
        if time.monotonic() > deadline:
            raise _TooMuch(f"took more than {SECONDS_OF_A_DOWNLOAD} s")
    return bytes(data)


def _opener() -> OpenerDirector:
    """urllib's opener without its handlers for files, FTP and data.

    So a redirect leads only to http and https.
    """
    opener = OpenerDirector()
    for handler in (
        ProxyHandler,
        HTTPHandler,
        HTTPSHandler,
        HTTPRedirectHandler,
        HTTPDefaultErrorHandler,
        HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _data_of_url(url: str, what: str, where: str) -> bytes:
    """The bytes of `data:image/png;base64,...` (RFC 2397)."""
    head, comma, encoded = url.partition(",")
    if not comma or not head[5:].lower().startswith("image/") or not head.lower().endswith(";base64"):
        raise BadRow(f"{where}: {what} is {one_line(url)}, not data:image/...;base64,...; write it so")
    try:
        return base64.b64decode(b"".join(unquote_to_bytes(encoded).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        fault = f"a data URL whose base64 is damaged: {one_line(url)} ({error})"
        raise BadRow(f"{where}: {what} is {fault}; encode it anew") from None


def _path_of_url(url: str, what: str, where: str) -> str:
    """The percent-decoded path of a `file://` URL; it must still keep the rule for paths."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = None
    if parts is None or parts.netloc not in ("", "localhost"):
        cure = "write file:///PATH, or the path alone"
        raise BadRow(f"{where}: {what} is {one_line(url)}, of another machine; {cure}")
    return unquote(parts.path)


def _fault_of_file(reason: str, name: str, path: str, folder: Path) -> str:
    """What is wrong with a file of the folder, and the cure."""
    if reason == "outside_the_data_folder":
        fault = f"{one_line(name)} leads out of the image folder {folder}"
        if is_inside(os.path.abspath(path), os.path.abspath(folder)):
            return f"{fault} by a link; add follow_links=true to the options of the source"
        return f"{fault}; give paths inside it"
    if len(name) > 255 and not name.startswith(("/", ".")) and set(name).isdisjoint(" .\n"):
        return (
            f"an image is {quote(name)}, which is not a path; in front of base64 goes data:image/png;base64,"
        )
    why = reason.replace("_", " ")
    return f"{one_line(path)} cannot be read ({why}); mend the path, or name another folder by images="
