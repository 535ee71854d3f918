"""Supervised fine-tuning as users start it: launchers, ZeRO, kills and resumes, LoRA, what is
saved."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import fusion  # noqa: F401  (registers the models with the Auto classes)
from recipes.sva_sft import PUBLISHED_RATE, STAND_IN_RATE, plan_of
from recipes.vlm_args import SftArguments

ROOT = Path(__file__).parents[2]
SFT = "recipes/sva_sft.py"
ALIGN = "recipes/sva_align.py"
STEPS = 20


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({}, STAND_IN_RATE),
        ({"init_from": "vlm"}, PUBLISHED_RATE),
        ({"init_from": "vlm", "learning_rate": 2e-5}, 2e-5),
        ({"learning_rate": 0.0}, 0.0),
    ],
)
def test_the_default_rate_depends_on_whether_a_model_is_named(given, rate):
    assert plan_of(SftArguments(**given)).learning_rate == rate


def test_the_options_say_what_trains():
    lora = plan_of(SftArguments(lora_rank=4))
    whole = plan_of(SftArguments(encoder_learning_rate=1e-5))
    assert (lora.language_model, lora.lora_rank) == ("lora", 4)
    assert (whole.language_model, whole.encoder_learning_rate) == ("trained", 1e-5)


@pytest.fixture(scope="module")
def one_process(runs, mixed, stage_options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    runs.finish(runs.start(SFT, *stage_options(mixed, folder, per_device_train_batch_size=8)))
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("zero", "batch"), [("zero2", 2), ("zero3", 4)])
def test_two_processes_are_one(
    zero, batch, runs, logged, weights, zero_left, mixed, stage_options, one_process, tmp_path
):
    folder = tmp_path / "run"
    config = ROOT / "recipes" / "zero" / f"{zero}.json"
    arguments = stage_options(
        mixed,
        folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=4 // batch,
        deepspeed=config,
    )
    # once through the launcher, as users start it
    runs.finish(
        *(
            [runs.launch(runs.deepspeed(), SFT, *arguments)]
            if zero == "zero3"
            else runs.start_two(SFT, *arguments)
        )
    )
    zero_left(folder, stage=int(zero[-1]), processes=2)
    expected = logged(one_process)
    assert len(expected) == STEPS and expected[-1] < 0.9 * expected[0]
    torch.testing.assert_close(logged(folder), expected, rtol=1e-4, atol=0)
    reference, saved = weights(one_process), weights(folder)
    assert reference.keys() == saved.keys()
    for name, tensor in reference.items():
        # by the norm: where a gradient is all but zero, AdamW makes of its rounding whole steps of
        # one number
        assert (saved[name] - tensor).norm() <= 1e-3 * tensor.norm(), name
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    text = processor.apply_chat_template(
        [{"role": "user", "content": "<image>\nquestion 0"}], add_generation_prompt=True
    )
    inputs = processor(text=[text], images=[Image.new("RGB", (64, 40))], return_tensors="pt")
    assert (
        model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1]
        == inputs["input_ids"].shape[1] + 3
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["python", "zero2", "lora"])
def test_killed_and_resumed_is_uninterrupted(
    way, runs, logged, weights, zero_left, mixed, stage_options, tmp_path
):
    def start(folder, *more):
        arguments = (SFT, *stage_options(mixed, folder, **chosen), *more)
        return runs.start_two(*arguments) if way == "zero2" else [runs.start(*arguments)]

    chosen = {
        "max_steps": 8,
        "save_steps": 3,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "cosine",
        "packing": "true",
    }
    if way == "zero2":
        chosen["deepspeed"] = ROOT / "recipes" / "zero" / "zero2.json"
    if way == "lora":
        chosen["lora_rank"] = 4
    runs.finish(*start(tmp_path / "whole"))
    killed = tmp_path / "killed"
    processes = start(killed)
    processes[0].wait_until((killed / "checkpoint-6" / "MANIFEST.json").exists, seconds=280)
    runs.kill(*processes)
    (killed / "checkpoint-6" / "MANIFEST.json").unlink()  # as if the kill had come in the middle of the save
    runs.finish(*start(killed, "--resume_from_checkpoint", "true"))
    for folder in (killed, tmp_path / "whole") if way == "zero2" else ():
        zero_left(folder, stage=2, processes=2)
    assert torch.equal(logged(killed), logged(tmp_path / "whole"))
    expected, got = weights(tmp_path / "whole"), weights(killed)
    assert expected.keys() == got.keys() and all(
        torch.equal(got[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.timeout(200)
def test_both_stages_one_after_the_other(runs, weights, mixed, stage_options, tmp_path):
    """Alignment moves what is new and nothing else; LoRA starts from it; its folder is a whole
    model that answers as the trained one did."""
    runs.finish(runs.start(ALIGN, *stage_options(mixed, tmp_path / "first", max_steps=4)))
    runs.finish(
        runs.start(
            ALIGN,
            *stage_options(
                mixed, tmp_path / "none", max_steps=1, learning_rate=0.0, sampler_learning_rate=0.0
            ),
        )
    )
    before, after = weights(tmp_path / "none"), weights(tmp_path / "first")
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved and all(
        name.startswith(("vision_model.connector.", "vision_sampler_layers.")) for name in moved
    )
    assert {name.split(".")[0] for name in moved} == {"vision_model", "vision_sampler_layers"}
    runs.finish(
        runs.start(
            SFT,
            *stage_options(
                mixed, tmp_path / "second", max_steps=4, init_from=tmp_path / "first", lora_rank=4
            ),
        )
    )
    tuned = weights(tmp_path / "second")
    assert tuned.keys() == after.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, tuned[name])}
    assert any(name.startswith("language_model.") for name in changed) and not any(
        "encoders" in name for name in changed
    )
    card = (tmp_path / "second" / "README.md").read_text()
    assert "by LoRA of rank 4 the language model" in card and "image-text-to-text" in card
    assert "| learning_rate | 0.001 |" in card  # what ran, not what was asked for
    assert re.search(
        r"\npython \S*recipes/sva_sft.py --config \S+/second/config.yaml --output_dir \S+/second-again\n",
        card,
    )
    assert not list((tmp_path / "second").glob("*.bin"))


@pytest.mark.timeout(300)
def test_lora_under_zero3_in_bf16(runs, logged, weights, zero_left, mixed, stage_options, tmp_path):
    """Where all weights that are sharded must be of one dtype; what is saved is whole, and the
    encoders are as they were."""
    chosen = {"max_steps": 4, "lora_rank": 4, "bf16": "true"}
    for name, more in (("sharded", {"deepspeed": ROOT / "recipes" / "zero" / "zero3.json"}), ("whole", {})):
        runs.finish(runs.start(SFT, *stage_options(mixed, tmp_path / name, **chosen, **more)))
    zero_left(tmp_path / "sharded", stage=3, processes=1)
    # of bf16 weights and of fp32 ones
    torch.testing.assert_close(logged(tmp_path / "sharded"), logged(tmp_path / "whole"), rtol=1e-2, atol=0)
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "sharded")
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before if ".encoders." in name
    )


@pytest.mark.timeout(200)
def test_a_model_kept_in_bf16_trains_in_fp32(runs, logged, weights, mixed, stage_options, tmp_path):
    """As one of the same numbers, kept in fp32: small steps would be lost in bf16."""
    for name, dtype in (("half", torch.bfloat16), ("whole", torch.float32)):
        model = AutoModelForImageTextToText.from_pretrained(mixed.model, dtype=torch.bfloat16).to(dtype)
        model.save_pretrained(tmp_path / name / "model")
        AutoProcessor.from_pretrained(mixed.model).save_pretrained(tmp_path / name / "model")
        given = stage_options(
            mixed,
            tmp_path / name / "run",
            max_steps=3,
            init_from=tmp_path / name / "model",
            feature_cache=tmp_path / name / "cache",
        )
        runs.finish(runs.start(SFT, *given))
    half, whole = (weights(tmp_path / name / "run") for name in ("half", "whole"))
    assert torch.equal(logged(tmp_path / "half" / "run"), logged(tmp_path / "whole" / "run"))
    assert all(
        half[name].dtype == torch.float32 and torch.equal(half[name], tensor)
        for name, tensor in whole.items()
    )


@pytest.mark.timeout(200)
def test_mistakes_are_one_line_each(runs, zero_left, mixed, stage_options, tmp_path):
    said = partial(runs.error, SFT)
    plain = stage_options(mixed, tmp_path / "run", max_steps=1)
    assert "holds no model" in said(
        *stage_options(replace(mixed, model=tmp_path), tmp_path / "run", max_steps=1)
    )
    assert "absent.json is not there" in said(
        *stage_options(replace(mixed, source=f"llava:{tmp_path}/absent.json"), tmp_path / "run", max_steps=1)
    )
    assert not (tmp_path / "run").exists()  # so that the command, mended, starts
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    assert "is not empty" in said("--output_dir", tmp_path / "used")  # before stand-ins learn for minutes
    assert "is no file" in said("--deepspeed", "absent", "--output_dir", tmp_path / "run")
    broken = tmp_path / "broken.jsonl"
    broken.write_text(
        '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n{"conversations"\n'
    )
    line = said(
        *stage_options(
            replace(mixed, source=f"llava:{broken}"),
            tmp_path / "broken",
            max_steps=3,
            per_device_train_batch_size=1,
        )
    )
    assert f"{broken}, line 2" in line
    clash = tmp_path / "zero.json"
    clash.write_text(json.dumps({"train_micro_batch_size_per_gpu": 64, "zero_optimization": {"stage": 2}}))
    assert "per_device_train_batch_size is 8" in said(
        *stage_options(mixed, tmp_path / "clash", deepspeed=clash)
    )
    runs.finish(
        runs.start(
            SFT,
            *stage_options(
                mixed, tmp_path / "alone", max_steps=1, deepspeed=ROOT / "recipes/zero/zero1.json"
            ),
        )
    )
    zero_left(tmp_path / "alone", stage=1, processes=1)
    assert "--lora_rank" in said(*plain, "--lora_rank", "4", "--encoder_learning_rate", "1e-5")
