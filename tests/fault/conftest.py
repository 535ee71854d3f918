"""Real runs of `pretrain/dinov2.py` in processes of their own, for tests that hurt them from
outside; all of a run is killed after its test."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fusion.training.small_default import write_small_default

SCRIPT = "pretrain/dinov2.py"
SPEEDS = ("images_per_second", "data_wait")
CONFIG = """
dataset: scenes?size=32&count=200
eval_dataset: none
global_crop_size: [32]
local_crop_size: [16]
num_local_crops: 2
patch_size: 8
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 2
num_prototypes: 32
head_hidden_dim: 32
head_bottleneck_dim: 16
drop_path_rate: 0.3
centering: softmax
bf16: false
per_device_train_batch_size: 8
dataloader_num_workers: 2
max_steps: 60
warmup_steps: 2
logging_steps: 1
health_steps: 15
save_steps: 5
save_total_limit: 2
num_cpu_threads: 1
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.fault)


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "fault.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(autouse=True)
def _nothing_left(runs):
    yield
    runs.kill()


@pytest.fixture(scope="session")
def start(runs, config):
    """start(folder, *options) -> Run, forked."""
    return lambda folder, *options: runs.start(SCRIPT, "--config", config, "--output_dir", folder, *options)


@pytest.fixture(scope="session")
def start_two(runs, config):
    """start_two(folder, *options) -> two Runs, the ranks of one job, forked."""
    return lambda folder, *options: runs.start_two(
        SCRIPT, "--config", config, "--output_dir", folder, *options
    )


@pytest.fixture(scope="session")
def launch(runs, config):
    """launch(launcher's words, folder, *options) -> Run, started as a user does."""
    environment = {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}

    def launch(launcher: list[str], folder: Path, *options):
        return runs.launch(
            launcher, SCRIPT, "--config", config, "--output_dir", folder, *options, environment=environment
        )

    return launch


@pytest.fixture(scope="session")
def same(last_step):
    """same(a, b): every logged number and every byte of both runs' last checkpoints are equal."""

    def same(ours: Path, theirs: Path) -> None:
        assert metrics(ours) == metrics(theirs)
        newest = f"checkpoint-{last_step(theirs)}"
        for name in ("model", "heads", "student", "optimizer"):
            ours_file, theirs_file = (folder / newest / f"{name}.safetensors" for folder in (ours, theirs))
            assert ours_file.read_bytes() == theirs_file.read_bytes(), name
            assert all(tensor.isfinite().all() for tensor in load_file(ours_file).values()), name

    return same


@pytest.fixture(scope="session")
def whole(start, tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run = start(folder)
    assert run.wait() == 0, run.printed
    return folder


def metrics(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock. JSON holds every float exactly."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEEDS} for line in lines]


@pytest.fixture(scope="session", name="metrics")
def _metrics():
    return metrics


@pytest.fixture(scope="session")
def talk(runs, tmp_path_factory):
    """talk(folder, *options) -> Run of `recipes/sva_sft.py` on a small untrained model, forked;
    `talk.arguments(folder, *options)` are its options."""
    given = tmp_path_factory.mktemp("talk")
    rows = [
        {
            "conversations": [
                {"from": "human", "value": f"question {n}"},
                {"from": "gpt", "value": "yes " * [9, 5][n % 2]},
            ]
        }
        for n in range(16)
    ]
    (given / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_small_default(given / "model", ["question word answer yes 0 1 2 3 4 5 6 7 8 9"] * 9, seed=0)

    def arguments(folder: Path, *options) -> list:
        data = [
            "--init_from",
            given / "model",
            "--conversations",
            f"llava:{given / 'text.jsonl'}",
            "--eval_conversations",
            "[]",
        ]
        steps = [
            "--per_device_train_batch_size",
            4,
            "--learning_rate",
            1e-3,
            "--logging_steps",
            1,
            "--save_total_limit",
            1,
        ]
        return ["recipes/sva_sft.py", *data, *steps, "--output_dir", folder, *options]

    def start(folder: Path, *options):
        return runs.start(*arguments(folder, *options))

    start.arguments = arguments
    return start
