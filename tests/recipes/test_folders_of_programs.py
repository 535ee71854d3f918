"""Any program on any other program's folder says what the folder is and what to do with it; every
file that a program leaves can be read by others."""

import itertools
import os
import stat

import pytest

from encoders import load_encoder, save_encoder
from encoders.image_text import load_image_text
from fusion.assemble import load_language_model
from fusion.convert_cambrian import read_released_config
from fusion.training.models import check_model_folder
from pretrain.backbone import build_backbone
from pretrain.initial_weights import load_backbone_weights
from pretrain.run.complete_model import load_complete_model
from vision_core.errors import UserError
from vision_core.runs.folder_kinds import folder_kind

# folder -> the name of its kind, and words that say what it is
KINDS = {
    "dinov2": ("encoder", "a vision encoder of type 'dinov2'"),
    "dinov2/checkpoint-2": ("encoder", "(a checkpoint of the run"),
    "siglip": ("encoder", "a vision encoder of type 'siglip'"),
    "mae": ("encoder", "a vision encoder of type 'vit_mae'"),
    "saved": ("saved_encoder", "an encoder that save_encoder wrote"),
    "fused": ("fused_vision", "a fused vision encoder"),
    "vlm": ("fusion_vlm", "a fused vision-language model"),
    "sft": ("fusion_vlm", "a fused vision-language model"),
    "sft/checkpoint-2": ("fusion_vlm", "(a checkpoint of the run"),
    "lora": ("fusion_vlm", "a fused vision-language model"),
    "lora/adapter": ("adapter", "a LoRA adapter"),
    "lora/checkpoint-2": ("adapter", "a LoRA adapter"),
    "evaluation": ("report", "the report of an evaluation"),
    "comparison": ("report", "a comparison of encoders"),
    "vlm_evaluation": ("report", "the report of an evaluation"),
    "language_model": ("language_model", "a language model of type 'qwen3'"),
    "images": ("images", "a folder of images"),
    "tokenizer": ("tokenizer", "a tokenizer without a model"),
    "empty": ("empty", "an empty folder"),
    "absent": ("absent", "no folder at all"),
    ".": ("parent", "a folder of other folders"),
}
ENCODERS = {"encoder", "saved_encoder"}
FUSED = {"fusion_vlm"}
# what reads a folder -> the kinds that it reads, or about which it has a sentence of its own
LOADERS = {
    "evaluate_encoder.py, compare_encoders.py, fuse --encoders": (
        lambda folder: load_encoder(folder),
        ENCODERS,
    ),
    "sva_align.py, sva_sft.py, evaluate_vlm.py, check_conversations.py": (
        lambda folder: check_model_folder(str(folder)),
        FUSED,
    ),
    "fuse --language_model": (lambda folder: load_language_model(str(folder)), {"language_model"}),
    "dinov2.py --init_from": (lambda folder: load_backbone_weights(backbone(), str(folder)), ENCODERS),
    "siglip.py, mae.py --init_from": (
        lambda folder: load_complete_model(siglip_model(), str(folder)),
        {"encoder"},
    ),
    "convert_cambrian --checkpoint": (lambda folder: read_released_config(folder), {"language_model"}),
    "zero_shot": (lambda folder: load_image_text(folder), {"encoder"}),
}


def backbone():
    return build_backbone(24, 1, 3, patch_size=8, image_size=32)


def siglip_model():
    from transformers import SiglipModel

    return SiglipModel


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", KINDS)
def test_a_folder_has_a_kind(made, name):
    kind = folder_kind(made / name)
    assert kind.name == KINDS[name][0] and KINDS[name][1] in kind.is_a and kind.cure


@pytest.mark.parametrize(("loader", "name"), list(itertools.product(LOADERS, KINDS)))
def test_every_loader_says_what_a_folder_of_something_else_is(made, loader, name):
    load, understood = LOADERS[loader]
    if KINDS[name][0] in understood or (
        KINDS[name][0] == "absent" and "check" not in loader
    ):  # an absent one may be a name on the Hub
        return
    with pytest.raises(UserError) as refused:
        load(made / name)
    said = str(refused.value)
    assert KINDS[name][1] in said and folder_kind(made / name).cure in said and "\n" not in said


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("recipes/evaluate_vlm.py", ("--model", "dinov2"), "recipes/evaluate_encoder.py --encoder dinov2"),
        (
            "recipes/evaluate_encoder.py",
            ("--encoder", "sft", "--dataset", "scenes?count=40"),
            "recipes/evaluate_vlm.py --model sft",
        ),
        (
            "recipes/compare_encoders.py",
            ("--encoders", "evaluation", "--datasets", "scenes?count=40"),
            "name what it judged: dinov2",
        ),
        ("recipes/sva_sft.py", ("--init_from", "dinov2"), "python -m fusion.fuse --encoders dinov2"),
        ("recipes/sva_sft.py", ("--init_from", "lora/adapter"), "name lora, which holds the merged model"),
        (
            "pretrain/dinov2.py",
            ("--init_from", "fused", "--dataset", "scenes?size=64&count=64", "--eval_dataset", "none"),
            "a fused vision encoder",
        ),
        (
            "pretrain/mae.py",
            ("--init_from", "images", "--dataset", "scenes?count=64", "--eval_dataset", "none"),
            "--dataset folder:images",
        ),
        ("fusion/fuse.py", ("--encoders", "sft", "tiny:siglip"), "not an encoder"),
        (
            "fusion/fuse.py",
            ("--language_model", "dinov2", "--encoders", "tiny:siglip"),
            "not a language model",
        ),
        (
            "recipes/check_conversations.py",
            ("--model", "empty", "--conversations", "scenes?count=4"),
            "an empty folder",
        ),
    ],
)
def test_programs_say_it_in_one_line(runs, made, script, options, said):
    assert said in runs.error(script, *options, folder=made)


OTHERS = {
    "pretrain/dinov2.py": "sft",
    "pretrain/mae.py": "siglip",
    "pretrain/siglip.py": "dinov2",
    "recipes/sva_sft.py": "align",
}


@pytest.mark.parametrize("script", OTHERS)
def test_a_run_of_another_program_is_not_resumed_and_keeps_its_config(runs, made, programs, script):
    folder = OTHERS[script]
    before = {path.name: path.read_bytes() for path in (made / folder).glob("*.yaml")}
    said = runs.error(script, "--output_dir", folder, "--resume_from_checkpoint", "true", folder=made)
    assert f"{folder} is a run of {programs[folder][0]}, not of {script}" in said
    assert {path.name: path.read_bytes() for path in (made / folder).glob("*.yaml")} == before


@pytest.mark.parametrize(
    "name", ["fused", "evaluation", "comparison", "vlm_evaluation", "language_model", "mae"]
)
def test_a_full_folder_is_refused_with_advice_that_the_program_takes(runs, made, programs, name):
    """Before anything is built: the encoder and the data that are named are not there."""
    script, options = programs[name]
    said = runs.error(script, *options, "--output_dir", name, folder=made)
    assert f"output folder {name} is not empty, it is {folder_kind(made / name).is_a}" in said
    assert ("--resume_from_checkpoint" in said) == (name == "mae")  # the others have no such option


def test_saving_an_encoder_into_a_file_or_a_full_folder_is_refused(made, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", made / "mae"):
        with pytest.raises(UserError, match="not empty"):
            save_encoder(load_encoder("tiny:clip"), folder)


@pytest.mark.parametrize("umask", [None, 0o027], ids=["as it is", "027"])
def test_every_file_is_as_readable_as_the_umask_says(made, tmp_path, umask):
    """safetensors writes through files that their owner alone may read."""
    root, before = made, os.umask(0o077 if umask is None else umask)
    try:
        if umask is not None:
            root = tmp_path / "saved"
            save_encoder(load_encoder("tiny:clip"), root)
    finally:
        os.umask(before)
    umask = before if umask is None else umask
    for path in [path for path in root.rglob("*") if path.name != ".lock"]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, f"{path} has {mode:o}"
    assert len(list(root.rglob("*.safetensors"))) >= 1
