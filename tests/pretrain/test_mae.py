"""MAE as users run it: the published loss and start, the folder loads everywhere, and its own
mistakes; the rest is in `test_image_training.py`."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, ViTMAEForPreTraining

from encoders import load_encoder
from encoders.evaluation.encoder_facts import training_paradigm
from encoders.mae_weights import sincos_positions
from pretrain.batches.multicrop import Poses, random_resized_crop
from pretrain.mae import MaeArguments, build_model, collate, masked_crop
from vision_core.errors import UserError
from vision_core.randomness import seed_of


@pytest.fixture(scope="module")
def mae(trainings):
    return trainings["mae"]


@pytest.fixture(scope="module")
def whole(mae):
    return mae.whole


@pytest.fixture
def tiny():
    return build_model(
        MaeArguments(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    )


def test_the_loss_is_that_of_the_paper(tiny):
    """Mean over hidden patches of the mean squared error to the patch's pixels less their mean,
    over their deviation; loops in float64."""
    model, processor = tiny
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8, generator=generator) for _ in range(3)]
    batch = collate(
        processor.image_mean,
        processor.image_std,
        [masked_crop(32, 16, 0, image, 0, index) for index, image in enumerate(images)],
    )
    with torch.no_grad():
        output = model(**batch)
    errors = []
    for pixels, noise, guesses in zip(
        batch["pixel_values"].double(), batch["noise"], output.logits.double(), strict=True
    ):
        hidden = noise.argsort()[4:].tolist()  # a quarter of 16 patches is seen, those of the lowest noise
        for patch in hidden:
            row, column = divmod(patch, 4)
            target = pixels[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].permute(1, 2, 0).flatten()
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append(
                sum(
                    (guess - wanted) ** 2
                    for guess, wanted in zip(guesses[patch].tolist(), target.tolist(), strict=True)
                )
                / 192
            )
    assert len(errors) == 3 * 12
    assert output.loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_a_crop_is_a_function_of_seed_epoch_and_image():
    image = torch.arange(3 * 40 * 48).reshape(3, 40, 48).remainder(256).to(torch.uint8)
    first, again = masked_crop(32, 16, 0, image, 1, 7), masked_crop(32, 16, 0, image, 1, 7)
    assert first["view"].shape == (3, 32, 32) and all(torch.equal(first[name], again[name]) for name in first)
    for other in ((1, 1, 7), (0, 2, 7), (0, 1, 8)):
        assert not torch.equal(masked_crop(32, 16, other[0], image, *other[1:])["noise"], first["noise"])


def test_a_new_model_starts_as_published(tiny):
    """transformers alone leaves positions and tokens at zero."""
    model = tiny[0]
    embeddings, decoder = model.vit.embeddings, model.decoder
    assert (
        torch.equal(embeddings.position_embeddings, sincos_positions(16, 32))
        and not embeddings.position_embeddings.requires_grad
    )
    assert (
        torch.equal(decoder.decoder_pos_embed, sincos_positions(16, 16))
        and not decoder.decoder_pos_embed.requires_grad
    )
    for token in (embeddings.cls_token, decoder.mask_token):
        assert 0.01 < token.std() < 0.04
    for matrix in (
        embeddings.patch_embeddings.projection.weight.flatten(1),
        model.vit.layers[0].mlp.fc1.weight,
        decoder.decoder_pred.weight,
    ):
        bound = (6 / sum(matrix.shape)) ** 0.5
        assert 0.95 * bound < matrix.abs().max() <= bound


def test_positions_are_the_formula():
    positions = sincos_positions(9, 8)[0].double()
    assert torch.equal(positions[0], torch.zeros(8).double())
    for patch in range(9):
        row, column = divmod(patch, 3)
        expected = [
            f(place * 10000 ** (-k / 2))
            for place in (column, row)
            for f in (np.sin, np.cos)
            for k in range(2)
        ]
        np.testing.assert_allclose(positions[1 + patch], expected, atol=1e-7)


def test_the_loss_falls(whole, logged):
    trained, held_out = logged(whole), logged(whole, "eval_loss")
    assert trained[-3:].mean() < 0.97 * trained[0] and held_out[-1] < held_out[0]
    assert logged(whole, "learning_rate").max().item() == pytest.approx(0.005)


def test_it_loads_everywhere_and_means_the_same(whole, picture, snippet):
    """The card's code, AutoModel and this project's encoder: the same tokens, in their places, of a
    whole image."""
    names = snippet(whole / "README.md", picture)
    encoder = load_encoder(whole)
    pixels = AutoImageProcessor.from_pretrained(whole)(
        Image.open(picture).convert("RGB"), return_tensors="pt"
    )["pixel_values"]
    features = encoder(pixels)
    assert names["tokens"].shape == (1, 17, 32)
    torch.testing.assert_close(features.pooled, names["tokens"][:, 0])
    torch.testing.assert_close(features.patch_map.flatten(2).transpose(1, 2), names["tokens"][:, 1:])
    assert AutoModel.from_pretrained(whole).config.mask_ratio == 0.75
    assert encoder.transform.interpolation == "bicubic" and training_paradigm(encoder) == "reconstruction"
    assert torch.equal(
        ViTMAEForPreTraining.from_pretrained(whole).decoder.decoder_pos_embed, sincos_positions(16, 16)
    )
    assert not list(whole.glob("*.bin"))


def test_accumulated_batches_are_one(mae, whole, logged, tmp_path):
    """With a data worker, too: the mean over batches, not their sum."""
    options = (
        "--per_device_train_batch_size",
        4,
        "--gradient_accumulation_steps",
        2,
        "--dataloader_num_workers",
        1,
    )
    mae.finish(tmp_path / "run", *options, "--eval_dataset", "none")
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(logged(tmp_path / "run", name), logged(whole, name), rtol=1e-4, atol=0)


def test_mistakes_are_one_line(mae, picture, tmp_path):
    folder = tmp_path / "run"
    for ratio in ("0", "1", "1.5", "-0.2", "0.99"):
        message = "must hide some of the 16 patches and not all; published: 0.75"
        assert message in mae.error(folder, "--mask_ratio", ratio), ratio
    assert "--hidden_size 36 must be a multiple of 8" in mae.error(folder, "--hidden_size", 36)
    assert not folder.exists(), "nothing is written before a run can start"
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        (images / f"{number}.png").write_bytes(picture.read_bytes()[: 300 if number == 5 else None])
    bad = ("--dataset", f"folder:{images}", "--eval_dataset", "none", "--dataloader_num_workers", 1)
    assert "5.png cannot be read" in mae.error(folder, *bad)


def test_a_run_of_other_sizes_is_not_resumed(mae, whole, tmp_path):
    assert "--output_dir" in mae.error(whole)
    again = (
        shutil.copytree(whole, tmp_path / "again"),
        "--resume_from_checkpoint",
        "true",
        "--max_steps",
        20,
    )
    assert "--resume_from_checkpoint" in mae.error(*again, "--num_hidden_layers", 3)
    assert "has more weights than the run's model" in mae.error(*again, "--num_hidden_layers", 1)
    assert "weights of a vit_mae of this size" in mae.error(*again, "--hidden_size", 64)


def test_seeds_give_the_crops_that_they_always_gave():
    image = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8)
    for index in range(10):
        ours = masked_crop(32, 16, 0, image, 0, index)
        torch.manual_seed(seed_of("mae", 0, 0, index))
        view = random_resized_crop(image, (32, 32), (0.2, 1.0))
        view = view.flip(-1) if torch.rand(()) < 0.5 else view
        assert torch.equal(ours["view"], view) and torch.equal(ours["noise"], torch.rand(16))


def test_crops_are_turned_where_that_is_asked_for():
    image = torch.arange(48)[:, None].expand(3, 48, 48).float()
    ways = set()
    for index in range(40):
        view = masked_crop(32, 16, 0, image, 0, index, Poses(0.0, 0.0, True))["view"][0]
        down, right = view.diff(dim=0).mean().item(), view.diff(dim=1).mean().item()
        ways.add(
            (round(down), round(right))
            if max(abs(down), abs(right)) < 0.5
            else (down > 0.1, down < -0.1, right > 0.1, right < -0.1)
        )
    assert len(ways) == 4
    with pytest.raises(UserError, match="--vertical_flip_probability 2.0 must lie between 0 and 1"):
        MaeArguments(vertical_flip_probability=2.0)
