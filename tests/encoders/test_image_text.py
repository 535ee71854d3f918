"""Tiny random checkpoints with both towers, made and read by the real libraries."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from encoders.adapters.tiny import OPEN_CLIP, TRANSFORMERS
from encoders.image_text import TEXT_TOWERS, load_image_text
from vision_core.errors import UserError

TEXTS = ["a photo of a cat.", "a photo of the big red fire truck.", "dog"]
CLASSES = {
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
}
PROCESSORS = {
    "siglip": ("SiglipImageProcessor", {"size": {"height": 64, "width": 64}}),
    "siglip2": ("Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 64}),
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
    "metaclip_2": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    ),
}
FAMILIES = sorted(CLASSES)
LENGTH = 16


def train_tokenizer(family):
    """Words, with upper case and lower case apart, and <eos> behind; for Siglip2Model its own
    tokenizer, which is of another kind."""
    words = [*TEXTS, "A Photo of Dog", "CAT"]
    if family == "siglip2":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.train_from_iterator(
            words, trainers.BpeTrainer(special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
        )
        trained = json.loads(tokenizer.to_str())["model"]
        return transformers.Siglip2Tokenizer(
            vocab=trained["vocab"], merges=[tuple(merge) for merge in trained["merges"]]
        )
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        words, trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>", "<bos>", "<eos>"])
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )


def write_checkpoint(family, folder):
    tokenizer = train_tokenizer(family)
    vision = {**TRANSFORMERS[family], "initializer_range": 0.3}
    text = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "vocab_size": len(tokenizer), "initializer_range": 0.3,
        "max_position_embeddings": LENGTH, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    if TEXT_TOWERS[family].padded:
        text["projection_size"] = vision["hidden_size"]
    model_class = getattr(transformers, CLASSES[family])
    torch.manual_seed(0)
    model = model_class(model_class.config_class(vision_config=vision, text_config=text))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name, options = PROCESSORS[family]
    getattr(transformers, name)(**options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    made = {}

    def checkpoint(family):
        if family not in made:
            made[family] = write_checkpoint(family, tmp_path_factory.mktemp(family))
        return made[family]

    return checkpoint


@pytest.fixture(scope="module")
def published(checkpoints):
    """The library's own model of a family."""
    return lambda family: getattr(transformers, CLASSES[family]).from_pretrained(checkpoints(family)).eval()


def pixels(count=2, side=64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_have_length_one_and_the_same_width(checkpoints, family):
    model = load_image_text(checkpoints(family))
    images, texts = model.encode_images(pixels()), model.encode_texts(TEXTS)
    assert images.shape[0] == 2 and texts.shape[0] == 3 and images.shape[1] == texts.shape[1]
    for rows in (images, texts):
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5) and not rows.requires_grad
        assert (rows[0] - rows[1]).norm() > 0.01
    assert model.transform.size == (64, 64) and model.transform.fit == (
        "squash" if "siglip" in family else "crop"
    )
    assert not any(parameter.requires_grad for parameter in model.parameters()) and not model.training


@pytest.mark.parametrize("family", ["siglip", "clip", "metaclip_2"])
def test_images_are_those_of_transformers(checkpoints, published, family):
    expected = published(family).get_image_features(pixels()).pooler_output
    torch.testing.assert_close(
        load_image_text(checkpoints(family)).encode_images(pixels()), unit(expected), rtol=1e-4, atol=1e-5
    )


def test_naflex_images_are_those_of_its_processor(checkpoints, published):
    images = torch.randint(
        0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    said = transformers.Siglip2ImageProcessor.from_pretrained(checkpoints("siglip2"))(
        list(images), return_tensors="pt"
    )
    assert said["spatial_shapes"].tolist() == [[8, 8]] * 2
    model = load_image_text(checkpoints("siglip2"))
    expected = published("siglip2").get_image_features(**said).pooler_output
    torch.testing.assert_close(
        model.encode_images(model.transform(images)), unit(expected), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_those_of_transformers(checkpoints, published, family):
    tokenizer = train_tokenizer(family)
    if TEXT_TOWERS[family].padded:
        tokens = tokenizer(
            TEXTS, padding="max_length", padding_side="right", max_length=LENGTH, return_tensors="pt"
        )
        expected = published(family).get_text_features(tokens["input_ids"]).pooler_output
    else:
        tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
        expected = (
            published(family).get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        )
    torch.testing.assert_close(
        load_image_text(checkpoints(family)).encode_texts(TEXTS), unit(expected), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_does_not_depend_on_its_batch(checkpoints, family):
    model = load_image_text(checkpoints(family))
    together = model.encode_texts(TEXTS)
    alone = torch.cat([model.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode_texts(TEXTS, batch_size=2), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_upper_case_matters_only_where_it_was_trained(checkpoints, family):
    model = load_image_text(checkpoints(family))
    same = torch.allclose(
        model.encode_texts(["A Photo of Dog"]), model.encode_texts(["a photo of dog"]), atol=1e-5
    )
    assert same == TEXT_TOWERS[family].padded


@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_are_cut(checkpoints, family):
    model = load_image_text(checkpoints(family))
    assert torch.allclose(
        model.encode_texts(["cat " * 500]), model.encode_texts(["cat " * LENGTH]), atol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(checkpoints, published, family):
    reference, model = published(family), load_image_text(checkpoints(family))
    assert model.logit_scale == pytest.approx(reference.logit_scale.exp().item())
    assert model.logit_bias == (reference.logit_bias.item() if hasattr(reference, "logit_bias") else 0)


def test_other_sizes_are_interpolated_or_refused(checkpoints):
    model = load_image_text(checkpoints("clip"))
    assert model.encode_images(pixels(side=96)).shape == model.encode_images(pixels()).shape
    with pytest.raises(UserError, match="no multiple of the stride 8; use 64"):
        model.encode_images(pixels(side=63))


def test_bfloat16(checkpoints):
    exact, half = (
        load_image_text(checkpoints("siglip"), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.bfloat16 and half.encode_images(pixels()).dtype == torch.float32
    assert ((half.encode_images(pixels()) * exact.encode_images(pixels())).sum(1) > 0.99).all()
    assert ((half.encode_texts(TEXTS) * exact.encode_texts(TEXTS)).sum(1) > 0.99).all()


def test_encoders_without_a_text_tower(tmp_path, checkpoints):
    transformers.Dinov2Config().save_pretrained(tmp_path)
    with pytest.raises(
        UserError,
        match="is a dinov2, which has no text tower; those that have one: siglip, siglip2, clip, metaclip_2, open_clip",
    ):
        load_image_text(tmp_path)
    for text in ("timm:vit_base_patch16_224", "raw_pixels", "hf:", "open_clip:ViT-B-32"):
        with pytest.raises(UserError, match="names no encoder with a text tower"):
            load_image_text(text)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "a folder of weights without config.json"),
        ("tokenizer*", "has a tokenizer of 2 tokens for a text tower of 19; add its tokenizer.json"),
        ("preprocessor_config.json", "no image processor"),
    ],
)
def test_a_checkpoint_without_a_part(tmp_path, missing, message):
    write_checkpoint("clip", tmp_path)
    for path in tmp_path.glob(missing):
        path.unlink()
    with pytest.raises(UserError, match=message):
        load_image_text(tmp_path)


def test_a_checkpoint_without_some_weights(tmp_path):
    """The vision tower alone under a config that promises both: nothing may be left to chance."""
    write_checkpoint("clip", tmp_path)
    model = transformers.CLIPModel.from_pretrained(tmp_path)
    weights = {
        name: value for name, value in model.state_dict().items() if not name.startswith("text_model.")
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks \d+ weights of a CLIPModel, such as text_model"):
        load_image_text(tmp_path)


@pytest.fixture(scope="module")
def tiny_open_clip(tmp_path_factory):
    """(source text, the library's own model) of a tiny open_clip model, which the library then
    knows by the name tiny-clip."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "tiny-clip.json").write_text(json.dumps(OPEN_CLIP["open_clip_vit"]))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip").eval()
    save_file(model.state_dict(), folder / "weights.safetensors")
    yield f"open_clip:tiny-clip/{folder / 'weights.safetensors'}", model
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder / "tiny-clip.json")
    open_clip.factory._MODEL_CONFIGS.pop("tiny-clip")


def test_open_clip_is_that_of_the_library(tiny_open_clip):
    source, reference = tiny_open_clip
    model = load_image_text(source)
    tokens = open_clip.get_tokenizer("tiny-clip")(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_images(pixels()), reference.encode_image(pixels(), normalize=True)
        )
        torch.testing.assert_close(model.encode_texts(TEXTS), reference.encode_text(tokens, normalize=True))
        logits, _ = reference.get_logits(pixels(), tokens)
    ours = model.logit_scale * model.encode_images(pixels()) @ model.encode_texts(TEXTS).T + model.logit_bias
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)
    assert model.transform.size == (64, 64) and model.transform.mean == open_clip.OPENAI_DATASET_MEAN


def test_open_clip_in_bfloat16(tiny_open_clip):
    source, _ = tiny_open_clip
    exact, half = load_image_text(source), load_image_text(source, dtype=torch.bfloat16)
    assert ((half.encode_images(pixels()) * exact.encode_images(pixels())).sum(1) > 0.99).all()
    assert ((half.encode_texts(TEXTS) * exact.encode_texts(TEXTS)).sum(1) > 0.99).all()


def test_open_clip_refuses_bad_input(tiny_open_clip):
    source, _ = tiny_open_clip
    with pytest.raises(UserError, match="images must be 64 x 64 pixels, not 32 x 32"):
        load_image_text(source).encode_images(pixels(side=32))
    with pytest.raises(UserError, match="has no weights of-no-data for tiny-clip"):
        load_image_text("open_clip:tiny-clip/of-no-data")
    with pytest.raises(UserError, match="has no model tiny-clap"):
        load_image_text("open_clip:tiny-clap/x")
    wrong = Path(source.partition("/")[2]).with_suffix(".npz")
    wrong.write_bytes(b"")
    with pytest.raises(UserError, match="not a .safetensors file"):
        load_image_text(f"open_clip:tiny-clip/{wrong}")
