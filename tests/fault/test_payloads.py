"""Files that would run a program if anybody unpickled them or trusted their code, at every place
where a user's file is read."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision_core.runs.checkpoints import list_checkpoints, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


class Payload:
    """Unpickling it makes the file `marker`."""

    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def marker(tmp_path):
    """The file that a payload would make; it must not be there at the end."""
    path = tmp_path / "EXECUTED"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists(), "the payload must be one"
    path.unlink()
    yield path
    assert not path.exists(), "a payload was executed"


def pickles(marker) -> dict[str, bytes]:
    """The payload as a plain pickle, as torch's zip file, and as torch's old format."""
    forms = {"pickle": pickle.dumps(Payload(marker))}
    for name, new in (("zip", True), ("legacy", False)):
        stream = io.BytesIO()
        torch.save({"weight": Payload(marker)}, stream, _use_new_zipfile_serialization=new)
        forms[name] = stream.getvalue()
    return forms


def safetensors_bytes(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


LYING_HEADERS = {
    "longer than allowed": safetensors_bytes({}, length=10**8 + 1),
    "longer than the file": safetensors_bytes({}, length=2**40),
    "past the end": safetensors_bytes({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "overlapping": safetensors_bytes(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"\0" * 4
    ),
    "a shape of 4 TB": safetensors_bytes(
        {"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 4]}}, b"\0" * 4
    ),
}


@pytest.mark.parametrize(
    "name", ["model.safetensors", "heads.safetensors", "student.safetensors", "optimizer.safetensors"]
)
def test_a_checkpoint_with_a_payload_and_a_true_manifest_is_refused(start, whole, marker, tmp_path, name):
    """Somebody else's checkpoint: the hashes are right, the content is not."""
    for form, data in (pickles(marker) | LYING_HEADERS).items():
        folder = tmp_path / form.replace(" ", "_")
        (source,) = [path for path in list_checkpoints(whole) if path.name == "checkpoint-60"]

        def write(target, data=data, source=source):
            for path in source.iterdir():
                if path.name != "MANIFEST.json":
                    (target / path.name).write_bytes(data if path.name == name else path.read_bytes())

        folder.mkdir()
        write_checkpoint(folder, 60, write, 1)
        run = start(folder, "--resume_from_checkpoint", "true")
        assert run.wait(30) == 2, f"{form}: {run.printed}"
        assert run.printed.splitlines()[-1].startswith("error: ") and "Traceback" not in run.printed, (
            run.printed
        )


def test_other_pickles_in_a_checkpoint_are_never_read(start, whole, marker, tmp_path):
    folder = tmp_path / "run"
    (source,) = [path for path in list_checkpoints(whole) if path.name == "checkpoint-60"]
    names = (
        "optimizer.bin",
        "random_states_0.pkl",
        "custom_checkpoint_0.pkl",
        "rng_state.pth",
        "training_args.bin",
        "pytorch_model.bin",
    )

    def write(target):
        for path in source.iterdir():
            if path.name != "MANIFEST.json":
                (target / path.name).write_bytes(path.read_bytes())
        for name in names:
            (target / name).write_bytes(pickles(marker)["pickle" if name.endswith("pkl") else "zip"])

    folder.mkdir()
    write_checkpoint(folder, 60, write, 1)
    run = start(folder, "--resume_from_checkpoint", "true")
    assert run.wait() == 0, run.printed


def test_initial_weights_that_are_a_payload_are_refused(start, whole, marker, tmp_path):
    for form, data in pickles(marker).items():
        folder = tmp_path / form
        folder.mkdir()
        (folder / "config.json").write_bytes((whole / "config.json").read_bytes())
        (folder / "pytorch_model.bin").write_bytes(data)
        run = start(tmp_path / f"{form}_run", "--init_from", folder)
        assert run.wait(30) == 2, run.printed
        assert "error: " in run.printed.splitlines()[-1] and str(folder) in run.printed


def test_payloads_among_the_images_are_named(start, marker, tmp_path):
    """Object arrays, pickles under image names, members of a tar file with paths and links."""
    images, tars = tmp_path / "images", tmp_path / "tars"
    images.mkdir(), tars.mkdir()
    for index in range(40):
        np.save(images / f"{index:02d}.npy", np.zeros((4, 40, 40), np.float32))
    np.save(images / "payload.npy", np.array([Payload(marker)], dtype=object), allow_pickle=True)
    (images / "plain.npy").write_bytes(pickles(marker)["pickle"])
    options = (
        "--num_channels",
        4,
        "--image_mean",
        *[0] * 4,
        "--image_std",
        *[1] * 4,
        "--max_steps",
        10,
        "--max_bad_fraction",
        0.5,
    )
    run = start(tmp_path / "folder_run", "--dataset", images, *options)
    assert run.wait() == 0, run.printed
    assert {"payload.npy", "plain.npy"} == {line["id"] for line in bad_samples(tmp_path / "folder_run")}

    with tarfile.open(tars / "shard-0.tar", "w") as archive:
        for index in range(40):
            add(archive, f"{index:02d}.png", png(index))
        add(archive, "../../escaped.png", png(0))
        (add(archive, "90.pkl", pickles(marker)["pickle"]), add(archive, "91.pth", pickles(marker)["zip"]))
        add(archive, "92.png", pickles(marker)["pickle"])
        link = tarfile.TarInfo("93.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    run = start(
        tmp_path / "tar_run",
        "--dataset",
        f"wds:{tars}/shard-*.tar",
        "--max_steps",
        10,
        "--max_bad_fraction",
        0.5,
    )
    assert run.wait() == 0, run.printed
    assert {"92", "93"} <= {
        line["id"].split(":")[-1].split("/")[-1] for line in bad_samples(tmp_path / "tar_run")
    }
    assert not list(tmp_path.rglob("escaped.png"))


def test_code_beside_an_encoder_is_not_run(whole, marker, tmp_path):
    """recipes/evaluate_encoder.py on a folder whose config names a Python file, with "y" on its
    standard input."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("model.safetensors", "preprocessor_config.json"):
        (folder / name).write_bytes((whole / name).read_bytes())
    config = json.loads((whole / "config.json").read_text())
    config |= {
        "model_type": "unheard_of",
        "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    command = [sys.executable, str(ROOT / "recipes" / "evaluate_encoder.py"), "--encoder", str(folder)]
    options = [
        "--dataset",
        "scenes?size=32&count=50",
        "--test_dataset",
        "scenes?size=32&count=50&split=held_out",
    ]
    result = subprocess.run(
        [*command, *options], input="y\n" * 9, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith("error: "), result.stderr
    assert str(folder) in result.stderr


def bad_samples(folder):
    return [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        stream, "PNG"
    )
    return stream.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
