"""Shards as webdataset's users write them, read as the webdataset package reads them."""

import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.open_source import open_source
from vision_core.images.sources.tar_shards import expand_braces, key_and_field
from vision_core.images.splits import open_splits

webdataset = pytest.importorskip("webdataset")


def picture(value: int, size: tuple[int, int] = (16, 20), mode: str = "RGB", form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    shape = size if mode == "L" else (*size, 3)
    Image.fromarray(np.random.default_rng(value).integers(0, 256, shape, dtype=np.uint8)).save(stream, form)
    return stream.getvalue()


def numbers(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 20), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, samples: list[dict]) -> str:
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return f"wds:{path}"


def read(path: Path) -> list[dict]:
    """What webdataset finds in shards, undecoded."""
    return list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))


def pixels(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


def by_tar(folder: Path, files: dict[str, bytes], *options: str) -> str:
    """A shard that the program tar wrote."""
    content = folder / "content"
    for name, data in files.items():
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).write_bytes(data)
    subprocess.run(["tar", *options, "-cf", folder / "shard.tar", "-C", content, *sorted(files)], check=True)
    return f"wds:{folder}/shard.tar"


@pytest.mark.parametrize(
    "text",
    [
        "data-{000000..000003}.tar", "{a,b}", "{a..e}", "{8..11}", "{08..11}",
        "{4..1}", "{0..9..3}", "x{train,val-{1..3}}.tar", "{2..-1}",
        "{split}.tar", "{,a}", "a{b,c}d{0..2}", "plain.tar", "{}", "{-01..2}",
    ],
)  # fmt: skip
def test_braces_are_those_of_webdataset(text: str) -> None:
    braceexpand = pytest.importorskip("braceexpand")
    assert expand_braces(text) == list(braceexpand.braceexpand(text))


def test_braces_and_joined_shards_name_the_shards_of_webdataset(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"data-{number:06d}.tar", [{"__key__": f"{number}a", "png": picture(number)}])
    for pattern in (
        "data-{000000..000003}.tar",
        "data-{000002..000000}.tar",
        "data-00000{1,3}.tar::" + f"{tmp_path}/data-000000.tar",
    ):
        source = open_source(f"wds:{tmp_path}/{pattern}")
        expected = read(tmp_path / pattern)
        assert [source.id_of(index).partition(":")[2] for index in range(len(source))] == [
            sample["__key__"] for sample in expected
        ]
        for index, sample in enumerate(expected):
            assert torch.equal(source[index].image, pixels(sample["png"]))
    with pytest.raises(UserError, match=r"no file matches wds:.*data-000004.tar"):
        open_source(f"wds:{tmp_path}/data-{{000003..000004}}.tar")
    with pytest.raises(UserError, match="a brace is not closed"):
        open_source(f"wds:{tmp_path}/data-{{000003.tar")
    with pytest.raises(UserError, match="names more than 1,000,000 shards"):
        open_source(f"wds:{tmp_path}/data-{{0..99999999999}}.tar")
    shards = f"wds:{tmp_path}/data-00000{{0,1}}.tar"
    splits = open_splits(shards, f"wds:{tmp_path}/data-000002.tar")
    assert (len(splits.train), len(splits.test)) == (2, 1)


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    """Images of several endings, classes, captions in text and JSON, masks, depth; keys with
    folders and long names."""
    samples = []
    for number in range(6):
        ending, form = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WebP"))[number % 3]
        samples.append(
            {
                "__key__": f"part/{'long' * 40}/sample{number:04d}",
                ending: picture(number, form=form),
                "cls": number % 2,
                "txt": f"a picture, number {number} é",
                "json": {"caption": f"json {number}"},
                "seg.png": numbers(number),
                "depth.png": numbers(100 + number),
            }
        )
    text = write(tmp_path / "s.tar", samples)
    source, expected = open_source(text), read(tmp_path / "s.tar")
    assert source.knows == {"label", "mask", "depth", "captions"}
    assert source.labels == [int(sample["cls"]) for sample in expected] and source.class_names is None
    for index, sample in enumerate(expected):
        assert source.id_of(index) == f"s.tar:{sample['__key__']}"
        image = next(sample[field] for field in ("jpg", "png", "webp") if field in sample)
        assert torch.equal(source[index].image, pixels(image))
        assert source.annotations.captions(index) == [sample["txt"].decode()]
        assert source.annotations.mask(index).unique().tolist() == [index]
        assert source.annotations.depth(index).unique().item() == pytest.approx((100 + index) / 1000)
    named = open_source(
        f"{text}?captions=json:caption&depth=depth.png&depth_scale=10"
        "&mask=seg.png&ignore=3&label=cls&image=jpg;png;webp"
    )
    assert named.annotations.captions(2) == [json.loads(expected[2]["json"])["caption"]]
    assert (
        named.annotations.depth(2).unique().item() == pytest.approx(10.2)
        and (named.annotations.mask(3) == 255).all()
    )


def test_a_field_is_chosen_to_be_the_image(tmp_path: Path) -> None:
    pair = [
        {
            "__key__": str(number),
            "left.jpg": picture(number, form="JPEG"),
            "right.jpg": picture(9, form="JPEG"),
        }
        for number in range(3)
    ]
    text = write(tmp_path / "stereo.tar", pair)
    with pytest.raises(
        UserError, match=r"has pictures left.jpg, right.jpg beside each other; choose one by \?image=left.jpg"
    ):
        open_source(text)
    source = open_source(f"{text}?image=left.jpg")
    assert [torch.equal(source[index].image, pixels(pair[index]["left.jpg"])) for index in range(3)] == [
        True
    ] * 3
    with pytest.raises(
        UserError, match=r"0 images in wds:.*looked for middle.jpg.*; fields there are: left.jpg, right.jpg"
    ):
        open_source(f"{text}?image=middle.jpg")
    single = write(
        tmp_path / "single.tar",
        [{"__key__": "a", "left.jpg": picture(1, form="JPEG"), "seg.png": numbers(1)}],
    )
    assert open_source(single).knows == {"mask"}
    twice = write(
        tmp_path / "twice.tar", [{"__key__": "a", "jpg": picture(1, form="JPEG"), "png": picture(1)}]
    )
    with pytest.raises(
        UserError, match=r"two images have the key 'a' \(jpg, png\); choose one by \?image=jpg"
    ):
        open_source(twice)
    assert torch.equal(open_source(f"{twice}?image=png")[0].image, pixels(picture(1)))
    assert torch.equal(open_source(f"{twice}?image=webp;png;jpg")[0].image, pixels(picture(1)))
    lost = write(
        tmp_path / "lost.tar", [{"__key__": "a", "png": picture(1)}, {"__key__": "b", "txt": "no image"}]
    )
    assert (
        len(open_source(lost)) == 1
        and "samples without an image, left out: 1" in open_source(lost).description
    )


def test_dots_in_names(tmp_path: Path) -> None:
    """webdataset reads the key `22` and the fields `05.png`, `10.png`; here they are two images,
    and what is beside `22` is beside both."""
    for name, key, field in (
        ("22.05.png", "22.05", "png"), ("22.05.SEG.png", "22.05", "seg.png"), ("a/b.c/cat.1.jpg", "a/b.c/cat.1", "jpg"),
        ("a.depth.png", "a", "depth.png"), ("v1.2-x.jpg", "v1.2-x", "jpg"),
        ("readme", "readme", ""), (".hidden.png", ".hidden.png", ""),
    ):  # fmt: skip
        assert key_and_field(name) == (key, field)
    text = write(
        tmp_path / "s.tar",
        [{"__key__": "22", "05.png": picture(5), "10.png": picture(10), "cls": 3, "txt": "both"}],
    )
    (sample,) = read(tmp_path / "s.tar")
    source = open_source(text)
    assert [source.id_of(index) for index in range(2)] == ["s.tar:22.05", "s.tar:22.10"]
    assert torch.equal(source[1].image, pixels(sample["10.png"])) and source.labels == [3, 3]
    assert source.annotations.captions(0) == ["both"] and "without an image" not in source.description


@pytest.mark.parametrize("options", [(), ("--format=pax",), ("--format=gnu",)])
def test_shards_that_tar_wrote(tmp_path: Path, options: tuple[str, ...]) -> None:
    """With the files that macOS adds, and a name longer than a header holds."""
    long = "x" * 120 + "/" + "y" * 90
    files = {
        "._a.jpg": b"Mac OS X",
        "a.jpg": picture(1, form="JPEG"),
        "a.depth.png": numbers(7),
        "a.txt": b"one\n",
    }
    files |= {
        f"{long}.jpg": picture(2, form="JPEG"),
        f"{long}.depth.png": numbers(8),
        f"{long}.txt": b"two\n",
    }
    files |= {"d/._b.cls": b"Mac OS X"}
    text = by_tar(tmp_path, files, *options)
    source = open_source(text)
    expected = [
        sample for sample in read(tmp_path / "shard.tar") if "jpg" in sample and "a.jpg" not in sample
    ]
    keys = [source.id_of(index).removeprefix("shard.tar:") for index in range(len(source))]
    assert keys == [sample["__key__"] for sample in expected] == ["a", long]
    assert "files of macOS (._), passed over: 2" in source.description
    assert [source.annotations.captions(index) for index in range(2)] == [["one"], ["two"]]
    assert source.knows == {"captions", "depth"} and source.annotations.depth(
        1
    ).unique().item() == pytest.approx(0.008)


def test_class_names_in_cls(tmp_path: Path) -> None:
    def shard(name: str, classes: list[str]) -> str:
        return write(
            tmp_path / name,
            [{"__key__": str(n), "png": picture(n), "cls": text} for n, text in enumerate(classes)],
        )

    train, test = (shard("train.tar", ["dog", "ant", "cat", "ant"]), shard("test.tar", ["dog", "cat"]))
    source = open_source(train)
    assert source.class_names == ["ant", "cat", "dog"] and source.labels == [2, 0, 1, 0]
    assert open_source(test).labels == [1, 0]
    splits = open_splits(train, test)
    assert splits.test.labels == [2, 1] and splits.test.class_names == ["ant", "cat", "dog"]
    assert open_splits(f"wds:{tmp_path}/{{split}}.tar").test.labels == [2, 1]
    assert open_splits(f"wds:{tmp_path}/{{split}}{{,}}.ta{{r,r}}").test.labels == [2, 1]
    with pytest.raises(
        UserError, match="1 classes of the test images, such as 'emu', have no training image"
    ):
        open_splits(train, shard("other.tar", ["emu", "cat"]))


def test_labels_in_json(tmp_path: Path) -> None:
    rows = [{"kind": "cat", "tags": ["a", "c"]}, {"kind": "ant", "tags": []}, {"kind": "cat", "tags": ["b"]}]
    text = write(
        tmp_path / "s.tar",
        [{"__key__": str(n), "png": picture(n), "json": row} for n, row in enumerate(rows)],
    )
    assert open_source(f"{text}?label=json:kind").labels == [1, 0, 1]
    tags = open_source(f"{text}?label=json:tags")
    assert (
        tags.labels is None and tags.multi_labels == [[0, 2], [], [1]] and tags.class_names == ["a", "b", "c"]
    )
    assert tags.knows == {"multi_label"} and open_source(text).knows == set()
    with pytest.raises(UserError, match="column 'json:nothing': 3 of 3 labels are missing"):
        open_source(f"{text}?label=json:nothing")
    with pytest.raises(
        UserError, match="3 of 3 images have no 'txt' beside them; fields there are: json, png"
    ):
        open_source(f"{text}?captions=txt")


def test_what_is_beside_some_images_only_is_said(tmp_path: Path) -> None:
    text = write(
        tmp_path / "s.tar",
        [
            {"__key__": "0", "png": picture(0), "seg.png": numbers(0), "txt": "a"},
            {"__key__": "1", "png": picture(1)},
        ],
    )
    source = open_source(text)
    assert source.knows == set()
    assert source.description.endswith(
        "seg.png beside 1 of 2 images only, not used, txt beside 1 of 2 images only, not used"
    )
    with pytest.raises(UserError, match="1 of 2 images have no 'seg.png' beside them"):
        open_source(f"{text}?mask=seg.png")
    broken = by_tar(tmp_path, {"0.png": picture(0), "0.json": b"{"})
    with pytest.raises(UserError, match="0.json: no JSON"):
        open_source(broken)
