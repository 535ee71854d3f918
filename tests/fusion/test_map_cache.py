"""The cache of frozen features of a run: damage, litter, full disks, killed fills, several
processes at once."""

import os
import re
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusion.conversations.batches import BLANK
from fusion.map_cache import MapCache
from fusion.training.cache_of_a_run import fill_for_a_run
from fusion.training.models import load_model
from fusion.training.small_default import write_small_default
from vision_core.errors import UserError
from vision_core.files.files_aside import THIS_MACHINE

IMAGES = 48  # and the blank one


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_small_default(folder, ["what colour is the largest object?"], seed=0)
    return folder


@pytest.fixture(scope="module")
def vision(model_folder):
    """The vision model, which counts the images that it is shown, and the image processor."""
    model, processor = load_model(str(model_folder))
    vision_model = model.vision_model.eval()
    vision_model.shown = 0

    def count(module: nn.Module, inputs: tuple) -> None:
        vision_model.shown += len(inputs[0])

    vision_model.encoders[0].register_forward_pre_hook(count)
    return vision_model, processor.image_processor


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, 40, 40 + number % 3) for number in range(IMAGES)]
    return [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for size in sizes]


@pytest.fixture(scope="module")
def whole(vision, images, tmp_path_factory):
    """A cache of all images that nothing has happened to."""
    root = tmp_path_factory.mktemp("whole")
    fill_for_a_run(cache_in(root, vision), rows_of(images), *vision)
    return root


def rows_of(images):
    return [[SimpleNamespace(images=[image]) for image in images]]


def cache_in(root, vision):
    return MapCache(root, *vision, torch.float32)


def files_of(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def flip(path, bit):
    """A bit of the middle float32 of a file; 31 is its sign, 30 the greatest of its exponent."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    number = start + (len(content) - start) // 8 * 4
    content[number + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


DAMAGES = {
    "sign": lambda path: flip(path, 31),
    "exponent": lambda path: flip(path, 30),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_noticed_and_made_again(damage, vision, images, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    cache = cache_in(tmp_path, vision)
    every = [*images, BLANK]
    for image in every:
        DAMAGES[damage](cache.path(image))
        with pytest.raises(UserError, match="start the run again, which makes them anew") as told:
            cache.load(image)  # as in the middle of training
        assert cache.path(image).name in str(told.value) and "\n" not in str(told.value)
    vision[0].shown = 0
    fill_for_a_run(cache, rows_of(images), *vision)
    assert vision[0].shown == 49
    assert_same_features(tmp_path, whole)
    said = capsys.readouterr().out
    assert f"{cache.folder}: 49 files were not what was written; they are made again" in said
    assert "the features of 49 images: they need 2.6 MB" in said
    for image, expected in zip(every, map(cache_in(whole, vision).load, every), strict=True):
        torch.testing.assert_close(cache.load(image), expected, rtol=1e-4, atol=1e-5)
    fill_for_a_run(cache, rows_of(images), *vision)
    assert vision[0].shown == 49 and capsys.readouterr().out == ""


def test_whatever_lies_in_a_file_s_place_is_replaced(vision, images, whole, tmp_path, capsys):
    """Another image's whole file; one of an earlier version, which counts as missing; a folder; a
    link to nothing."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    cache = cache_in(tmp_path, vision)
    paths = [cache.path(image) for image in images[:4]]
    shutil.copy(cache.path(images[5]), paths[0])
    save_file(load_file(paths[1]), paths[1])
    paths[2].unlink()
    (paths[2] / "inside").mkdir(parents=True)
    paths[3].unlink()
    paths[3].symlink_to(tmp_path / "absent")
    fill_for_a_run(cache, rows_of(images), *vision)
    assert_same_features(tmp_path, whole)
    said = capsys.readouterr().out
    assert ": 2 files were not what was written" in said and "features of 4 images" in said


def test_an_image_that_is_replaced_in_its_file_is_noticed(vision, whole, tmp_path, capsys):
    """By its pixels: the new file has the name, the size and the times of the old one."""
    from PIL import Image

    from vision_core.images.decode import decode_image

    path = tmp_path / "image.bmp"
    cache = cache_in(tmp_path / "cache", vision)
    found = []
    for colour in ((200, 10, 10), (10, 10, 200)):
        Image.new("RGB", (40, 40), colour).save(path)
        os.utime(path, (1e9, 1e9))
        found.append((path.stat().st_size, path.stat().st_mtime_ns))
        image = decode_image(path.read_bytes())
        fill_for_a_run(cache, rows_of([image]), *vision)
        by_hand = vision[0].maps(vision[1]([image])["pixel_values"])
        for stored, expected in zip(cache.load(image), by_hand, strict=True):
            torch.testing.assert_close(stored, expected[0], rtol=1e-4, atol=1e-5)
    assert found[0] == found[1] and len(files_of(tmp_path / "cache")) == 3


def test_litter_is_removed_at_the_next_start(vision, images, tmp_path):
    cache = cache_in(tmp_path, vision)
    old = cache.folder / "0a" / f"{'0a' * 16}.tmp-77"
    old.parent.mkdir(parents=True)
    litter = [cache.folder / f".tmp-{THIS_MACHINE}-{os.getpid()}-0badf00d", old, old.with_suffix(".tmp-78")]
    for path in litter:
        path.write_bytes(b"half a file")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    fill_for_a_run(cache, rows_of(images[:2]), *vision)
    assert [path.exists() for path in litter] == [
        False,
        False,
        True,
    ]  # the last may be written on another machine


# in a process of its own, with a disk of its own; argv: folder of the model, place for the disk
FULL_DISK = """
import ctypes, os, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from fusion.training.cache_of_a_run import fill_for_a_run
from fusion.map_cache import MapCache
from fusion.training.models import load_model
from vision_core.errors import UserError

libc, place = ctypes.CDLL(None, use_errno=True), sys.argv[2].encode()
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000
if libc.unshare(NEW_MOUNTS if os.getuid() == 0 else NEW_MOUNTS | NEW_USER):
    print("no disk of its own")
    raise SystemExit
libc.mount(None, b"/", None, 1 << 18 | 1 << 14, None)  # nothing of it is seen outside
if libc.mount(b"none", place, b"tmpfs", 0, b"size=4m"):
    print("no disk of its own")
    raise SystemExit

model, processor = load_model(sys.argv[1])
vision_model = model.vision_model.eval()
vision_model.shown = 0

def count(module, inputs):
    vision_model.shown += len(inputs[0])

vision_model.encoders[0].register_forward_pre_hook(count)
disk = Path(sys.argv[2])
cache = MapCache(disk / "cache", vision_model, processor.image_processor, torch.float32)
images = [torch.full((3, 40, 40), number, dtype=torch.uint8) for number in range(40)]
rows = [[SimpleNamespace(images=[image]) for image in images]]
fill = lambda rows: fill_for_a_run(cache, rows, vision_model, processor.image_processor)

def refused(rows):
    try:
        fill(rows)
    except UserError as error:
        return str(error)

ballast = disk / "ballast"
ballast.write_bytes(bytes(2_500_000))
print("before:", refused(rows), vision_model.shown)
ballast.unlink()

class Growing:
    "A row in whose reading, the second time, the disk is filled by somebody else."
    times = 0

    @property
    def images(self):
        self.times += 1
        if self.times == 2:
            with open(ballast, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
        return [images[36]]

rows[0][36] = Growing()
print("during:", refused(rows))
made = [path for path in cache.folder.rglob("*") if path.is_file()]
print("left:", len(made), all(cache.look_at(path) == "whole" for path in made))
ballast.unlink()
vision_model.shown = 0
fill(rows)
print("after:", vision_model.shown, all(image in cache for image in images))
"""


def test_a_full_disk_is_told_before_and_during_and_the_next_start_goes_on(runs, model_folder, tmp_path):
    script = tmp_path / "full_disk.py"
    script.write_text(FULL_DISK)
    (tmp_path / "disk").mkdir()
    printed = runs.finish(runs.start(script, model_folder, tmp_path / "disk"))
    if "no disk of its own" in printed:
        pytest.skip("no permission to mount a file system of 4 MB")
    said = {
        name: re.search(f"{name}: .*", printed)[0].strip() for name in ("before", "during", "left", "after")
    }
    no_room = "has no room for the features of 41 images: they need 2.2 MB, and 1.7 MB are free; make room"
    assert no_room in said["before"], printed
    assert said["before"].endswith("--feature_cache 0")  # no image was shown to an encoder
    full = "was not written: No space left on device; it needs 0.1 MB, and 0.0 MB are free; make room"
    assert full in said["during"], printed
    assert said["left"] == "left: 32 True" and said["after"] == "after: 9 True", printed


# argv: folder of the model, of the cache, whether the processes are ranks of one run
FILL = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
import torch
import torch.distributed as dist
from fusion.training.cache_of_a_run import fill_for_a_run
from fusion.map_cache import MapCache
from fusion.training.models import load_model
if "RANK" in os.environ:
    dist.init_process_group("gloo")
model, processor = load_model(sys.argv[1])
vision_model = model.vision_model.eval()
shown = []
vision_model.encoders[0].register_forward_pre_hook(lambda module, inputs: shown.append(len(inputs[0])))
generator = torch.Generator().manual_seed(0)
sizes = [(3, 40, 40 + number % 3) for number in range(48)]
images = [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for size in sizes]
rows = [[SimpleNamespace(images=[image, images[0], images[47]]) for image in images]]
cache = MapCache(Path(sys.argv[2]), vision_model, processor.image_processor, torch.float32)
fill_for_a_run(cache, rows, vision_model, processor.image_processor)
for image in images:
    cache.load(image)
print("shown", sum(shown))
"""


def filled_by(runs, jobs):
    runs.finish(*jobs)
    return [int(re.search(r"shown (\d+)", job.printed)[1]) for job in jobs]


def assert_same_features(root, whole):
    """What one process makes, and nothing else, but for rounding, which other batches and places in
    memory change."""
    files, expected = (
        {path.name: path for path in folder.rglob("*.safetensors")} for folder in (root, whole)
    )
    assert files.keys() == expected.keys() and len(files) == len(
        [path for path in root.rglob("*") if path.is_file()]
    )
    for name, path in files.items():
        for number, tensor in load_file(path).items():
            torch.testing.assert_close(tensor, load_file(expected[name])[number], rtol=1e-4, atol=1e-5)


def test_two_ranks_and_two_runs_fill_one_cache_together(runs, model_folder, whole, tmp_path):
    script = tmp_path / "fill.py"
    script.write_text(FILL)
    ranks = runs.start_two(script, model_folder, tmp_path / "ranks")
    shown = filled_by(runs, ranks)
    assert sum(shown) == 49 and min(shown) > 0  # each image by one of them, also those that both have met
    assert_same_features(tmp_path / "ranks", whole)
    both = filled_by(runs, [runs.start(script, model_folder, tmp_path / "runs") for _ in range(2)])
    assert all(0 <= each <= 49 for each in both) and sum(both) >= 49
    assert_same_features(tmp_path / "runs", whole)
    assert filled_by(runs, [runs.start(script, model_folder, tmp_path / "runs")]) == [0]


def test_a_killed_fill_goes_on_from_what_is_there(runs, model_folder, whole, tmp_path):
    script = tmp_path / "fill.py"
    script.write_text(
        FILL.replace("lambda module, inputs:", "lambda module, inputs: __import__('time').sleep(0.2) or")
    )
    root = tmp_path / "cache"
    job = runs.start(script, model_folder, root)
    job.wait_until(lambda: len(list(root.rglob("*.safetensors"))) >= 10)
    runs.kill(job)
    there = len(list(root.rglob("*.safetensors")))
    assert 10 <= there < 49
    assert filled_by(runs, [runs.start(script, model_folder, root)]) == [49 - there]
    assert_same_features(root, whole)
