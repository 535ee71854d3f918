"""Placeholders for what is not shown are refused, and texts that talk of tags are not."""

import pytest

from tests.fusion.conversations.row_helpers import LONG, refusal, spoken, with_answer, with_question


@pytest.mark.parametrize(
    "text",
    [
        "<image_1> what?",
        "what is in <image 2>?",
        "<image1>",
        "<|image_1|>\nwhat?",
        "<|image|>what?",
        "<|image_pad|>",
        "<ImageHere>what?",
        "<start_of_image>",
    ],
)
def test_other_spellings_of_an_images_place(text):
    assert "write <image> where an image is shown" in refusal(with_question(text + LONG, images=["a.png"]))
    assert "write <image> where an image is shown" in refusal(with_answer(content=text))


def test_placeholders_of_films_and_boxes():
    for text in (
        "<video>what?",
        "what?\n<video>",
        "  <audio>\nwhat?",
        "see\n<video>\nwhat?",
        "<image><video>",
    ):
        assert "only images are seen" in refusal(
            with_question(text + LONG * text.startswith("see"), images=["a.png"] * text.count("<image>"))
        )
    assert "`objects`" in refusal(with_question("find <ref-object>"))
    assert "`objects`" in refusal(with_answer(content="it is at <bbox>"))


@pytest.mark.parametrize(
    "text",
    [
        "How do I loop a <video> in HTML?",
        "Does `<audio>` need a source?",
        "<video>\n  <source src='a.mp4'>\n</video>\nwhy is it black?",
        "<video controls>",
        "the tags <img> and <picture>",
        "a <bbox>1, 2, 3, 4</bbox> and x < image_1 > y",
    ],
)
def test_texts_that_talk_of_tags(text):
    assert spoken(with_question(text))[0] == ("user", text)
    assert spoken(with_answer(content=f"Use <video>:\n<video>\n{text}"))[1][0] == "assistant"
