"""What folders are, from little files; those of real runs are in
tests/recipes/test_folders_of_programs.py. And what a refusal advises."""

import json
import os
import stat
from pathlib import Path

import pytest

from vision_core.errors import UserError
from vision_core.runs.checkpoints import make_readable, write_checkpoint
from vision_core.runs.folder_checks import check_folder
from vision_core.runs.folder_kinds import folder_kind, refuse_folder
from vision_core.runs.run_folder import RunFolder

CONFIG = "max_steps: 10\n"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(folder: Path) -> None:
    write_checkpoint(folder, 3, lambda aside: (aside / "weights").write_text("1"), None)


def run_with_checkpoint() -> None:
    RunFolder.open("run", "run", CONFIG).close()
    save(Path("run"))


def folder(**files: str) -> Path:
    made = Path("some")
    for name, text in files.items():
        path = made / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return made


CONFIGS = {
    "cambrian": (
        {"model_type": "cambrian_llama", "vocab_size": 9},
        "fusion.convert_cambrian --checkpoint some",
    ),
    "timm": ({"architecture": "vit_small_patch14_dinov2"}, "--encoder some"),
    "other_vlm": (
        {
            "model_type": "llava",
            "vision_config": {},
            "text_config": {},
            "architectures": ["LlavaForConditionalGeneration"],
        },
        "one by one",
    ),
    "language_model": ({"model_type": "llama", "vocab_size": 9}, "--language_model some"),
    "encoder": ({"model_type": "dinov2", "patch_size": 8}, "--encoder some"),
    "model": ({"model_type": "unheard_of"}, "a model that this program reads"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_kinds_by_their_config(kind):
    config, cure = CONFIGS[kind]
    found = folder_kind(folder(config_DOT_json=json.dumps(config)))
    assert found.name == kind and cure in found.cure


@pytest.mark.parametrize(
    ("files", "kind", "said"),
    [
        ({"model_DOT_safetensors": ""}, "weights", "config.json beside"),
        ({"config_DOT_json": "{"}, "model", "None"),
        ({"config_DOT_yaml": "a: 1"}, "unfinished", "has saved nothing"),
        (
            {"config_DOT_yaml": "a: 1", "checkpoint-3__MANIFEST_DOT_json": "{}"},
            "unfinished",
            "has not published its model",
        ),
        ({"results_DOT_json": "{}", "config_DOT_yaml": "encoders: [a, b]"}, "report", "a, b"),
        ({"notes_DOT_txt": ""}, "unknown", "without config.json"),
        ({"rows_DOT_jsonl": ""}, "data", "docs/data.md"),
        ({"a__config_DOT_json": "{}", "b__encoder_DOT_json": "{}"}, "parent", "some/a, some/b"),
        ({"deep__er__a_DOT_JPG": ""}, "images", "folder:some"),
        ({"deep__a_DOT_nii_DOT_gz": ""}, "images", "folder:some"),
        ({"a_DOT_FITS": ""}, "images", "folder:some"),
        ({"_DOT_lock": ""}, "empty", "an empty folder"),
    ],
)
def test_kinds_by_their_files(files, kind, said):
    found = folder_kind(folder(**files))
    assert found.name == kind and said in f"{found.is_a}; {found.cure}"
    with pytest.raises(UserError, match=r"^some (holds no model: it )?is .*; ") as refused:
        refuse_folder("some", "an encoder", ())
    assert "\n" not in str(refused.value)


def test_the_state_of_a_run_names_its_run():
    run_with_checkpoint()
    found = folder_kind(Path("run/checkpoint-3"))
    assert (
        found.name == "checkpoint"
        and "name run," in found.cure
        and "--output_dir run --resume_from_checkpoint true" in found.cure
    )


def test_permissions_are_given_and_never_taken():
    made = folder(a_DOT_bin="", deep__b_DOT_bin="", run_DOT_sh="")
    (made / "a.bin").chmod(0o600)
    (made / "deep").chmod(0o700)
    (made / "run.sh").chmod(0o755)
    (made / "link").symlink_to("nowhere")
    before = os.umask(0o022)
    try:
        make_readable(made)
    finally:
        os.umask(before)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in made.rglob("*") if not path.is_symlink()
    }
    assert modes == {"a.bin": 0o644, "deep": 0o755, "b.bin": 0o644, "run.sh": 0o755}


def test_advice_is_what_the_program_takes():
    run_with_checkpoint()
    for call in (
        lambda: check_folder("run", "fused", can_resume=False),
        lambda: RunFolder.open("run", "fused", "", can_resume=False),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert "--resume_from_checkpoint" not in str(refused.value) and "outputs/fused-<n>" in str(
            refused.value
        )


def test_a_run_of_another_program_is_not_taken_up():
    mine, other = "pretrain/mae.py", "pretrain/siglip.py"
    RunFolder.open("run", "mae", CONFIG, program=mine).close()
    save(Path("run"))
    before = (Path("run") / "config.yaml").read_text()
    for call in (
        lambda: check_folder("run", "siglip", True, other),
        lambda: RunFolder.open("run", "siglip", CONFIG, True, program=other),
    ):
        with pytest.raises(UserError, match="run is a run of pretrain/mae.py, not of pretrain/siglip.py"):
            call()
    assert (Path("run") / "config.yaml").read_text() == before and before == f"# options of {mine}\n{CONFIG}"
    assert RunFolder.open("run", "mae", CONFIG, True, program=mine).changes == {}
