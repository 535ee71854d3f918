"""`--init_from`: every form of weights that people have, and what is said about tensors that are
not simply taken."""

import copy

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from encoders import load_encoder, save_encoder
from encoders.adapters.transformers_encoder import TransformersEncoder
from encoders.preprocess import ImageTransform
from pretrain.backbone import build_backbone
from pretrain.initial_weights import fit_channels, load_backbone_weights, resize_position_embeddings
from tests.published_dinov2 import PublishedDinov2
from vision_core.errors import UserError

SHAPE = {"patch_size": 14, "image_size": 70}


def backbone(registers=0, channels=3, side=70, heads=2, **settings):
    torch.manual_seed(1)
    shape = {**SHAPE, "image_size": side}
    built = build_backbone(
        128,
        3,
        heads,
        num_register_tokens=registers,
        num_channels=channels,
        register_init_std=0.1,
        **shape,
        **settings,
    )
    return built.eval()


def published(registers=0, **settings):
    torch.manual_seed(0)
    options = {"offset": 0.0, "antialias": True} if registers else {}
    return PublishedDinov2(registers=registers, **options, **settings)


def features(model, pixels):
    with torch.no_grad():
        return model(pixels).last_hidden_state


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


HEADS = {"dino_head.mlp.0.weight": torch.zeros(2, 2), "dino_head.last_layer.weight_v": torch.zeros(2, 2)}
OTHER = {"student.backbone.cls_token": torch.zeros(1, 1, 128)}
DUMPS = {
    "published": lambda state: state,
    "teacher_checkpoint.pth": lambda state: {"teacher": prefixed(state, "backbone.") | HEADS},
    "training state": lambda state: {
        "model": prefixed(state, "teacher.backbone.") | prefixed(HEADS, "teacher.") | OTHER,
        "optimizer": {"state": {}, "param_groups": []},
        "iteration": 7,
    },
    "two wrappers": lambda state: {
        "model": prefixed(prefixed(state, "backbone.module."), "_orig_mod.module.teacher.")
    },
    "DINO": lambda state: {
        "student": {"x": torch.zeros(1)},
        "teacher": prefixed(state, "module.backbone."),
        "epoch": 3,
    },
}


@pytest.mark.parametrize("chunks", [0, 3])
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("name", DUMPS)
def test_a_file_of_facebookresearch(name, registers, chunks, tmp_path):
    model = published(registers, chunks=chunks)
    torch.save(DUMPS[name](model.state_dict()), tmp_path / "weights.pth")
    run, pixels = backbone(registers), torch.randn(2, 3, 70, 70)
    lines = load_backbone_weights(run, f"dinov2_pth:{tmp_path / 'weights.pth'}")
    assert (features(run, pixels) - model(pixels)).abs().max() < 1e-4
    assert f"{len(run.state_dict())} backbone tensors loaded" in lines[0] and "0 resized, 0 fresh" in lines[0]
    heads = [line for line in lines if "unused" in line and "dino_head" in line]
    assert len(heads) == (2 if name in ("teacher_checkpoint.pth", "training state") else 0)
    loaded = load_encoder(f"dinov2_pth:{tmp_path / 'weights.pth'}", image_size=70)
    assert (loaded(pixels).patch_map.flatten(2).mT - model(pixels)[:, 1 + registers :]).abs().max() < 1e-4


def test_a_path_alone_a_folder_hf_and_a_saved_encoder(tmp_path, monkeypatch):
    torch.save(published().state_dict(), tmp_path / "weights.pth")
    first, pixels = backbone(), torch.randn(1, 3, 70, 70)
    load_backbone_weights(first, str(tmp_path / "weights.pth"))
    first.save_pretrained(tmp_path / "folder")
    save_encoder(TransformersEncoder(first, ImageTransform((70, 70))), tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    for source in ("folder", "hf:folder", str(tmp_path / "folder"), "saved"):
        run = backbone()
        load_backbone_weights(run, source)
        assert torch.equal(features(run, pixels), features(first, pixels))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_channels_see_a_grey_picture_as_before(channels, tmp_path):
    """The rule's meaning: with equal channels nothing changes."""
    model = published()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    run = backbone(channels=channels)
    lines = load_backbone_weights(run, str(tmp_path / "weights.pth"))
    grey = torch.randn(2, 1, 70, 70)
    assert (
        features(run, grey.expand(-1, channels, -1, -1)) - model(grey.expand(-1, 3, -1, -1))
    ).abs().max() < 1e-4
    assert any(
        f"from 3 to {channels} channels: each has the mean over the 3, times 3 / {channels}" in line
        for line in lines
    )
    assert "1 resized" in lines[0]


def test_many_channels_become_fewer():
    weight = torch.randn(8, 5, 2, 2)
    torch.testing.assert_close(fit_channels(weight, 3).sum(1), weight.sum(1))


def test_another_grid_is_said(tmp_path):
    torch.save(published().state_dict(), tmp_path / "weights.pth")
    run = backbone(side=98)
    lines = load_backbone_weights(run, str(tmp_path / "weights.pth"))
    assert any("resized from 5 x 5 to 7 x 7" in line for line in lines)
    assert run.embeddings.position_embeddings.shape == (1, 50, 128)


@pytest.mark.parametrize(("theirs", "ours"), [(0, 4), (4, 0), (4, 2), (2, 4)])
def test_another_number_of_registers_is_said(theirs, ours, tmp_path):
    model = published(theirs)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    run = backbone(ours)
    own = run.embeddings.register_tokens.clone() if ours else None
    said = "\n".join(load_backbone_weights(run, str(tmp_path / "weights.pth")))
    if not theirs:
        assert "fresh: embeddings.register_tokens, which the source does not have" in said
        assert torch.equal(run.embeddings.register_tokens, own)
    elif not ours:
        assert "unused: embeddings.register_tokens, 1 tensor" in said
    else:
        assert (
            f"the first {min(theirs, ours)} of {theirs} are taken, {max(ours - theirs, 0)} start afresh"
            in said
        )
        assert torch.equal(run.embeddings.register_tokens[:, :2], model.register_tokens[:, :2])
        assert torch.equal(run.embeddings.register_tokens[:, theirs:], own[:, theirs:])


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    torch.save(published().state_dict(), tmp_path / "weights.pth")
    Dinov2Model(
        Dinov2Config(hidden_size=128, num_hidden_layers=3, num_attention_heads=4, **SHAPE)
    ).save_pretrained(tmp_path / "heads")
    ViTModel(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "vit")
    save_encoder(load_encoder("tiny:siglip"), tmp_path / "siglip")
    run = backbone()
    before = {name: value.clone() for name, value in run.state_dict().items()}
    cases = {
        "heads": "it has 4 heads, the run 2; give --num_attention_heads 4",
        "vit": "it is a vit, and the run trains a DINOv2",
        "siglip": "it is not a DINOv2 of transformers",
        "nowhere": "nowhere cannot be loaded",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=f"init_from=.*{name}: .*{message}"):
            load_backbone_weights(run, str(tmp_path / name))
    with pytest.raises(UserError, match="tensors do not fit, first .*encoder.layer.3"):
        load_backbone_weights(build_backbone(128, 4, 2, **SHAPE), str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match="tensors do not fit"):  # a layer too few
        load_backbone_weights(build_backbone(128, 2, 2, **SHAPE), str(tmp_path / "weights.pth"))
    with pytest.raises(UserError, match=r"1 tensors do not fit.*patch_embeddings"):
        load_backbone_weights(
            build_backbone(128, 3, 2, patch_size=7, image_size=35), str(tmp_path / "weights.pth")
        )
    assert all(torch.equal(value, before[name]) for name, value in run.state_dict().items())


def test_heads_that_no_published_model_has_are_noted(tmp_path):
    torch.save(published().state_dict(), tmp_path / "weights.pth")
    lines = load_backbone_weights(backbone(heads=4), str(tmp_path / "weights.pth"))
    assert "published ones have a width of 64, the run's 32" in lines[-1]


def test_a_run_with_the_published_offset_trains_with_it():
    """The positions of local crops in training are the published ones."""
    model = published()
    run = backbone(position_offset=0.1)
    load = {"embeddings.position_embeddings": model.pos_embed}
    run.load_state_dict(run.state_dict() | load)
    ours = run.embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 12, 128), 42, 56)
    torch.testing.assert_close(ours, model.positions(3, 4), rtol=1e-5, atol=1e-6)
    teacher = copy.deepcopy(run)  # as SelfDistillation makes it: it must resample its own positions
    teacher.embeddings.position_embeddings.data.zero_()
    assert not teacher.embeddings.interpolate_pos_encoding(torch.zeros(1, 1 + 12, 128), 42, 56).any()
    assert run.config.position_offset == 0.1
    assert TransformersEncoder(run, ImageTransform((42, 56))).position_offset == 0.1


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"config.json": '{"architecture": "vit_small_patch14_dinov2"}', "model.safetensors": ""},
            "is a checkpoint of timm, whose weights",
        ),
        (
            {"open_clip_config.json": "{}", "open_clip_model.safetensors": ""},
            "is a checkpoint of open_clip, whose weights",
        ),
    ],
)
def test_a_folder_of_another_library_is_told_by_its_name(tmp_path, files, said):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(
        UserError,
        match=f"^init_from=.* {said} have other names; give .* hf:facebook/dinov2-small, .* dinov2_pth:FILE$",
    ):
        load_backbone_weights(backbone(), str(tmp_path))


def test_weights_of_another_grid_are_resized_and_other_shapes_refused(tmp_path):
    torch.manual_seed(0)
    donor = build_backbone(32, 3, 2, patch_size=4, image_size=16)
    donor.save_pretrained(tmp_path)
    torch.manual_seed(1)
    larger = build_backbone(32, 3, 2, patch_size=4, image_size=32)
    lines = load_backbone_weights(larger, str(tmp_path))
    assert "resized from 4 x 4 to 8 x 8" in lines[1]
    assert torch.equal(larger.encoder.layer[0].mlp.fc1.weight, donor.encoder.layer[0].mlp.fc1.weight)
    wider = build_backbone(64, 3, 2, patch_size=4, image_size=16)
    with pytest.raises(UserError, match="do not fit"):
        load_backbone_weights(wider, str(tmp_path))


def test_resizing_a_constant_grid_keeps_it():
    table = torch.cat([torch.zeros(1, 1, 6), torch.ones(1, 16, 6)], dim=1)
    resized = resize_position_embeddings(table, 7)
    assert resized.shape == (1, 50, 6)
    torch.testing.assert_close(resized[:, 1:], torch.ones(1, 49, 6))
