"""The timm adapter against timm itself, on tiny random models."""

import json
import re

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from encoders import load_encoder, save_encoder
from encoders.adapters.timm_encoder import Trunk, load_timm, published_transform, timm_from_architecture
from encoders.preprocess import ImageTransform
from vision_core.errors import UserError

SHAPE = {"embed_dim": 24, "depth": 3, "num_heads": 2}
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}
SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
VITS = {
    "vit_tiny_patch16_224": {"img_size": 64, **SHAPE},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, **SHAPE},
    "vit_base_patch16_siglip_224": {"img_size": 64, **SHAPE},
    "vit_base_patch16_clip_224": {"img_size": 64, **SHAPE},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, **SHAPE},
    "vit_small_patch16_dinov3": SHAPE,
}
PREFIX = dict(zip(VITS, (1, 5, 0, 1, 2, 5), strict=True))


def tiny(name, **options):
    torch.manual_seed(0)
    encoder = load_timm(name, pretrained=False, untrained=True, **options)
    with (
        torch.no_grad()
    ):  # a norm that is still 1 and 0 would hide that it was applied twice, or without its bias
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def pixels(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def as_map(tokens, rows, columns):
    """By hand: token r * columns + c at place (r, c)."""
    patch_map = torch.empty(tokens.shape[0], tokens.shape[2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            patch_map[:, :, row, column] = tokens[:, row * columns + column]
    return patch_map


@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_a_vit_gives_the_patches_of_timms_own_forward(name):
    encoder = tiny(name, model_args=VITS[name])
    size = (2 * encoder.stride, 3 * encoder.stride)  # neither square nor the size that it was made for
    features, tokens = encoder(pixels(*size)), encoder.model.forward_features(pixels(*size))
    assert features.normalised and encoder.grid(*size) == (2, 3)
    assert encoder.has_cls is (features.cls is not None)
    torch.testing.assert_close(
        features.patch_map, as_map(tokens[:, PREFIX[name] :], 2, 3), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(features.pooled, encoder.model(pixels(*size)), rtol=1e-5, atol=1e-5)
    if PREFIX[name]:
        torch.testing.assert_close(features.cls, tokens[:, 0], rtol=1e-5, atol=1e-5)
    else:
        assert features.cls is None


@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_layers_are_what_the_blocks_left(norm):
    encoder = tiny(
        "vit_small_patch14_reg4_dinov2", model_args=VITS["vit_small_patch14_reg4_dinov2"], norm=norm
    )
    left = {}
    for number, block in enumerate(encoder.model.blocks, start=1):
        block.register_forward_hook(lambda module, args, output, number=number: left.update({number: output}))
    features = encoder(pixels(56, 56), [3, 1, 3])
    assert [layer.number for layer in features.layers] == [3, 1, 3]
    for layer in features.layers:
        tokens = encoder.model.norm(left[layer.number]) if norm else left[layer.number]
        torch.testing.assert_close(layer.patch_map, as_map(tokens[:, 5:], 4, 4))
        torch.testing.assert_close(layer.cls, tokens[:, 0])
        assert layer.normalised is norm
    torch.testing.assert_close(
        features.pooled, encoder.model.norm(left[3])[:, 0]
    )  # published behind the norm, whatever `norm` says


def test_registers_alone_are_no_cls():
    encoder = tiny("vit_wee_patch16_reg1_gap_256", model_args=SHAPE)
    features = encoder(pixels(32, 48))
    assert features.cls is None and not encoder.has_cls and features.patch_map.shape == (2, 24, 2, 3)


@pytest.mark.parametrize(
    "name", ["vit_wee_patch16_reg1_gap_256", "beit_base_patch16_224", "eva02_tiny_patch14_224"]
)
@torch.no_grad()
def test_a_vit_whose_norm_is_behind_its_average_says_that_its_patches_are_not_normed(name):
    normed, raw = (tiny(name, model_args=SHAPE, norm=norm) for norm in (True, False))
    size = normed.transform.size
    assert not normed(pixels(*size, batch=1)).normalised
    assert torch.equal(normed(pixels(*size, batch=1)).patch_map, raw(pixels(*size, batch=1)).patch_map)


def test_a_vit_without_any_token_in_front():
    """timm fails where it is asked for prefix tokens that a relative position ViT does not have."""
    encoder = tiny("vit_relpos_base_patch32_plus_rpn_256", model_args=SHAPE)
    features = encoder(pixels(256, 256, batch=1), [1, 3])
    assert features.cls is None and features.patch_map.shape == (1, 24, 8, 8)


@pytest.mark.parametrize(
    ("name", "args", "widths"),
    [("convnext_atto", STAGES, [8, 12, 16, 24]), ("resnet10t", {}, [64, 64, 128, 256, 512])],
)
@torch.no_grad()
def test_stages_have_their_own_widths_and_grids(name, args, widths):
    encoder = tiny(name, model_args=args)
    layers = encoder(pixels(64, 96), range(1, encoder.num_layers + 1)).layers
    assert [layer.patch_map.shape[1] for layer in layers] == widths == list(encoder.trunk.widths)
    for layer, stride in zip(layers, encoder.trunk.strides, strict=True):
        assert layer.patch_map.shape[2:] == (64 // stride, 96 // stride)
    assert encoder.grid(64, 96) == (2, 3) and layers[-1].cls is None
    expected = encoder.model.forward_intermediates(pixels(64, 96), intermediates_only=True)
    for layer, raw in zip(layers[:-1], expected[:-1], strict=True):
        assert torch.equal(layer.patch_map, raw) and not layer.normalised


@torch.no_grad()
def test_the_last_stage_of_convnext_is_behind_the_norm_of_its_pooling():
    """Where the image is one place of the last stage, its average is that place, so the map must be
    timm's pooled vector."""
    encoder = tiny("convnext_atto", model_args=STAGES)
    features = encoder(pixels(32, 32))
    torch.testing.assert_close(features.patch_map[..., 0, 0], features.pooled, rtol=1e-5, atol=1e-5)
    assert features.normalised
    norm, raw = (
        encoder.model.head.norm,
        tiny("convnext_atto", model_args=STAGES, norm=False)(pixels(64, 96)),
    )
    by_place = F.layer_norm(
        raw.patch_map.permute(0, 2, 3, 1), (24,), norm.weight, norm.bias, norm.eps
    ).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder(pixels(64, 96)).patch_map, by_place)
    assert not raw.normalised


@torch.no_grad()
def test_the_last_stage_of_swin_is_behind_its_norm():
    encoder = tiny("swin_tiny_patch4_window7_224", model_args=SWIN)
    layers = encoder(pixels(64, 64), [3, 4]).layers
    expected = encoder.model.forward_intermediates(pixels(64, 64), norm=True, intermediates_only=True)
    for layer, theirs in zip(layers, expected[2:], strict=True):
        torch.testing.assert_close(layer.patch_map, theirs, rtol=1e-5, atol=1e-5)
    assert [layer.normalised for layer in layers] == [False, True]


def test_a_resnet_has_no_norm_to_put_behind_its_maps():
    assert not tiny("resnet10t")(pixels(32, 32)).normalised


def test_sizes():
    vit = tiny("vit_tiny_patch16_224", model_args=VITS["vit_tiny_patch16_224"])
    with pytest.raises(UserError, match="a width of 50 is no multiple of the stride 16; use 48"):
        vit(pixels(32, 50))
    beit = tiny("beit_base_patch16_224", model_args={**SHAPE, "img_size": 64})
    with pytest.raises(
        UserError,
        match="images of 64 x 64 pixels and no other size, such as 64 x 96; give load_timm an image_size",
    ):
        beit.grid(64, 96)
    wide = tiny("beit_base_patch16_224", model_args=SHAPE, image_size=(64, 96))
    assert wide.transform.size == (64, 96) and wide(pixels(64, 96)).patch_map.shape[-2:] == (
        4,
        6,
    ) == wide.grid(64, 96)


@torch.no_grad()
def test_swin_takes_any_multiple_of_its_stride():
    encoder = tiny("swin_tiny_patch4_window7_224", model_args=SWIN)
    assert encoder(pixels(64, 96)).patch_map.shape == (2, 64, 2, 3)


def test_a_map_with_another_grid_than_the_size_over_the_stride_is_refused():
    """Inception's convolutions have no padding."""
    encoder = tiny("inception_v3")
    with pytest.raises(
        UserError, match="its map of 128 x 128 pixels is 2 x 2, not 4 x 4; choose another model"
    ):
        encoder(pixels(128, 128))


def test_channels():
    encoder = tiny("convnext_atto", model_args={**STAGES, "in_chans": 5})
    assert encoder.num_channels == 5 and encoder(torch.zeros(1, 5, 32, 32)).pooled.shape == (1, 24)


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("vit_small_patch14_reg4_dinov2", VITS["vit_small_patch14_reg4_dinov2"], (56, 84)),
        ("convnext_atto", STAGES, (32, 64)),
        ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": (64, 96)}, (64, 96)),
        ("beit_base_patch16_224", {**SHAPE, "img_size": (64, 96)}, (64, 96)),
    ],
)
def test_the_architecture_as_json_makes_the_same_model(name, args, size):
    encoder = tiny(name, model_args=args)
    architecture = json.loads(json.dumps(encoder.architecture()))
    options = {"dtype": torch.float32, "layers": (1, -1), "source": "here"}
    with torch.device("meta"):
        empty = timm_from_architecture(architecture, encoder.transform, **options)
    assert all(parameter.device.type == "meta" for parameter in empty.parameters())
    built = timm_from_architecture(architecture, encoder.transform, **options).eval()
    built.load_state_dict(encoder.state_dict())
    assert built.layers == (1, -1) and built.name == "here" and built.architecture() == architecture
    assert torch.equal(built(pixels(*size)).patch_map, encoder(pixels(*size)).patch_map)
    assert torch.equal(built(pixels(*size)).pooled, encoder(pixels(*size)).pooled)


def test_a_checkpoint_in_a_folder_is_saved_without_its_folder(tmp_path):
    args = {"img_size": 64, **SHAPE}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **args).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    described = {
        "input_size": [3, 64, 64],
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
        "crop_pct": 1.0,
        "fixed_input_size": True,
        "classifier": "head",
    }
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "model_args": args,
        "pretrained_cfg": described,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_timm(f"local-dir:{tmp_path}", pretrained=True)
    torch.testing.assert_close(
        encoder(pixels(64, 64)).pooled,
        model.forward_head(model.forward_features(pixels(64, 64)), pre_logits=True),
    )
    assert encoder.architecture() == {"name": "vit_tiny_patch16_224", "args": args}
    assert encoder.transform == ImageTransform(
        (64, 64), (0.1,) * 3, (0.2,) * 3, preprocess="published", resampler="pillow"
    )
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"local-dir:.* cannot be loaded \(Config file not found"):
        load_timm(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("size", [(300, 400), (400, 300)])
@pytest.mark.parametrize(
    ("crop_pct", "crop_mode"), [(0.9, "center"), (0.875, "center"), (1.0, "squash"), (1.0, "center")]
)
def test_the_transform_gives_timms_pixels(size, crop_pct, crop_mode):
    model = timm.create_model("resnet10t", num_classes=0)
    model.pretrained_cfg |= {"input_size": (3, 224, 224), "crop_pct": crop_pct, "crop_mode": crop_mode}
    rows, columns = torch.meshgrid(
        torch.linspace(0, 9, size[0]), torch.linspace(0, 7, size[1]), indexing="ij"
    )
    image = torch.stack([rows.sin(), columns.cos(), (rows * columns).sin()]).mul(100).add(128).byte()
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(
        Image.fromarray(image.permute(1, 2, 0).numpy())
    )
    ours = published_transform(model, takes_any_size=True)([image])[0]
    # both round to 8 bits behind the resize, at times to the two sides of a half
    assert ours.shape == theirs.shape and (ours - theirs).abs().mean() < 5e-3


def test_published_sizes_that_the_stride_does_not_divide():
    with torch.device("meta"):
        siglip = load_timm("vit_so400m_patch14_siglip_384", pretrained=False)
        resnet = load_timm("resnet10t.c3_in1k", pretrained=False)
    assert siglip.transform.size == (378, 378) and siglip.grid(378, 378) == (27, 27)
    assert resnet.transform.size == (192, 192)


def test_a_transform_that_pads():
    model = timm.create_model("resnet10t", num_classes=0)
    model.pretrained_cfg |= {"crop_mode": "border"}
    with pytest.raises(
        UserError,
        match="timm's ResNet pads its images to a square, which is not understood; choose another model",
    ):
        published_transform(model, takes_any_size=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "vit_tiny_patch16_2244",
            "timm has no model vit_tiny_patch16_2244; did you mean vit_tiny_patch16_224",
        ),
        (
            "vit_base_patch16_224.mea",
            "timm has no model vit_base_patch16_224.mea; did you mean vit_base_patch16_224.mae",
        ),
        ("nothing like this", "timm has no model nothing like this"),
    ],
)
def test_unknown_names(name, said):
    with pytest.raises(UserError, match=re.escape(said)):
        load_timm(name, pretrained=True)


def test_arguments_that_the_class_does_not_take():
    with pytest.raises(
        UserError, match=r"timm:resnet10t cannot be loaded \(.*unexpected keyword argument 'img_sise'"
    ):
        load_timm("resnet10t", pretrained=False, model_args={"img_sise": 64})


def test_a_model_without_maps():
    with pytest.raises(UserError, match="timm's Linear has no forward_intermediates"):
        Trunk.of(torch.nn.Linear(2, 2), takes_any_size=False)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm.models", None)
    with pytest.raises(
        UserError, match=r"needs the package timm; pip install 'vision-encoder-fusion\[encoders\]'"
    ):
        load_timm("resnet10t", pretrained=False)


def pushed_to_the_hub(folder, model, architecture, model_args, **more):
    """What timm's `push_to_hf_hub` leaves, as UNI and Virchow have it: config.json and
    pytorch_model.bin."""
    described = {
        "input_size": [3, 64, 64],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    said = {
        "architecture": architecture,
        "num_classes": 0,
        "model_args": model_args,
        "pretrained_cfg": described,
        **more,
    }
    (folder / "config.json").write_text(json.dumps(said))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@torch.no_grad()
def test_a_folder_of_unis_form(tmp_path):
    args = {"img_size": 64, **SHAPE, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **args).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pushed_to_the_hub(tmp_path, model, "vit_tiny_patch16_224", args, global_pool="token", num_features=64)
    encoder = load_encoder(tmp_path)
    images = pixels(64, 96)  # it takes other sizes, as its own arguments say
    torch.testing.assert_close(encoder(images).pooled, model(images))
    assert load_encoder(f"untrained:{tmp_path}").untrained


@torch.no_grad()
def test_a_folder_of_virchows_form(tmp_path):
    """Its gated MLP and activation are classes, which its card has the user pass; its output is all
    tokens."""
    shape = {
        "patch_size": 16,
        "embed_dim": 96,
        "depth": 3,
        "num_heads": 4,
        "mlp_ratio": 5.3375,
        "reg_tokens": 4,
    }
    args = {
        "img_size": 64,
        **shape,
        "init_values": 1e-5,
        "num_classes": 0,
        "global_pool": "",
        "dynamic_img_size": True,
    }
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_huge_patch14_224", mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU, **args
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pushed_to_the_hub(tmp_path, model, "vit_huge_patch14_224", args)
    encoder, images = load_encoder(tmp_path), pixels(64, 64)
    tokens = model(images)
    torch.testing.assert_close(encoder(images).patch_map.flatten(2).mT, tokens[:, 5:])
    torch.testing.assert_close(encoder(images).cls, tokens[:, 0])
    assert encoder.pooled_width is None and encoder(images).pooled is None
    save_encoder(encoder, tmp_path / "saved")
    assert torch.equal(load_encoder(tmp_path / "saved")(images).patch_map, encoder(images).patch_map)


def test_a_folder_with_weights_that_cannot_be_read(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 0})
    )
    with pytest.raises(UserError, match="cannot be loaded .*No suitable checkpoints"):
        load_encoder(tmp_path)
