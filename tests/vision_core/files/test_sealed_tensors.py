"""Files of tensors that know whether they are what was written."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vision_core.files.sealed_tensors import (
    DamagedTensors,
    NotSealed,
    read_sealed,
    sealed_bytes,
    write_sealed,
)

TENSORS = {
    "maps": torch.randn(3, 4, 2, 2),
    "half": torch.randn(3, 5).bfloat16(),
    "indices": torch.arange(3),
    "one": torch.tensor(1.5),
    "none": torch.empty(0, 4),
}


def written(folder: Path, tensors=TENSORS) -> Path:
    path = folder / "a" / "features.safetensors"
    write_sealed(path, tensors, {"key": "of äll"}, folder)
    return path


def assert_equal(read, expected):
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


def test_what_is_read_is_what_was_written(tmp_path):
    path = written(tmp_path)
    sealed = read_sealed(path)
    assert sealed.metadata == {"key": "of äll"}
    assert_equal(sealed.tensors, TENSORS)
    with safe_open(path, "pt") as file:  # safetensors itself reads it as any of its files
        assert_equal({name: file.get_tensor(name) for name in file.keys()}, TENSORS)  # noqa: SIM118
        assert file.metadata()["key"] == "of äll"
    content = path.read_bytes()
    for name, offset in sealed.offsets.items():
        as_bytes = TENSORS[name].flatten().view(torch.uint8).numpy().tobytes()
        assert content[offset : offset + len(as_bytes)] == as_bytes
    assert (
        len(content)
        <= sealed_bytes(sum(tensor.nbytes for tensor in TENSORS.values()))
        <= len(content) + 4096 + 1024
    )
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == [path.name]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_no_bit_and_no_length_goes_unnoticed(tmp_path):
    """Every bit of a file, flipped alone, and every length that it may be cut to."""
    path = written(tmp_path, {"0": torch.randn(2, 3), "1": torch.randn(4).bfloat16()})
    content = path.read_bytes()
    damaged = [content[:length] for length in range(len(content))]
    for place in range(len(content)):
        for bit in range(8):
            damaged.append(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
    for each in damaged:
        path.write_bytes(each)
        with pytest.raises((DamagedTensors, NotSealed)):
            read_sealed(path)
    assert len(damaged) > 2000
    path.write_bytes(content + b"\0")  # one byte too many
    with pytest.raises(DamagedTensors):
        read_sealed(path)


@pytest.mark.timeout(20)
def test_what_is_no_such_file_is_told_and_waited_for_by_nobody(tmp_path):
    save_file({"0": torch.zeros(3)}, tmp_path / "old.safetensors")
    with pytest.raises(NotSealed):
        read_sealed(tmp_path / "old.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedTensors, match="no regular file"):
        read_sealed(tmp_path / "pipe")
    (tmp_path / "deep").write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    with pytest.raises(DamagedTensors, match="no header"):
        read_sealed(tmp_path / "deep")
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "absent")
    with pytest.raises(OSError):
        read_sealed(tmp_path)
