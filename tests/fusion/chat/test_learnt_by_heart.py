"""From rows to answers: two rows are learnt by heart under layouts of the field, asked as they were
trained, and generation stops by itself."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fusion import assemble_vlm, fuse_encoders
from fusion.conversations.batches import ConversationCollator
from fusion.conversations.mixtures import ConversationDataset
from fusion.conversations.sources import open_conversations
from fusion.evaluation.answers import answer_and_score
from fusion.evaluation.benchmarks import open_task
from fusion.tiny import tiny_language_model
from fusion.training.models import load_model

NAMES = ("gemma3", "phi3", "llama2", "chatml", "qwen3", "gptoss", "glm4moe", "vicuna_v1")
ENOUGH = 40  # tokens for either answer and much more: without a learnt end it would run on


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two rows that differ in their picture alone; an answer ends in a line break, as many files
    have it."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for name, value, answer in (("dark", 20, "no\n"), ("light", 230, " A light one.\n")):
        Image.fromarray(np.full((64, 64, 3), value, dtype=np.uint8)).save(folder / f"{name}.png")
        turns = [{"from": "human", "value": "<image>\nwhich?"}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"image": f"{name}.png", "conversations": turns}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return f"llava:{folder / 'rows.jsonl'}?images={folder}"


@pytest.fixture
def untrained(template_named, tokens_of):
    """A tiny fused model with a chat template of this name, and its processor."""
    return lambda name: made_untrained(template_named(name), tokens_of(template_named(name)))


def made_untrained(template, tokens):
    model, tokenizer = tiny_language_model("llama")
    tokenizer.add_tokens(tokens)
    tokenizer.chat_template = template
    vision, _ = fuse_encoders(
        ["tiny:dinov2"],
        hidden_size=64,
        connector="resampler",
        connector_options={"num_queries": 4, "width": 64, "num_heads": 4},
    )
    return assemble_vlm(vision, model, tokenizer)


def learn_by_heart(model, processor, rows, steps=400):
    data = ConversationDataset([open_conversations(rows)], processor, 4096)
    batch = ConversationCollator(processor)([data[0], data[1]])
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        loss = model(**batch, supervised_only=True).loss
        if loss < 0.01:
            return
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    pytest.fail(f"loss {loss.item()} after {steps} steps")


@pytest.mark.parametrize("name", NAMES)
def test_two_rows_are_answered_as_they_were_learnt(name, rows, untrained, monkeypatch):
    torch.manual_seed(0)
    model, processor = untrained(name)
    learn_by_heart(model, processor, rows)
    model.eval()
    lengths = []
    generate = type(model).generate

    def counted(self, **inputs):
        made = generate(self, **inputs)
        lengths.append(made.shape[1] - inputs["input_ids"].shape[1])
        return made

    monkeypatch.setattr(type(model), "generate", counted)
    task = open_task(rows)
    score = answer_and_score(model, processor, replace(task, max_new_tokens=ENOUGH), batch_size=2)
    assert score.score == 100.0, score.answers
    assert max(lengths) < ENOUGH, "generation stopped by itself"


def test_the_programs_do_so_too(rows, untrained, runs, tmp_path):
    """A base model whose only stop was its end of text, with a ChatML template: SFT, then
    evaluation, as commands."""
    model, processor = untrained("chatml")
    model.generation_config.eos_token_id = (
        processor.tokenizer.eos_token_id
    )  # as checkpoints have it that were fused before
    model.save_pretrained(tmp_path / "fused")
    processor.save_pretrained(tmp_path / "fused")
    given = {
        "init_from": tmp_path / "fused",
        "conversations": rows,
        "eval_conversations": "[]",
        "max_steps": 120,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 2,
        "output_dir": tmp_path / "sft",
    }
    runs.finish(
        runs.start(
            "recipes/sva_sft.py",
            *(str(text) for name, value in given.items() for text in (f"--{name}", value)),
        )
    )
    printed = runs.finish(
        runs.start(
            "recipes/evaluate_vlm.py",
            "--model",
            tmp_path / "sft",
            "--tasks",
            rows,
            "--output_dir",
            tmp_path / "judged",
        )
    )
    assert re.search(r"all \(2\) *\| *100.0", printed), printed
    trained, processor = load_model(str(tmp_path / "sft"))
    saved = json.loads((tmp_path / "sft" / "generation_config.json").read_text())["eos_token_id"]
    assert processor.tokenizer.convert_tokens_to_ids("<|im_end|>") in saved
