import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_core.errors import UserError
from vision_core.files.regular_files import MAX_FILE_BYTES
from vision_core.images.decode import UnreadableImage
from vision_core.images.open_source import open_source


def save(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), value, dtype=np.uint8)).save(path, "PNG")
    return path


def reasons(text: str) -> dict[str, str]:
    source, found = open_source(text), {}
    for index in range(len(source)):
        try:
            source[index]
        except UnreadableImage as error:
            found[source.id_of(index)] = error.reason
    return found


def test_depth_order_extensions_and_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a/x/y/1.png", "a/0.jpeg", "a/.hidden.png", ".git/3.png", "a/._0.jpg"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    assert source.paths == ["a/0.jpeg", "a/x/y/1.png", "b/2.PNG"]
    assert source.labels == [0, 0, 1] and source.class_names == ["a", "b"]
    assert open_source(f"folder:{tmp_path}/").paths == source.paths


def test_images_in_the_root_have_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "a/0.png"), save(tmp_path / "1.png")
    source = open_source(str(tmp_path))
    assert source.labels is None and source.class_names is None and source[0].label is None


def test_an_empty_folder_names_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=rf"0 images under {tmp_path} \(looked for .jpg, .jpeg, .*.tiff.* at any depth\); left out: 1 .txt",
    ):
        open_source(str(tmp_path))
    (tmp_path / "x.npy").write_bytes(b"")
    assert len(open_source(str(tmp_path), num_channels=5)) == len(open_source(str(tmp_path))) == 1


@pytest.mark.skipif(os.name != "posix", reason="pipes and links as on POSIX")
def test_what_is_no_regular_file_inside_the_root_is_refused(tmp_path: Path) -> None:
    outside, root = save(tmp_path / "outside.png"), tmp_path / "root"
    inside = save(root / "inside.png")
    os.mkfifo(root / "pipe.jpg")
    (root / "out.png").symlink_to(outside)
    (root / "up.png").symlink_to("../outside.png")
    (root / "in.png").symlink_to(inside)
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "device.png").symlink_to("/dev/zero")
    save(root / "folder.png/0.png")
    with open(root / "huge.png", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    start = time.perf_counter()
    assert reasons(str(root)) == {
        "pipe.jpg": "not_a_regular_file",
        "out.png": "outside_the_data_folder",
        "up.png": "outside_the_data_folder",
        "gone.png": "missing",
        "loop.png": "cannot_be_opened",
        "device.png": "outside_the_data_folder",
        "huge.png": "file_too_large",
    }
    assert time.perf_counter() - start < 2
    assert open_source(str(root)).id_of(1) == "folder.png/0.png"


def test_a_linked_folder_outside_is_named(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/0.png"), save(tmp_path / "root/a/0.png")
    (tmp_path / "root/inside").symlink_to(tmp_path / "root/a")
    assert open_source(f"{tmp_path}/root").paths == ["a/0.png"]
    (tmp_path / "linked_root").symlink_to(tmp_path / "root")
    assert open_source(f"{tmp_path}/linked_root")[0].id == "a/0.png"
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"root/b is a link out of .*name its target"):
        open_source(f"{tmp_path}/root")


@pytest.mark.skipif(os.name != "posix", reason="file names as on POSIX")
def test_odd_names_survive(tmp_path: Path) -> None:
    names = ["new\nline.png", os.fsdecode(b"latin-\xff.png"), "übergröße.png", "q?a=b.png"]
    for name in names:
        save(tmp_path / name)
    source = open_source(str(tmp_path))
    assert sorted(source[index].id for index in range(4)) == sorted(names)


def test_a_list(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/1 .png", "2.png"):
        save(tmp_path / name)
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa/1 .png\t4\r\n\r\n./2.png\t0\na/../a/0.png\t4")
    source = open_source(f"list:{tmp_path}/list.txt")
    assert [source[index].id for index in range(3)] == ["a/1 .png", "2.png", "a/0.png"]
    assert source.labels == [4, 0, 4]


def test_a_list_with_another_root_and_missing_files(tmp_path: Path) -> None:
    path = save(tmp_path / "images/0.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/list.txt").write_text(
        f"{path}\n0.png\ngone.png\nfile:/etc/passwd\nhttp://host/x.png\n"
    )
    text = f"list:{tmp_path}/lists/list.txt?root={tmp_path}/images"
    assert open_source(text).labels is None and open_source(text)[0].id == "0.png"
    assert set(reasons(text).values()) == {"missing"} and len(reasons(text)) == 3


@pytest.mark.parametrize(
    "lines, message",
    [
        ("0.png\n../x.png\n", r"list.txt:2: '../x.png' leads out of"),
        ("/etc/passwd\n", r"list.txt:1: '/etc/passwd' leads out of"),
        ("a/../../x.png\n", r"leads out of .*\?root=FOLDER"),
        (".\n", r"leads out of"),
        ("0.png\tcat\n", r"list.txt:1: the label 'cat' is no whole number"),
        ("0.png\t-1\n", r"no whole number"),
        ("0.png\t1\n1.png\n", r"1 of 2 lines have no label"),
        ("a\0b.png\n", r"NUL"),
        ("\n \n", r"0 images in .*list.txt"),
    ],
)
def test_bad_lists(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(UserError, match=message):
        open_source(f"list:{tmp_path}/list.txt")


def test_a_list_with_a_root_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0.png\n")
    with pytest.raises(UserError, match=r"nowhere does not exist; name another by \?root="):
        open_source(f"list:{tmp_path}/list.txt?root={tmp_path}/nowhere")
