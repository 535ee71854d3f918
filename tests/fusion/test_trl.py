"""TRL's trainers on a fused model, and on transformers' own Llava: two steps each, on rows with one
image, several and none."""

import pytest
import torch

pytest.importorskip("trl", reason="trl is not installed; pip install trl")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")

from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: E402

from fusion.lora import lora_config  # noqa: E402

COMMON = {
    "per_device_train_batch_size": 2,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def rows(pictures):
    """Four rows with 1, 2, 0 and 1 images."""
    images = [pictures[:1], pictures[1:3], [], pictures[:1]]
    return [
        (each, [{"role": "user", "content": f"what is here, {number}?"}])
        for number, each in enumerate(images)
    ]


def said(text):
    return [{"role": "assistant", "content": text}]


def sft(model, processor, pictures, folder):
    data = datasets.Dataset.from_list(
        [{"images": images, "messages": prompt + said("a dog")} for images, prompt in rows(pictures)]
    )
    return SFTTrainer(
        model, SFTConfig(folder, max_length=None, **COMMON), train_dataset=data, processing_class=processor
    )


def sft_with_lora(model, processor, pictures, folder):
    pytest.importorskip("peft", reason="peft is not installed")
    if not hasattr(model, "vision_sampler_layers"):
        pytest.skip("lora_config is for fused models")
    data = datasets.Dataset.from_list(
        [{"images": images, "messages": prompt + said("a dog")} for images, prompt in rows(pictures)]
    )
    settings = SFTConfig(folder, max_length=None, **COMMON)
    return SFTTrainer(
        model,
        settings,
        train_dataset=data,
        processing_class=processor,
        peft_config=lora_config(model, rank=4),
    )


def sft_of_completions(model, processor, pictures, folder):
    data = datasets.Dataset.from_list(
        [
            {"images": images, "prompt": prompt, "completion": said("a dog")}
            for images, prompt in rows(pictures)
        ]
    )
    return SFTTrainer(
        model, SFTConfig(folder, max_length=None, **COMMON), train_dataset=data, processing_class=processor
    )


def dpo(model, processor, pictures, folder):
    data = datasets.Dataset.from_list(
        [
            {"images": images, "prompt": prompt, "chosen": said("a dog"), "rejected": said("no")}
            for images, prompt in rows(pictures)
        ]
    )
    return DPOTrainer(
        model,
        args=DPOConfig(folder, max_length=None, **COMMON),
        train_dataset=data,
        processing_class=processor,
    )


def grpo(model, processor, pictures, folder):
    """Rows without images are left out: TRL 1.16 gives the processor None for them, which
    transformers 5.24 refuses for every model."""
    data = datasets.Dataset.from_list(
        [{"images": images, "prompt": prompt} for images, prompt in rows(pictures) if images]
    )
    settings = GRPOConfig(
        folder, num_generations=2, max_completion_length=6, steps_per_generation=2, beta=0.1, **COMMON
    )

    def reward(completions, **columns):
        return [float(len(each[0]["content"]) + number) for number, each in enumerate(completions)]

    return GRPOTrainer(
        model, args=settings, reward_funcs=reward, train_dataset=data, processing_class=processor
    )


@pytest.fixture(params=["fused", "llava"])
def model_and_processor(request, vlm, tiny_llava):
    return vlm() if request.param == "fused" else tiny_llava()


@pytest.mark.parametrize("trainer_of", [sft, sft_with_lora, sft_of_completions, dpo, grpo])
def test_two_steps_change_what_trains_and_nothing_else(model_and_processor, pictures, tmp_path, trainer_of):
    model, processor = model_and_processor
    model.save_pretrained(
        tmp_path / "start"
    )  # DPO and GRPO read their reference from where the model came from
    model = type(model).from_pretrained(tmp_path / "start")
    trainer = trainer_of(model, processor, pictures, str(tmp_path / "run"))
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    trainer.train()
    assert all(
        torch.isfinite(torch.tensor(each["loss"])) for each in trainer.state.log_history if "loss" in each
    )
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    assert not changed & frozen
    assert any("language_model" in name for name in changed)
    assert any("connector" in name or "projector" in name for name in changed)
    if hasattr(model, "vision_sampler_layers"):
        assert any("vision_sampler_layers" in name for name in changed)
        assert {name for name in before if ".encoders." in name} <= frozen
