"""Links: the hub's cache, folders of links, and what is said where they are not followed."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.file_download import _create_symlink
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.open_source import open_source
from vision_core.unreadable import UnreadableImage, cure

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links as on POSIX")


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def save(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def snapshot(cache: Path, files: dict[str, bytes], repository: str = "datasets--me--cats") -> Path:
    """The folder that the hub's client leaves behind, its links made by its own code."""
    folder = cache / repository / "snapshots" / ("a" * 40)
    for number, (name, content) in enumerate(files.items()):
        blob = save(cache / repository / "blobs" / f"{number:064x}", content)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _create_symlink(str(blob), str(folder / name))
    save(cache / repository / "refs/main", b"a" * 40)
    return folder


CATS = {"train/cat/0.png": png(0), "train/dog/1.png": png(1), "train/dog/2.png": png(2)}


def values(source) -> list[int]:
    return [int(source[index].image[0, 0, 0]) for index in range(len(source))]


@pytest.mark.parametrize("repository", ["datasets--me--cats", "models--me--cats"])
def test_a_snapshot_of_the_hub_is_read_without_an_option(tmp_path: Path, repository: str) -> None:
    folder = snapshot(tmp_path, CATS, repository)
    assert (folder / "train/cat/0.png").is_symlink()
    source = open_source(str(folder / "train"))
    assert source.paths == ["cat/0.png", "dog/1.png", "dog/2.png"]
    assert values(source) == [0, 1, 2] and source.labels == [0, 1, 1]
    (folder / "list.txt").write_text("train/dog/2.png\ntrain/cat/0.png\n")
    assert values(open_source(f"list:{folder}/list.txt")) == [2, 0]
    assert values(open_source(f"hf:{folder}")) == [0, 1, 2]


def test_the_cache_itself_is_read_by_names_and_not_by_blobs(tmp_path: Path) -> None:
    folder = snapshot(tmp_path, CATS)
    source = open_source(str(tmp_path))
    assert source.paths == [f"{folder.relative_to(tmp_path)}/{name}" for name in CATS]
    assert values(source) == [0, 1, 2]
    assert len(open_source(str(tmp_path / "datasets--me--cats"))) == 3


def test_a_folder_named_like_a_repository_opens_nothing_by_itself(tmp_path: Path) -> None:
    """Without blobs beside the snapshots it is a folder like any other."""
    secret = save(tmp_path / "datasets--me--cats/secret.png", png(9))
    folder = tmp_path / "datasets--me--cats/snapshots/a"
    save(folder / "0.png", png(0))
    (folder / "1.png").symlink_to(secret)
    with pytest.raises(UnreadableImage, match="outside_the_data_folder"):
        open_source(str(folder))[1]


def test_links_of_files_and_folders_are_followed_on_request(tmp_path: Path) -> None:
    save(tmp_path / "mnt/imagenet/cat/0.png", png(0))
    single = save(tmp_path / "mnt/1.png", png(1))
    root = tmp_path / "data"
    (root / "dog").mkdir(parents=True)
    (root / "dog/1.png").symlink_to(single)
    with pytest.raises(
        UserError,
        match=r"all 1 images under .* are links out of it, such as dog/1.png; add \?follow_links=true",
    ):
        open_source(str(root))
    (root / "cat").symlink_to(tmp_path / "mnt/imagenet/cat")
    with pytest.raises(UserError, match=r"data/cat is a link out of .*imagenet/cat, .*follow_links=true"):
        open_source(str(root))
    source = open_source(f"{root}?follow_links=true")
    assert source.paths == ["cat/0.png", "dog/1.png"] and source.labels == [0, 1] and values(source) == [0, 1]
    (root / "list.txt").write_text("dog/1.png\ncat/0.png\n")
    with pytest.raises(UnreadableImage, match="outside_the_data_folder"):
        open_source(f"list:{root}/list.txt")[0]
    assert values(open_source(f"list:{root}/list.txt?follow_links=true")) == [1, 0]


def test_what_is_not_followed_is_said(tmp_path: Path) -> None:
    save(tmp_path / "data/0.png", png(0))
    (tmp_path / "data/1.png").symlink_to(save(tmp_path / "1.png", png(1)))
    description = open_source(str(tmp_path / "data")).description
    assert description.endswith("; 1 links out of the folder, which are not read without ?follow_links=true")
    assert "follow_links=true" in cure("outside_the_data_folder")


def test_loops_end_and_a_folder_linked_twice_is_read_once(tmp_path: Path) -> None:
    save(tmp_path / "data/a/0.png", png(0))
    save(tmp_path / "mnt/1.png", png(1))
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    (tmp_path / "mnt/loop").symlink_to(tmp_path / "mnt")
    (tmp_path / "data/b").symlink_to(tmp_path / "mnt")
    (tmp_path / "data/c").symlink_to(tmp_path / "mnt")
    source = open_source(f"{tmp_path}/data?follow_links=true")
    assert source.paths == ["a/0.png", "b/1.png"] and values(source) == [0, 1]
    assert "3 linked folders are read at their other place: a/up" in source.description


def test_no_link_leads_to_a_device(tmp_path: Path) -> None:
    (tmp_path / "0.png").symlink_to("/dev/zero")
    (tmp_path / "noending").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    source = open_source(f"{tmp_path}?follow_links=true")
    assert source.paths == ["0.png"]
    with pytest.raises(UnreadableImage, match="not_a_regular_file"):
        source[0]


def test_shards_of_a_snapshot_are_read(tmp_path: Path) -> None:
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(png(5))
        tar.addfile(info, io.BytesIO(png(5)))
    table = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([png(6)], type=pa.binary())}), table)
    folder = snapshot(tmp_path, {"a.tar": shard.getvalue(), "b.parquet": table.getvalue()})
    assert values(open_source(f"wds:{folder}/*.tar")) == [5]
    assert values(open_source(f"parquet:{folder}/*.parquet")) == [6]


def test_a_local_data_set_follows_links_on_request_and_paths_in_its_tables_never(tmp_path: Path) -> None:
    save(tmp_path / "data/train/cat/0.png", png(0))
    secret = save(tmp_path / "secret.png", png(9))
    (tmp_path / "data/train/cat/1.png").symlink_to(secret)
    with pytest.raises(UnreadableImage, match="outside_the_data_folder"):
        open_source(f"hf:{tmp_path}/data")[1]
    assert values(open_source(f"hf:{tmp_path}/data?follow_links=true")) == [0, 9]


def test_only_true_and_false_are_possible(tmp_path: Path) -> None:
    save(tmp_path / "0.png", png(0))
    with pytest.raises(UserError, match="follow_links=yes is not possible; use true or false"):
        open_source(f"{tmp_path}?follow_links=yes")
