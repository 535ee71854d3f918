"""A model is asked what it was trained on, with its images, without any, and with wrong ones."""

import json

import torch

from fusion.conversations.sources import open_conversations
from fusion.conversations.tokens import tokenise
from fusion.evaluation.answers import answer_and_score, question_as_asked
from fusion.evaluation.benchmarks import open_task
from fusion.training.models import load_model
from tests.fusion.evaluation.pictures import png
from vision_core.images.decode import decode_image


def test_baselines_show_no_image_and_those_of_others(small_model, monkeypatch):
    import fusion.evaluation.answers as module

    model, processor = load_model(str(small_model))
    task = open_task("scenes?count=9&split=held_out")
    shown = {}

    def watched(model, processor, conversations, images, **generation):
        remaining = iter(images)
        places = [sum(turn["content"].count("<image>") for turn in turns) for turns in conversations]
        return [str(float(next(remaining).float().mean())) if count else "none" for count in places]

    monkeypatch.setattr(module, "replies", watched)
    for kind in ("images", "blind", "shuffled"):
        shown[kind] = answer_and_score(model, processor, task, kind, batch_size=4).answers
    assert set(shown["blind"]) == {"none"} and sorted(shown["shuffled"]) == sorted(shown["images"])
    assert all(one != other for one, other in zip(shown["images"], shown["shuffled"], strict=True))


def pictures_in_turns(folder):
    """A conversation with a system turn, two images within a question, and a third one behind the
    first answer."""
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    turns = [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "Is <image> or <image> brighter?"},
        {"role": "assistant", "content": "the first\n"},
        {"role": "user", "content": "<image>\nand this?"},
        {"role": "assistant", "content": "no"},
    ]
    rows = [{"messages": turns, "images": [f"{first}.png", "1.png", "2.png"]} for first in (0, 2)]
    (folder / "turns.json").write_text(json.dumps(rows))
    return f"messages:{folder / 'turns.json'}?images={folder}"


def test_a_conversation_is_asked_as_it_was_trained(small_model, tmp_path, monkeypatch):
    """With its system turn, and its images where they stand: the ids that `generate` gets are the
    beginning of those that training sees."""
    source = pictures_in_turns(tmp_path)
    model, processor = load_model(str(small_model))
    task = open_task(source)
    trained = tokenise(open_conversations(source)[0], processor, 2**20).input_ids
    seen = []
    monkeypatch.setattr(
        type(model), "generate", lambda self, **inputs: seen.append(inputs) or inputs["input_ids"]
    )
    answer_and_score(model, processor, task, "images", batch_size=1)
    asked = seen[0]["input_ids"][0].tolist()
    assert trained[: len(asked)] == asked and asked.count(
        processor.image_token_id
    ) == 2 * processor.image_processor.num_tokens(40, 48)
    assert "Answer in French." in processor.decode(asked)


def test_baselines_of_a_conversation_keep_its_turns(tmp_path):
    task = open_task(pictures_in_turns(tmp_path))
    right, blind, wrong = (question_as_asked(task, 0, shown) for shown in ("images", "blind", "shuffled"))
    assert [len(each.images) for each in (right, blind, wrong)] == [2, 0, 2]
    assert [turn.text for turn in blind.messages] == ["Answer in French.", "Is  or  brighter?"]
    assert (
        wrong.messages == right.messages
        and torch.equal(wrong.images[0], decode_image(png(2)))
        and task.questions[0].expected == ("the first",)
    )


def test_batched_answers_are_those_of_one_by_one(small_model):
    model, processor = load_model(str(small_model))
    task = open_task("scenes?count=5")
    with torch.no_grad():
        one, several = (
            answer_and_score(model.eval(), processor, task, "images", size).answers for size in (1, 3)
        )
    assert one == several
