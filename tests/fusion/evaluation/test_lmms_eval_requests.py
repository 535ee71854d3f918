"""What a task of lmms-eval asks becomes turns, images, options of `generate` and rounds."""

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.evaluation.lmms_eval_requests import (
    MultiRoundRequest,
    batches_of_requests,
    cut_at_first_stop,
    generation_options,
    pixels,
    read_messages,
)
from tests.fusion.evaluation.pictures import picture
from vision_core.errors import UserError
from vision_core.images.decode import decode_image


def test_messages_become_turns_with_images_at_their_places():
    one, other = picture(1), picture(2, (20, 30))
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "be short"}]},
        {
            "role": "user",
            "content": [
                {"type": "image", "url": one},
                {"type": "text", "text": "first"},
                {"type": "image", "url": other},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {
            "role": "user",
            "content": [{"type": "image", "url": other}, {"type": "text", "text": "and <image> then?"}],
        },
    ]
    turns, images = read_messages(messages)
    assert [turn["content"] for turn in turns] == [
        "be short",
        "<image>\nfirst<image>\n",
        "yes",
        "and <image> then?",
    ]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert [tuple(image.shape) for image in images] == [(3, 40, 48), (3, 30, 20), (3, 30, 20)]


def test_messages_that_cannot_be_shown_are_refused():
    image = {"type": "image", "url": picture(1)}
    with pytest.raises(UserError, match="the task shows video"):
        read_messages([{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}])
    with pytest.raises(UserError, match="1 images belong to a text with 2 <image>"):
        read_messages([{"role": "user", "content": [image, {"type": "text", "text": "<image> or <image>?"}]}])
    with pytest.raises(UserError, match=r"absent.png cannot be read"):
        pixels("absent.png")


def test_pictures_of_any_mode_and_files_are_the_same_pixels(tmp_path):
    picture(1).save(tmp_path / "x.png")
    whole = pixels(picture(1))
    assert torch.equal(pixels(str(tmp_path / "x.png")), whole) and torch.equal(
        pixels(picture(1, mode="RGBA")), whole
    )
    grey = pixels(picture(1, mode="L"))
    assert grey.dtype == torch.uint8 and torch.equal(grey[0], grey[2])


def test_a_tasks_pictures_are_those_of_training(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1).save(tmp_path / "turned.jpg", exif=exif)
    ramp = np.tile(np.arange(0, 65536, 1024, dtype=np.uint16), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    for path in (tmp_path / "turned.jpg", tmp_path / "grey.png"):
        expected = decode_image(path.read_bytes())
        assert torch.equal(pixels(Image.open(path)), expected) and torch.equal(pixels(str(path)), expected)


@pytest.mark.parametrize(
    ("options", "until", "generation"),
    [
        ({}, [], {"max_new_tokens": 9, "do_sample": False}),
        (
            {"max_new_tokens": 4, "temperature": 0.0, "top_p": None, "until": ["\n\n"]},
            [],
            {"max_new_tokens": 4, "do_sample": False},
        ),
        (
            {"temperature": 0.2, "top_p": 0.9, "do_sample": False, "num_beams": 2},
            [],
            {"num_beams": 2, "do_sample": False},
        ),
        ({"temperature": 0.2, "top_p": 0.9}, [], {"temperature": 0.2, "top_p": 0.9, "do_sample": True}),
        ({"temperature": 0, "do_sample": True, "until": "Q:"}, ["Q:"], {"do_sample": False}),
        (
            {"do_sample": True, "until": ["Q:", "\n\n", ""], "image_aspect_ratio": "pad"},
            ["Q:", "\n\n"],
            {"do_sample": True},
        ),
    ],
)
def test_generation_options(options, until, generation):
    assert generation_options(options, 9) == (until, {"max_new_tokens": 9} | generation)


def test_an_answer_ends_at_the_first_stop():
    assert (
        cut_at_first_stop("red Q: and\n\nmore", ["\n\n", "Q:"]) == "red"
        and cut_at_first_stop(" red ", []) == "red"
    )


def test_batches_hold_requests_with_the_same_options():
    options = [{"a": 1, "b": 2}, {"a": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 2}, {"a": 2}]
    assert list(batches_of_requests(options, 2)) == [[0, 2], [3], [1, 4]]


def test_a_task_ends_the_rounds_and_may_replace_the_answers():
    def to_messages(document, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return ["first"]
        seen.append((round_idx, previous_output, previous_round_info))
        return (
            (None, True, ["kept", *previous_output], None)
            if round_idx == 2
            else (["next"], False, None, "note")
        )

    seen = []
    dialogue = MultiRoundRequest(to_messages, {})
    dialogue.add_answer("a")
    assert (dialogue.messages, dialogue.answers) == (["next"], ["a"])
    dialogue.add_answer("b")
    assert (dialogue.messages, dialogue.answers) == (None, ["kept", "a", "b"])
    assert seen == [(1, ["a"], None), (2, ["a", "b"], "note")]
    dialogue = MultiRoundRequest(lambda document, **told: ["the same"], {})
    dialogue.add_answer("a")
    assert (dialogue.messages, dialogue.answers) == (None, ["a"])
