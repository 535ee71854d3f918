"""A run on a stream that was stopped sees the images that it would have seen: with data workers,
processes and what they read ahead."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.batches.crops import StepMasks, make_loader
from pretrain.batches.multicrop import MultiCrop
from pretrain.batches.order import BatchLayout
from pretrain.batches.stream_places import ReaderPlace, StreamPlaces
from vision_core.images.open_source import open_source

datasets = pytest.importorskip("datasets")

OPTIONS = """
eval_dataset: none
global_crop_size: [32]
local_crop_size: [16]
num_local_crops: 2
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 2
num_prototypes: 32
head_hidden_dim: 32
head_bottleneck_dim: 16
centering: softmax
bf16: false
per_device_train_batch_size: 4
dataloader_num_workers: 2
max_steps: 16
warmup_steps: 2
logging_steps: 1
health_steps: 100
save_steps: 5
num_cpu_threads: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set of 27 images, one of them broken, in three files."""
    folder = tmp_path_factory.mktemp("stream") / "data"
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    for file in range(3):
        images = [{"bytes": encoded(9 * file + row), "path": None} for row in range(9)]
        datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(
            folder / f"train-{file:05}-of-00003.parquet"
        )
    return folder


def encoded(number: int) -> bytes:
    if number == 11:
        return b"broken"
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
        stream, "PNG"
    )
    return stream.getvalue()


def begin(folder: Path, layout: BatchLayout, workers: int, states: list | None = None):
    """A run's batches, as `dinov2.py` asks for them, and its places."""
    source = open_source(f"hf:{folder}?streaming=true&shuffle_buffer=5")
    places = StreamPlaces(source.description, layout, workers, 0)
    if states:
        assert places.load_state_dict(states) == []
    crops = MultiCrop((16, 16), (8, 8), 1)
    masks = StepMasks((4, 4), layout.global_batch, 0)
    batches = iter(make_loader(source, crops, masks, layout, 0, 0, 100, workers, places=places))
    for _ in range(places.ahead):
        places.look_at(next(batches))
    return batches, places


def take(batches, places: StreamPlaces, count: int) -> list[dict]:
    taken = []
    for _ in range(count):
        taken.append(next(batches))
        places.look_at(taken[-1])
    return taken


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (2, 1), (2, 2)])
def test_a_stopped_reader_goes_on_as_if_it_had_not(folder, monkeypatch, workers: int, processes: int) -> None:
    """Stopped twice, within and behind rounds of the readers and passes over the data; everything
    in the batches is equal."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    layouts = [BatchLayout(2, 2, processes, rank) for rank in range(processes)]
    whole = [take(*begin(folder, layout, workers), 26) for layout in layouts]
    states = None
    for start, stop in ((0, 3), (3, 16), (16, 26)):
        runs = [begin(folder, layout, workers, states) for layout in layouts]
        for rank, (batches, places) in enumerate(runs):
            for ours, theirs in zip(
                take(batches, places, stop - start), whole[rank][start:stop], strict=True
            ):
                assert ours["ids"] == theirs["ids"] and ours["bad"] == theirs["bad"]
                assert all(
                    torch.equal(ours[key], theirs[key]) for key in ("global_crops", "local_crops", "masks")
                )
        states = json.loads(json.dumps([places.state_dict() for _, places in runs]))
    assert len({name for batches in whole for batch in batches for name in batch["ids"]}) == 52 * processes, (
        "an image came twice"
    )


def test_other_readers_begin_a_new_pass_and_say_so(folder) -> None:
    _, places = begin(folder, BatchLayout(2, 1, 1, 0), 0)
    places.look_at({"place": None})
    assert places.state_dict() is None
    assert [
        "holds no place in the stream, which begins a new pass" in line
        for line in places.load_state_dict(None)
    ] == [True]
    take(*(run := begin(folder, BatchLayout(2, 1, 1, 0), 0)), 2)
    later = StreamPlaces("stream of hf:other", BatchLayout(4, 1, 1, 0), 2, 7)
    (line,) = later.load_state_dict([run[1].state_dict()])
    for said in (
        "dataset was stream of hf:",
        "dataloader_num_workers was 1 and is 2",
        "per_device_train_batch_size was 2 and is 4",
    ):
        assert said in line
    assert line.endswith("the stream begins a new pass; with what was before it goes on where it stopped")
    assert later.began == 7 and later.readers == {} and later.ahead == 0


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("images_per_second", "data_wait")}
        for line in found
    ]


@pytest.mark.slow
def test_a_killed_run_on_a_stream_is_in_the_end_as_one_that_was_not(runs, folder, tmp_path) -> None:
    """kill -9 at step 12, two data workers; all losses and the weights are equal. 64 images: two
    passes and a half."""
    (tmp_path / "config.yaml").write_text(
        f"dataset: hf:{folder}?streaming=true&shuffle_buffer=5\nmax_bad_fraction: 1.0\n{OPTIONS}"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}

    def start(name: str, *options):
        arguments = ("--config", tmp_path / "config.yaml", "--output_dir", tmp_path / name, *options)
        return runs.start("pretrain/dinov2.py", *arguments, environment=environment)

    killed = start("killed")
    killed.wait_for_step(12)
    killed.kill()
    runs.finish(start("killed", "--resume_from_checkpoint", "true"))
    runs.finish(start("whole"))
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    model = "model.safetensors"
    assert (tmp_path / "killed" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


def test_batches_of_a_step_that_is_broken_off_are_forgotten():
    places = StreamPlaces("stream of hf:other", BatchLayout(2, 3, 1, 0), 2, 0)
    seen = [{"place": ReaderPlace(number % 2, 2 + number, 0, None)} for number in range(9)]
    for batch in seen[:5]:
        places.look_at(batch)
    before, mark = json.dumps(places.state_dict()), places.mark()
    for batch in seen[5:]:
        places.look_at(batch)
    assert json.dumps(places.state_dict()) != before
    places.go_back(mark)
    assert json.dumps(places.state_dict()) == before


@pytest.mark.parametrize(
    "dataset",
    [
        "wds:{shards}/*.tar",
        pytest.param("hf:{folder}?streaming=true&shuffle_buffer=5", marks=pytest.mark.slow),
    ],
)
def test_two_processes_break_a_step_off_together_and_the_resume_is_exact(
    runs, folder, tmp_path, dataset
) -> None:
    """The second alone is told to stop, with the second of three micro-batches of step 4, where a
    save would not fit into the grace time."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as file:
            for number in range(9 * shard, 9 * shard + 9):
                member = tarfile.TarInfo(f"{number:05}.png")
                member.size = len(encoded(number))
                file.addfile(member, io.BytesIO(encoded(number)))
    dataset = dataset.format(shards=tmp_path, folder=folder)
    (tmp_path / "config.yaml").write_text(f"dataset: {dataset}\nmax_bad_fraction: 1.0\n{OPTIONS}")
    several = (
        "--gradient_accumulation_steps",
        3,
        "--per_device_train_batch_size",
        2,
        "--dataloader_num_workers",
        1,
        "--max_steps",
        6,
    )
    worker = Path(__file__).with_name("broken_off_worker.py")

    def finish(name: str, number: int, *options, expect: int = 0) -> str:
        arguments = (
            3,
            number,
            "--config",
            tmp_path / "config.yaml",
            "--output_dir",
            tmp_path / name,
            *several,
            *options,
        )
        return runs.finish(*runs.start_two(worker, *arguments), expect=expect)

    finish("whole", -1)
    assert "told to stop: step 3 of 6 is saved" in finish("hurt", 1, "--grace_seconds", 0.0001, expect=143)
    finish("hurt", -1, "--resume_from_checkpoint", "true")
    assert lines(tmp_path / "hurt") == lines(tmp_path / "whole")
    ours, theirs = (tmp_path / name / "checkpoint-6" for name in ("hurt", "whole"))
    for name in ("student", "optimizer", "heads", "model"):
        assert (ours / f"{name}.safetensors").read_bytes() == (theirs / f"{name}.safetensors").read_bytes(), (
            name
        )
    states = [json.loads((each / "training_state.json").read_text()) for each in (ours, theirs)]
    assert states[0]["bad_images"] == states[1]["bad_images"] and states[0]["bad_images"]["bad"] > 0
