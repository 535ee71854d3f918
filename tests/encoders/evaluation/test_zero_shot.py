import math

import pytest
import torch
from torchmetrics.functional import accuracy

from encoders.evaluation.zero_shot import TEMPLATES, class_embeddings, retrieval_recalls, zero_shot_accuracy
from vision_core.errors import UserError
from vision_core.randomness import seed_of


class Reader:
    """Stands in for an image-text model: a vector of length 1 that is a function of the text."""

    def encode_texts(self, texts):
        rows = [torch.randn(8, generator=torch.Generator().manual_seed(seed_of(text))) for text in texts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def unit_rows(count, seed, width=8):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def test_class_embeddings_are_means_of_length_one():
    names = ["cat", "fire truck", "{brace}"]
    embeddings = class_embeddings(Reader(), names)
    for name, embedding in zip(names, embeddings, strict=True):
        rows = [Reader().encode_texts([template.replace("{}", name)])[0].double() for template in TEMPLATES]
        mean = sum(rows) / len(rows)
        torch.testing.assert_close(embedding.double(), mean / mean.norm(), rtol=0, atol=1e-6)


def test_one_template_is_the_text_itself():
    assert torch.allclose(
        class_embeddings(Reader(), ["cat"], ["a drawing of {}"]), Reader().encode_texts(["a drawing of cat"])
    )


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], TEMPLATES, "no class names or no templates"),
        (["cat"], [], "no class names or no templates"),
        (["cat"], ["a photo"], "'a photo' must have one {}"),
        (["cat"], ["{} and {}"], "must have one {}"),
        (["cat", " "], TEMPLATES, "empty name"),
    ],
)
def test_names_and_templates_that_do_not_fit(names, templates, message):
    with pytest.raises(UserError, match=message):
        class_embeddings(Reader(), names, templates)


@pytest.mark.parametrize("chunk", [7, 1024])
def test_accuracy_is_that_of_torchmetrics(chunk):
    images, classes = unit_rows(200, 0), unit_rows(12, 1)
    labels = torch.randint(12, (200,), generator=torch.Generator().manual_seed(2))
    scores = zero_shot_accuracy(images * 3, labels, classes, chunk)
    for k in (1, 5):
        expected = accuracy(
            images @ classes.T, labels, "multiclass", num_classes=12, average="micro", top_k=k
        )
        assert scores[f"top{k}"] == pytest.approx(100 * expected.item())


def test_a_collapsed_model_knows_nothing():
    assert zero_shot_accuracy(torch.ones(20, 4), torch.arange(20) % 10, torch.ones(10, 4)) == {
        "top1": 0,
        "top5": 0,
    }


def test_accuracy_refuses_bad_input():
    images, classes, labels = unit_rows(4, 0), unit_rows(3, 1), torch.tensor([0, 1, 2, 0])
    with pytest.raises(UserError, match="4 images and 3 labels"):
        zero_shot_accuracy(images, labels[:3], classes)
    with pytest.raises(UserError, match="at least one image"):
        zero_shot_accuracy(images[:0], labels[:0], classes)
    for wrong in (-1, 3):
        with pytest.raises(UserError, match="there are 3 class names"):
            zero_shot_accuracy(images, torch.tensor([0, 1, 2, wrong]), classes)
    with pytest.raises(UserError, match="not finite"):
        zero_shot_accuracy(images * math.nan, labels, classes)


@pytest.mark.parametrize("chunk", [5, 1024])
def test_recalls_are_those_of_a_plain_loop(chunk):
    """Images with one to four captions, in no order."""
    images = unit_rows(25, 0)
    generator = torch.Generator().manual_seed(1)
    image_of_text = torch.cat([torch.arange(25), torch.randint(25, (40,), generator=generator)])[
        torch.randperm(65, generator=generator)
    ]
    texts = images[image_of_text] + 0.6 * unit_rows(65, 2)
    similarity = images.double() @ torch.nn.functional.normalize(texts, dim=1).double().T
    recalls = retrieval_recalls(images, texts, image_of_text, chunk)
    for k in (1, 5, 10):
        by_image = [
            any(image_of_text[text] == image for text in similarity[image].argsort(descending=True)[:k])
            for image in range(25)
        ]
        by_text = [
            image_of_text[text] in similarity[:, text].argsort(descending=True)[:k] for text in range(65)
        ]
        assert recalls[f"image_to_text R@{k}"] == pytest.approx(100 * sum(by_image) / 25)
        assert recalls[f"text_to_image R@{k}"] == pytest.approx(100 * sum(by_text) / 65)
    assert len(recalls) == 6 and 0 < recalls["text_to_image R@1"] < 100


def test_one_of_several_captions_is_enough():
    """The second image's best caption is its own, its other one is nearest to the first image."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.0]])
    recalls = retrieval_recalls(images, texts, torch.tensor([0, 1, 1]))
    assert recalls["image_to_text R@1"] == 50  # the first image's nearest text belongs to the second
    assert recalls["text_to_image R@1"] == pytest.approx(200 / 3)
    assert recalls["image_to_text R@5"] == recalls["text_to_image R@5"] == 100


def test_recalls_refuse_bad_input():
    images, texts = unit_rows(3, 0), unit_rows(4, 1)
    with pytest.raises(UserError, match="4 texts and 3 in image_of_text"):
        retrieval_recalls(images, texts, [0, 1, 2])
    with pytest.raises(UserError, match="image 1 has no text"):
        retrieval_recalls(images, texts, [0, 2, 2, 0])
    for wrong in (3, -1):
        with pytest.raises(UserError, match="a text belongs to none of the 3 images"):
            retrieval_recalls(images, texts, [0, 1, 2, wrong])
    with pytest.raises(UserError, match="not finite"):
        retrieval_recalls(images, texts * math.inf, [0, 1, 2, 0])
