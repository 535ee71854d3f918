"""Several encoders and a connector as one vision model of transformers."""

import pytest
import torch
from transformers import AutoModel

from encoders import load_encoder
from fusion import FusedVisionConfig, FusedVisionModel, fuse_encoders
from vision_core.errors import UserError


def tokens_of(model, batch):
    with torch.no_grad():
        return model(**batch).last_hidden_state


def test_tokens_are_as_many_as_the_processor_says(fused, pictures):
    model, processor = fused()
    batch = processor(pictures)
    output = model(**batch)
    counts = [processor.num_tokens(picture.height, picture.width) for picture in pictures]
    assert output.attention_mask.sum(1).tolist() == counts
    assert output.last_hidden_state.shape == (5, max(counts), 64)
    assert output.last_hidden_state[output.attention_mask == 0].abs().sum() == 0


def test_the_encoders_keep_their_weights(fused):
    encoders = [load_encoder("tiny:dinov2"), load_encoder("tiny:timm_siglip")]
    before = [{name: tensor.clone() for name, tensor in encoder.state_dict().items()} for encoder in encoders]
    model, _ = fuse_encoders(
        encoders, hidden_size=8, grid=4, connector="channel_concat", encoder_grids=[4, 4]
    )
    for encoder, kept in zip(model.encoders, before, strict=True):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in encoder.state_dict().items())
        assert not encoder.training
        assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    "encoders",
    [
        ("tiny:dinov2", "tiny:dinov2"),  # two of one type
        ("tiny:clip", "tiny:open_clip_convnext"),
        ("tiny:vit_mae", "raw_pixels"),
        (
            "untrained:timm:vit_pe_core_tiny_patch16_384",
            "tiny:timm_resnet",
        ),  # rotary tables that no checkpoint holds
    ],
)
def test_saved_is_in_memory_bit_for_bit(tmp_path, fused, pictures, encoders):
    model, processor = fused(encoders=encoders)
    model.save_pretrained(tmp_path)
    batch = processor(pictures)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, FusedVisionModel)
    assert torch.equal(tokens_of(loaded, batch), tokens_of(model, batch))


def test_a_fresh_process_gives_the_same_bits(runs, tmp_path, fused, pictures):
    model, processor = fused()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pictures[0].save(tmp_path / "image.png")
    script = f"""
import sys, torch
from PIL import Image
import fusion
from transformers import AutoImageProcessor, AutoModel
processor, model = AutoImageProcessor.from_pretrained({str(tmp_path)!r}), AutoModel.from_pretrained({str(tmp_path)!r})
with torch.no_grad():
    tokens = model(**processor(Image.open({str(tmp_path / "image.png")!r}))).last_hidden_state
torch.save(tokens, {str(tmp_path / "tokens.pt")!r})
assert not [name for name in sys.modules if name.split(".")[0] in ("pretrain", "recipes")]
"""
    runs.finish(runs.start_plain(script, project=True))
    assert torch.equal(
        torch.load(tmp_path / "tokens.pt", weights_only=True), tokens_of(model, processor(pictures[0]))
    )


def test_layers_and_grids_of_an_encoder_come_back(tmp_path, pictures):
    stages = load_encoder("tiny:convnext", layers=(1, 2, 3, 4))
    penultimate = load_encoder("tiny:clip", layers=(-2,), norm=False, image_size=48)
    model, processor = fuse_encoders(
        [penultimate, stages], hidden_size=8, grid=3, encoder_grids=[6, 12], connector="pixel_shuffle"
    )
    assert model.connector.encoder_widths == (64, 16 + 24 + 32 + 48)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert [encoder.layers for encoder in loaded.encoders] == [(-2,), (1, 2, 3, 4)]
    batch = processor(pictures)
    assert processor.views(batch["pixel_values"])[0].shape[-1] == 48
    assert torch.equal(tokens_of(loaded, batch), tokens_of(model, batch))


def test_type_and_attention_are_passed_on(tmp_path, fused, pictures):
    model, processor = fused(encoders=("tiny:dinov2", "tiny:convnext"))
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    batch = processor(pictures[:3])
    assert torch.allclose(tokens_of(half, batch).float(), tokens_of(model, batch), atol=0.05)
    eager = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.encoders[0].model.config._attn_implementation == "eager"
    assert torch.allclose(tokens_of(eager, batch), tokens_of(model, batch), atol=1e-5)


def test_encoders_train_when_asked(tmp_path, fused, pictures):
    model, processor = fused(train_encoders=True)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).train()
    loaded(**processor(pictures[:2])).last_hidden_state.square().sum().backward()
    assert all(encoder.training for encoder in loaded.encoders)
    assert loaded.encoders[0].model.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0


def test_a_list_of_one_tensor_for_each_encoder_is_the_same(fused, pictures):
    model, processor = fused()
    batch = processor(pictures)
    views = [each.contiguous() for each in model.views(batch["pixel_values"])]
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        assert torch.equal(model(views, batch["image_sizes"]).last_hidden_state, expected)
    start, cut = batch["pixel_values"].data_ptr(), model.views(batch["pixel_values"])
    assert [each.data_ptr() - start for each in cut] == [0, 4 * views[0][0].numel()], "copied"


def test_frozen_encoders_are_frozen_when_they_are_loaded(tmp_path, fused):
    for train_encoders in (False, True):
        model, _ = fused(train_encoders=train_encoders)
        model.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path).train()
        assert {name: each.requires_grad for name, each in loaded.named_parameters()} == {
            name: each.requires_grad for name, each in model.named_parameters()
        }
        assert any(each.requires_grad for each in loaded.encoders.parameters()) == train_encoders


def test_bad_input(fused, pictures):
    model, processor = fused()
    batch = processor(pictures)
    views = model.views(batch["pixel_values"])
    with pytest.raises(UserError, match="as a list it must have one for each encoder"):
        model(views[:1], batch["image_sizes"])
    with pytest.raises(UserError, match="12288 numbers for each image, and the encoders see"):
        model(views[0], batch["image_sizes"])
    with pytest.raises(UserError, match="holds no images"):
        model(batch["pixel_values"][:0], batch["image_sizes"][:0])
    with pytest.raises(UserError, match="they must be the same images"):
        model(batch["pixel_values"], batch["image_sizes"][:2])
    with pytest.raises(UserError, match="nothing to fuse"):
        fuse_encoders([], hidden_size=8)
    with pytest.raises(UserError, match="see 3 channels and squares"):
        fuse_encoders([load_encoder("tiny:dinov2", image_size=(64, 32))], hidden_size=8)
    with pytest.raises(UserError, match="2 encoders and 1 encoder_grids"):
        FusedVisionConfig(encoders=[encoder.config() for encoder in model.encoders], encoder_grids=[4])
    with pytest.raises(UserError, match="needs encoders"):
        FusedVisionModel(FusedVisionConfig())
    with pytest.raises(UserError, match="fit is 'pad' or 'squash'"):
        FusedVisionConfig(fit="stretch")
