"""A mistake is one line and leaves no folder, so that the same command, mended, starts with the
same --output_dir."""

import json

import pytest
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from fusion.training.small_default import write_small_default

TEXTS = ["question word answer yes 0 1 2 3 4 5 6 7 8 9"] * 9


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """model, encoder: folders of a fused model and of one encoder. rows: conversations. no_weights:
    a model without them."""
    folder = tmp_path_factory.mktemp("there")
    write_small_default(folder / "model", TEXTS, seed=0)
    write_small_default(folder / "no_weights", TEXTS, seed=0)
    for file in (folder / "no_weights").glob("*.safetensors"):
        file.unlink()
    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "patch_size": 8,
        "image_size": 32,
    }
    Dinov2Model(Dinov2Config(**shape)).save_pretrained(folder / "encoder")
    row = {"conversations": [{"from": "human", "value": "question 1"}, {"from": "gpt", "value": "yes"}]}
    (folder / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 8))
    Image.new("RGB", (32, 32)).save(folder / "1.png")
    (folder / "unseen.jsonl").write_text("\n".join([json.dumps(row | {"image": "absent.png"})] * 8))
    return folder


def training(there, **others):
    chosen = {
        "init_from": there / "model",
        "conversations": f"llava:{there}/rows.jsonl",
        "eval_conversations": "[]",
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        **others,
    }
    return [text for name, value in chosen.items() for text in (f"--{name}", str(value))]


CASES = {
    "a folder without a model": ("recipes/sva_sft.py", {"init_from": "{there}"}, "holds no model"),
    "a model of another kind": (
        "recipes/sva_sft.py",
        {"init_from": "{there}/encoder"},
        "type 'dinov2', not a fused",
    ),
    "a model without weights": ("recipes/sva_align.py", {"init_from": "{there}/no_weights"}, "no weights"),
    "rows that are not there": (
        "recipes/sva_align.py",
        {"conversations": "llava:{there}/absent.jsonl"},
        "absent.jsonl",
    ),
    "images that are not there": (
        "recipes/sva_sft.py",
        {"conversations": "llava:{there}/unseen.jsonl?images={there}"},
        "absent.png",
    ),
    "held-out rows that are not there": (
        "recipes/sva_sft.py",
        {"eval_conversations": "llava:{there}/absent.jsonl"},
        "absent.jsonl",
    ),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "_"))
def test_a_mistake_in_training_leaves_no_folder(case, runs, there, tmp_path):
    script, wrong, said = CASES[case]
    wrong = {name: value.format(there=there) for name, value in wrong.items()}
    folder = tmp_path / "new" / "run"
    assert said in runs.error(script, *training(there, **wrong), "--output_dir", folder, "--dry_run", "true")
    assert said in runs.error(script, *training(there, **wrong), "--output_dir", folder)
    assert not folder.parent.exists()


@pytest.mark.timeout(120)
def test_two_processes_leave_no_folder(runs, there, tmp_path):
    """Images that are missing are found behind the opening of the folder, by both."""
    arguments = training(
        there, conversations=f"llava:{there}/unseen.jsonl?images={there}", output_dir=tmp_path / "run"
    )
    printed = runs.finish(*runs.start_two("recipes/sva_sft.py", *arguments), expect=2, seconds=100)
    assert "absent.png" in printed and not (tmp_path / "run").exists()


@pytest.mark.timeout(120)
def test_a_dry_run_then_the_run(runs, there, tmp_path):
    arguments = training(there, output_dir=tmp_path / "run")
    shown = runs.finish(runs.start("recipes/sva_sft.py", *arguments, "--dry_run", "true"))
    assert (
        "training rows    8\n" in shown
        and "steps            1\n" in shown
        and "input_ids         [2, " in shown
    )
    assert (
        "vision_model.encoders" in shown
        and "frozen" in shown
        and "at 0.001" in shown
        and "--max_length is 2,048" in shown
    )
    assert not (tmp_path / "run").exists()
    said = runs.finish(runs.start("recipes/sva_sft.py", *arguments))
    places = [said.index(words) for words in (f"run folder       {tmp_path / 'run'}", *HEADER)]
    assert places == sorted(places) and places[-1] < said.index("training   0%")
    assert "vision_model.connector" in said and "at 0.001" in said
    assert "is not empty" in runs.error("recipes/sva_sft.py", *arguments, "--dry_run", "true")


HEADER = (
    "model            ",
    "conversations    ",
    "training rows    8",
    "a step           2 x 1",
    "steps            1",
    "what trains:",
)
JUDGING = ["--max_train_samples", "16", "--max_test_samples", "8", "--linear_iterations", "2"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("script", "wrong", "right"),
    [
        (
            "fusion/fuse.py",
            ["--encoders", "absent", "tiny:siglip"],
            ["--encoders", "tiny:dinov2", "tiny:siglip"],
        ),
        (
            "recipes/check_conversations.py",
            ["--conversations", "llava:absent"],
            ["--conversations", "llava:{there}/rows.jsonl"],
        ),
        (
            "recipes/evaluate_vlm.py",
            ["--model", "{there}/encoder"],
            ["--model", "{there}/model", "--tasks", "scenes?count=4", "--max_samples", "2"],
        ),
        ("recipes/evaluate_vlm.py", ["--model", "{there}/model", "--tasks", "pope:absent"], None),
        (
            "recipes/evaluate_encoder.py",
            [*JUDGING, "--encoder", "absent"],
            [*JUDGING, "--dataset", "scenes?count=40", "--tasks", "knn"],
        ),
        ("recipes/evaluate_encoder.py", [*JUDGING, "--dataset", "folder:absent"], None),
        (
            "recipes/compare_encoders.py",
            [*JUDGING, "--datasets", "scenes?count=40", "--tasks", "knn", "--encoders", "absent"],
            None,
        ),
        (
            "recipes/compare_encoders.py",
            [*JUDGING, "--datasets", "scenes?count=40", "--encoders", "raw_pixels", "timm:absent"],
            None,
        ),
        (
            "recipes/compare_encoders.py",
            [*JUDGING, "--datasets", "scenes?count=40", "--encoders", "raw_pixels", "{there}"],
            None,
        ),
        (
            "recipes/small_language_model.py",
            ["--conversations", "llava:absent"],
            ["--conversations", "llava:{there}/rows.jsonl"],
        ),
    ],
)
def test_other_programs_are_corrected_in_the_same_folder(script, wrong, right, runs, there, tmp_path):
    folder = tmp_path / "run"

    def start(options):
        options = [text.format(there=there) for text in options]
        return runs.start(
            script, *options, "--output_dir", folder, environment={"XDG_CACHE_HOME": str(tmp_path)}
        )

    printed = runs.finish(start(wrong), expect=2)
    assert "error: " in printed and "Traceback" not in printed and not folder.exists()
    assert "raw_pixels on" not in printed, "all encoders are looked at before the first is judged"
    if right is not None:
        runs.finish(start(right))
        assert (folder / "config.yaml").is_file()
