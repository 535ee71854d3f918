"""Where the images of a row come from, and every way in which one cannot be had."""

import base64
import io
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tifffile
import torch
from PIL import Image

from fusion.conversations import images as conversation_images
from fusion.conversations.conversation import BadRow
from fusion.conversations.images import ImageReader
from fusion.conversations.sources import open_conversations
from fusion.conversations.stream import open_stream
from vision_core.errors import UserError
from vision_core.images.decode import decode_image

WHERE = "rows.json, row 7"
LONG = "A" * 50_000


def png(seed=0):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(
        stream, "PNG"
    )
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    (images / "sub folder").mkdir(parents=True)
    for number, name in enumerate(("a.png", "sub folder/b.png", "ü.png")):
        (images / name).write_bytes(png(number))
    (tmp_path / "secret.png").write_bytes(png())
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    return images


def refusal(reader, given):
    """The message of an image that cannot be had: one printable line that names the place."""
    with pytest.raises(BadRow) as caught:
        reader.read(given, "image 2", WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ") and message.isprintable() and len(message) < 1500
    return message


def data_url(data=None, head="data:image/png;base64"):
    return f"{head},{base64.b64encode(png() if data is None else data).decode()}"


def same(read, seed=0):
    return torch.equal(read, decode_image(png(seed)))


def test_ways_of_naming_a_file(folder):
    reader = ImageReader(folder)
    for given in (
        "a.png",
        "sub folder/../a.png",
        str(folder / "a.png"),
        f"file://{folder}/a.png",
        {"path": "a.png", "bytes": None},
        {"url": "a.png"},
    ):
        assert same(reader.read(given, "image 1", WHERE))
    assert same(reader.read(f"file://localhost{folder}/sub%20folder/b.png", "image 1", WHERE), 1)
    assert same(reader.read("ü.png", "image 1", WHERE), 2)
    assert same(reader.read({"bytes": png(1), "path": "a.png"}, "image 1", WHERE), 1)
    assert same(reader.read(png(1), "image 1", WHERE), 1)


def test_data_urls(folder):
    for reader in (ImageReader(folder), ImageReader(None)):
        for head in ("data:image/png;base64", "DATA:image/any;charset=x;BASE64"):
            assert same(reader.read(data_url(head=head), "image 1", WHERE))
        broken_up = data_url().replace("+", "%2B").replace("/", "%2F").replace("image%2F", "image/")
        assert same(reader.read(broken_up, "image 1", WHERE))
        assert same(reader.read("\n".join([data_url()[:40], data_url()[40:]]), "image 1", WHERE))
        for url in (
            "data:",
            f"data:,{LONG}",
            f"data:text/plain;base64,{LONG}",
            f"data:image/png,{LONG}",
            f"data:image/png;base64;{LONG}",
        ):
            assert "not data:image/...;base64" in refusal(reader, url)
        for url in (
            f"data:image/png;base64,{LONG}!",
            f"data:image/png;base64,{LONG}A",
            "data:image/png;base64,ü",
        ):
            assert "base64 is damaged" in refusal(reader, url)
        assert "cannot be decoded" in refusal(reader, f"data:image/png;base64,{LONG}")


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "link.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "file:///%2e%2e/etc/passwd",
        "sub folder/../../secret.png",
        "",
        ".",
        "x/../..",
    ],
)
def test_no_way_leads_out_of_the_folder(folder, name):
    assert "leads out of the image folder" in refusal(ImageReader(folder), name)
    assert (
        "leads out of the image folder" in refusal(ImageReader(folder), {"path": name, "bytes": None})
        or not name
    )


def test_a_folder_whose_name_begins_like_the_images_folder(folder):
    (folder.parent / "images_of_others").mkdir()
    (folder.parent / "images_of_others" / "a.png").write_bytes(png())
    assert "leads out" in refusal(ImageReader(folder), "../images_of_others/a.png")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("absent.png", "absent.png cannot be read (missing)"),
        ("sub folder", "not a regular file"),
        ("a\x00.png", "cannot be opened"),
        ("\ud800.png", "cannot be opened"),
        ("a\n" + LONG, "cannot be read"),
        (LONG, "data:image/png;base64,"),
        ("/" + LONG, "leads out"),
        ("file://elsewhere/a.png", "of another machine"),
        ("file://[/a.png", "of another machine"),
        ("s3://bucket/a.png", "cannot be read (missing)"),
        (None, "is NoneType"),
        (7, "is int"),
        ([LONG], "is list"),
        ({"bytes": None, "path": None}, "without bytes"),
        ({"bytes": 7}, "is int"),
        ({"bytes": LONG}, "data:image/png;base64,"),
        (b"", "cannot be decoded"),
        (b"x" * 50_000, "cannot be decoded"),
    ],
)
@pytest.mark.timeout(20)
def test_images_that_cannot_be_had(folder, given, said):
    assert said in refusal(ImageReader(folder), given)


def floats(format):
    stream, values = (io.BytesIO(), np.random.default_rng(0).uniform(0, 2999, (16, 16, 3)).astype(np.float32))
    np.save(stream, values) if format == "npy" else tifffile.imwrite(stream, values, photometric="rgb")
    return stream.getvalue()


@pytest.mark.parametrize("format", ["npy", "tif"])
def test_numbers_of_no_known_range_are_no_picture(folder, format):
    """The decoder gives them as float32, which no processor of a language model takes."""
    (folder / f"float.{format}").write_bytes(floats(format))
    said = "holds numbers whose black and white are not known; save it as a picture"
    assert f"float.{format} {said}" in refusal(ImageReader(folder), f"float.{format}")
    assert f"image 2 {said}" in refusal(ImageReader(None), floats(format))


def rows_about(folder, name, options=""):
    """The source of one conversation about an image."""
    row = {
        "image": name,
        "conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "that"}],
    }
    (folder.parent / "rows.jsonl").write_text(json.dumps(row))
    return open_conversations(f"llava:{folder.parent}/rows.jsonl?images={folder}{options}")


def test_linked_folders_are_followed_where_the_source_says_so(folder, tmp_path):
    """As LLaVA's instructions have it: llava/coco is a link to where COCO lies."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").write_bytes(png(3))
    (folder / "coco").symlink_to(tmp_path / "disk")
    with pytest.raises(
        BadRow,
        match="leads out of the image folder .* by a link; add follow_links=true to the options of the source",
    ):
        rows_about(folder, "coco/a.png")[0]
    assert same(rows_about(folder, "coco/a.png", "&follow_links=true")[0].images[0], 3)
    assert same(rows_about(folder, "link.png", "&follow_links=true")[0].images[0])
    with pytest.raises(UserError, match="follow_links=yes is neither true nor false"):
        rows_about(folder, "coco/a.png", "&follow_links=yes")


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "file:///etc/passwd", "coco/../../secret.png"]
)
def test_a_row_itself_never_leads_out_of_the_folder(folder, name):
    with pytest.raises(BadRow, match="leads out of the image folder .*; give paths inside it"):
        rows_about(folder, name, "&follow_links=true")[0]


def test_the_largest_image_is_what_the_source_says(folder):
    with pytest.raises(
        BadRow, match=r"a.png cannot be decoded \(too_large\); make it smaller, or add max_pixels=NUMBER"
    ):
        rows_about(folder, "a.png", "&max_pixels=107")[0]
    assert same(rows_about(folder, "a.png", "&max_pixels=108")[0].images[0])
    with pytest.raises(UserError, match="max_pixels=many is not possible"):
        rows_about(folder, "a.png", "&max_pixels=many")


@pytest.mark.timeout(20)
def test_a_pipe_does_not_hang(folder):
    os.mkfifo(folder / "pipe.png")
    assert "not a regular file" in refusal(ImageReader(folder), "pipe.png")


def test_a_path_in_a_table_needs_a_folder(folder, tmp_path):
    assert "name the folder of a.png by images=" in refusal(
        ImageReader(None), {"bytes": None, "path": "a.png"}
    )
    turns = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"messages": turns, "image": "a.png"}]), tmp_path / "rows.parquet"
    )
    with pytest.raises(BadRow, match="rows.parquet, row 1: image 1 is not in the table"):
        open_conversations(f"parquet:{tmp_path}/rows.parquet")[0]
    assert same(open_conversations(f"parquet:{tmp_path}/rows.parquet?images={folder}")[0].images[0])
    assert same(
        next(iter(open_stream(f"parquet:{tmp_path}/rows.parquet?images={folder}&streaming=true"))).images[0]
    )


def test_images_anywhere_in_a_table_that_datasets_would_decode(tmp_path):
    """The features say Image, at the top and within the parts of a turn; none is decoded to
    something that has no bytes."""
    part = {"type": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
    turn = {"role": datasets.Value("string"), "content": datasets.List(part)}
    content = [
        {"type": "image", "text": None, "image": {"bytes": png(1), "path": None}},
        {"type": "text", "text": "what?", "image": None},
    ]
    answer = [{"type": "text", "text": "that", "image": None}]
    row = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        "jpg": {"bytes": png(2), "path": None},
    }
    table = datasets.Dataset.from_list(
        [row], features=datasets.Features({"messages": datasets.List(turn), "jpg": datasets.Image()})
    )
    table.to_parquet(tmp_path / "rows.parquet")
    for source in (
        open_conversations(f"parquet:{tmp_path}/rows.parquet"),
        list(open_stream(f"parquet:{tmp_path}/rows.parquet?streaming=true")),
    ):
        assert (
            same(source[0].images[0], 1)
            and source[0].messages[0].text == "<image>\nwhat?"
            and source[0].messages[1].text == "that"
        )
    finevision = {"images": [png(1), png(2)], "texts": [{"user": "what?", "assistant": "that"}]}
    of_texts = {"user": datasets.Value("string"), "assistant": datasets.Value("string")}
    features = datasets.Features(
        {"images": datasets.List(datasets.Image()), "texts": datasets.List(of_texts)}
    )
    (tmp_path / "folder").mkdir()
    datasets.Dataset.from_list([finevision], features=features).to_parquet(
        tmp_path / "folder" / "train-00000-of-00001.parquet"
    )
    conversation = open_conversations(f"hf:{tmp_path}/folder")[0]
    assert [same(image, seed) for seed, image in enumerate(conversation.images, 1)] == [True, True]
    assert conversation.messages[0].text == "<image>\n<image>\nwhat?"


# ---- addresses: a server of this machine alone


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 (its base class names it)
        if self.path == "/redirect":
            return self.answer(302, b"", Location="/a.png")
        if self.path == "/to-a-file":
            return self.answer(302, b"", Location="file:///etc/passwd")
        if self.path == "/to-ftp":
            return self.answer(302, b"", Location="ftp://127.0.0.1/a.png")
        if self.path == "/absent.png":
            return self.answer(404, b"")
        if self.path == "/slow.png":
            return self.server.released.wait(20)
        if self.path == "/large.png":
            return self.answer(200, bytes(2**21))
        if self.path == "/cut.png":
            return self.answer(200, png()[:100], **{"Content-Length": "9999"})
        return self.answer(200, png(len(self.path)))

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_addresses_are_fetched_on_request_alone(address, tmp_path):
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "that"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"conversations": turns, "image": f"{address}/a.png"}]))
    with pytest.raises(BadRow, match="row 1: image 1 is at http.*; download it, or .* by \\?http=true"):
        open_conversations(f"llava:{tmp_path}/rows.json")[0]
    assert same(open_conversations(f"llava:{tmp_path}/rows.json?http=true")[0].images[0], len("/a.png"))
    assert "?http=true" in refusal(ImageReader(None), "HTTPS://x/" + LONG)


def test_addresses(address):
    reader = ImageReader(None, http=True)
    assert same(reader.read(f"{address}/redirect", "image 1", WHERE), len("/a.png"))
    assert same(
        reader.read(f"{address}/a b ü.png?x=1&y=%20", "image 1", WHERE), len("/a%20b%20%C3%BC.png?x=1&y=%20")
    )


def test_addresses_that_give_nothing(address, monkeypatch):
    reader = ImageReader(None, http=True)
    for path, said in (
        ("absent.png", "404"),
        ("to-a-file", "cannot be fetched"),
        ("to-ftp", "cannot be fetched"),
        ("cut.png", "cannot be "),
    ):
        assert said in refusal(reader, f"{address}/{path}")
    for url in (
        "http://",
        "http://[::1",
        "https://127.0.0.1:1/a.png",
        "http://127.0.0.1:99999999/",
        "http://a b/",
        "http://\ud800/",
    ):
        assert "cannot be fetched" in refusal(reader, url)
    monkeypatch.setattr(conversation_images, "MAX_DOWNLOAD_BYTES", 2**20)
    assert "more than 1 MiB" in refusal(reader, f"{address}/large.png")
    monkeypatch.setattr(conversation_images, "SECONDS_OF_A_DOWNLOAD", -1)
    assert "took more than" in refusal(reader, f"{address}/a.png")


@pytest.mark.timeout(10)
def test_an_address_that_does_not_answer(address, monkeypatch):
    monkeypatch.setattr(conversation_images, "SECONDS_WITHOUT_AN_ANSWER", 0.2)
    assert "timed out" in refusal(ImageReader(None, http=True), f"{address}/slow.png")
