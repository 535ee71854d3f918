"""The right word for an unknown option, by the options that the programs have."""

import dataclasses

import pytest

from fusion.fuse_args import ConvertArguments as ConvertCambrianArguments
from fusion.fuse_args import FuseArguments
from pretrain.run.args import DINOv2Arguments
from pretrain.run.image_args import MaeArguments, SiglipArguments
from recipes.evaluate_vlm import EvaluateVlmArguments
from recipes.judging_args import CompareArguments, EvaluateArguments
from recipes.vlm_args import AlignArguments, SftArguments
from vision_core.spelling import MEANINGS, cure_for

PROGRAMS = {
    "dinov2": DINOv2Arguments,
    "siglip": SiglipArguments,
    "mae": MaeArguments,
    "align": AlignArguments,
    "sft": SftArguments,
    "evaluate": EvaluateArguments,
    "compare": CompareArguments,
    "fuse": FuseArguments,
    "evaluate_vlm": EvaluateVlmArguments,
}
OPTIONS = {name: [field.name for field in dataclasses.fields(program)] for name, program in PROGRAMS.items()}
TRAINERS = ("dinov2", "siglip", "mae", "align", "sft")
IMAGES = ("dinov2", "siglip", "mae")


@pytest.mark.parametrize(
    ("keys", "programs", "ours"),
    [
        ("lr base_lr learning-rate learning_rat LR", TRAINERS, "learning_rate"),
        (
            "bs batch_size batch train_batch_size per_gpu_train_batch_size",
            TRAINERS,
            "per_device_train_batch_size",
        ),
        ("bs batch", ("evaluate", "compare"), "batch_size"),
        ("epochs epoch num_epochs", ("siglip", "mae", "align", "sft"), "num_train_epochs"),
        ("steps num_steps total_steps iterations max_iters", TRAINERS, "max_steps"),
        ("workers num_workers j", (*TRAINERS, "evaluate", "compare"), "dataloader_num_workers"),
        ("output out out_dir o save_dir outdir", tuple(PROGRAMS), "output_dir"),
        ("data data_path data_dir train_data", (*IMAGES, "evaluate"), "dataset"),
        ("data data_path dataset", ("align", "sft"), "conversations"),
        ("data dataset data_path", ("compare",), "datasets"),
        ("precision amp mixed_precision", ("dinov2", "siglip", "align", "evaluate"), "bf16"),
        ("fp16 dtype", ("evaluate",), "bf16"),
        ("gradient_checkpointing", ("dinov2", "align"), "activation_checkpointing"),
        ("max_train_images", ("evaluate", "compare"), "max_train_samples"),
        ("max_test_images", ("evaluate", "compare"), "max_test_samples"),
        ("limit", ("evaluate_vlm",), "max_samples"),
        ("wandb tensorboard log_with", ("dinov2",), "report_to"),
        ("resume auto_resume resume_from", (*TRAINERS, "fuse"), "resume_from_checkpoint"),
        ("pretrained weights checkpoint ckpt", TRAINERS, "init_from"),
        ("model arch", ("dinov2",), "backbone"),
        ("model model_name_or_path", ("siglip", "mae", "align", "sft"), "init_from"),
        ("model checkpoint pretrained", ("evaluate",), "encoder"),
        ("model models", ("compare", "fuse"), "encoders"),
        ("llm", ("fuse",), "language_model"),
        ("wd", TRAINERS, "weight_decay"),
        ("val_dataset val_data", IMAGES, "eval_dataset"),
        ("warmup warmup_epochs", TRAINERS, "warmup_steps"),
        ("clip_grad grad_clip", TRAINERS, "max_grad_norm"),
        ("grad_accum accum_iter", TRAINERS, "gradient_accumulation_steps"),
        ("local_crops_number", ("dinov2",), "num_local_crops"),
        ("save_every saveckp_freq", TRAINERS, "save_steps"),
    ],
)
def test_what_other_trainers_call_it_is_answered_with_our_word(keys, programs, ours):
    for program in programs:
        for key in keys.split():
            assert cure_for(key, OPTIONS[program]) == f"did you mean {ours}?", (program, key)


def test_a_program_that_counts_steps_says_how_epochs_become_steps():
    for key in ("epochs", "num_train_epochs", "max_epochs"):
        cure = cure_for(key, OPTIONS["dinov2"])
        assert (
            "max_steps = epochs x images / images of a step" in cure and "per_device_train_batch_size" in cure
        )


@pytest.mark.parametrize("key", ["lr", "epochs", "wandb", "warmup", "foo", "x", "optimizer", "num_gpus"])
def test_a_program_without_such_an_option_names_no_other_one(key):
    assert cure_for(key, OPTIONS["fuse"]) == "--help lists the options"


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("grayscale_prob", "grayscale_probability"),
        ("koleo_weight", "koleo_loss_weight"),
        ("image_men", "image_mean"),
        ("teacher_temperature", "teacher_temp"),
        ("ema_momentum_final", "ema_momentum_end"),
        ("sinkhorn", None),
    ],
)
def test_otherwise_the_words_and_their_beginnings_decide(key, ours):
    """Not a few letters in common: `lr` was taken for blur, `batch_size` for patch_size."""
    assert cure_for(key, OPTIONS["dinov2"]) == (
        f"did you mean {ours}?" if ours else "--help lists the options"
    )


def test_every_name_of_ours_in_the_table_is_an_option_of_a_program():
    from recipes.check_conversations import CheckArguments
    from recipes.convert_flickr8k_vl import ConvertArguments
    from recipes.evaluate_vlm import EvaluateVlmArguments

    others = (CheckArguments, ConvertArguments, ConvertCambrianArguments, EvaluateVlmArguments)
    known = {name for names in OPTIONS.values() for name in names} | {
        field.name for each in others for field in dataclasses.fields(each)
    }
    assert {name for ours, _ in MEANINGS for name in ours.split()} <= known
