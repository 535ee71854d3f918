"""One test of the contract over every family, on tiny random models of the real libraries."""

import gc
import json

import pytest
import torch

from encoders import load_encoder
from encoders.adapters.tiny import FAMILY_NAMES
from encoders.base import EncoderConfig
from encoders.saved import build_encoder, save_encoder
from vision_core.errors import UserError

CLS = {
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "clip",
    "metaclip_2",
    "vit",
    "vit_mae",
    "internvl",
    "radio",
    "tipsv2",
    "timm_vit",
    "timm_dinov2",
    "open_clip_vit",
}
NO_POOLED = {"ijepa", "internvl"}
NATIVE_SIZE_ONLY = {"aimv2", "open_clip_vit"}
STAGES = {"dinov3_convnext", "convnext", "convnextv2", "timm_convnext", "timm_resnet", "open_clip_convnext"}


@pytest.fixture(scope="module")
def encoders():
    made = {}
    return lambda family: (
        made.setdefault(family, load_encoder(f"tiny:{family}")) if family not in made else made[family]
    )


def pixels_for(encoder, batch=3, size=None):
    return torch.randn(
        batch, 3, *(size or encoder.transform.size), generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_shapes_and_grid(encoders, family):
    encoder = encoders(family)
    height, width = encoder.transform.size
    features = encoder(pixels_for(encoder))
    by_hand = (height // encoder.stride, width // encoder.stride)
    assert features.patch_map.shape == (3, encoder.width, *by_hand) and encoder.grid(height, width) == by_hand
    assert (features.cls is not None) == (family in CLS)
    assert (features.pooled is None) == (family in NO_POOLED) == (encoder.pooled_width is None)
    if features.pooled is not None:
        assert features.pooled.shape == (3, encoder.pooled_width)
    if features.cls is not None:
        assert features.cls.shape == (3, encoder.width)
    assert encoder.untrained and encoder.frozen and not encoder.training


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_same_twice_and_alone_as_in_a_batch(encoders, family):
    encoder = encoders(family)
    pixels = pixels_for(encoder)
    torch.manual_seed(0)
    first = encoder(pixels)
    torch.manual_seed(1)  # ViTMAE draws numbers even with nothing masked
    second = encoder(pixels)
    assert torch.equal(first.patch_map, second.patch_map)
    alone = torch.cat([encoder(pixels[i : i + 1]).patch_map for i in range(3)])
    torch.testing.assert_close(first.patch_map, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_patches_are_where_they_are_in_the_image(encoders, family):
    """What is changed in one corner changes the features there most: neither shuffled (ViTMAE) nor
    transposed."""
    encoder = encoders(family)
    layer = 1 if encoder.num_layers == 4 else encoder.num_layers
    pixels = pixels_for(encoder, 1)
    changed = pixels.clone()
    side = encoder.transform.size[0] // 4
    changed[..., :side, -side:] += 3
    difference = (encoder(changed, [layer]).patch_map - encoder(pixels, [layer]).patch_map).norm(dim=1)[0]
    row, column = divmod(int(difference.argmax()), difference.shape[1])
    assert row < difference.shape[0] / 2 and column >= difference.shape[1] / 2


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_other_sizes(encoders, family):
    encoder = encoders(family)
    height, width = 2 * encoder.stride, 3 * encoder.stride
    if family in NATIVE_SIZE_ONLY:
        with pytest.raises(UserError, match=f"{height} x {width}|size"):
            encoder(pixels_for(encoder, 1, (height, width)))
    else:
        assert (
            encoder(pixels_for(encoder, 1, (height, width))).patch_map.shape[-2:]
            == (2, 3)
            == encoder.grid(height, width)
        )
        with pytest.raises(UserError, match="no multiple of the stride"):
            encoder(pixels_for(encoder, 1, (height + 1, width)))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_layers(encoders, family):
    encoder = encoders(family)
    pixels = pixels_for(encoder, 2)
    together = encoder(pixels, [1, -1])
    assert [layer.number for layer in together.layers] == [
        1,
        encoder.num_layers,
    ] and together.patch_map is together.layers[-1].patch_map
    for number in (1, encoder.num_layers):
        alone = encoder(pixels, [number])
        expected = next(layer for layer in together.layers if layer.number == number)
        torch.testing.assert_close(alone.patch_map, expected.patch_map, rtol=1e-5, atol=1e-6)
        if alone.pooled is not None:
            torch.testing.assert_close(alone.pooled, together.pooled, rtol=1e-5, atol=1e-6)
    for wrong in ([], [0], [encoder.num_layers + 1]):
        with pytest.raises(UserError, match="do not exist"):
            encoder(pixels, wrong)


@pytest.mark.parametrize("family", sorted({*FAMILY_NAMES} - {*STAGES, "internvl", "radio"}))
def test_the_norm_can_be_left_out(encoders, family):
    """Behind a norm, every patch has the same length (with random weights the norm's own are still
    1 and 0), before it they differ."""
    normed, raw = encoders(family), load_encoder(f"tiny:{family}", norm=False)
    pixels = pixels_for(normed, 2)
    for number in (2, normed.num_layers):
        lengths = normed(pixels, [number]).patch_map.norm(dim=1)
        assert normed(pixels, [number]).normalised and not raw(pixels, [number]).normalised
        assert not torch.allclose(raw(pixels, [number]).patch_map, normed(pixels, [number]).patch_map)
        torch.testing.assert_close(
            lengths, torch.full_like(lengths, lengths.mean().item()), rtol=0.02, atol=0
        )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_saved_and_loaded_it_is_bit_for_bit_the_same(encoders, family, tmp_path):
    encoder = encoders(family)
    save_encoder(encoder, tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    pixels = pixels_for(encoder)
    assert torch.equal(encoder(pixels).patch_map, loaded(pixels).patch_map)
    assert encoder.pooled_width is None or torch.equal(encoder(pixels).pooled, loaded(pixels).pooled)
    with pytest.raises(UserError, match="not empty"):
        save_encoder(encoder, tmp_path / "encoder")


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_config_alone_makes_the_same_shape(encoders, family):
    encoder = encoders(family)
    config = EncoderConfig.from_dict(json.loads(json.dumps(encoder.config().to_dict())))
    with torch.device("meta"):
        built = build_encoder(config)
    assert all(parameter.device.type == "meta" for parameter in built.parameters())
    assert {name: value.shape for name, value in built.state_dict().items()} == {
        n: v.shape for n, v in encoder.state_dict().items()
    }
    assert built.transform == encoder.transform


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_frozen_means_no_gradient_and_no_growth(encoders, family):
    encoder = encoders(family)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    pixels = pixels_for(encoder).requires_grad_()
    features = encoder(pixels)
    assert not features.patch_map.requires_grad and features.patch_map.grad_fn is None
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    del features
    tensors = []
    gc.freeze()  # what was there before is neither looked through nor counted
    try:
        for _ in range(3):
            encoder(pixels)
            gc.collect()
            tensors.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    finally:
        gc.unfreeze()
    assert tensors[2] <= tensors[1]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_unfrozen_it_trains(family):
    encoder = load_encoder(f"tiny:{family}", frozen=False).train()
    encoder(pixels_for(encoder)).patch_map.square().mean().backward()
    assert (
        sum(parameter.grad is not None for parameter in encoder.parameters())
        > len(list(encoder.parameters())) / 3
    )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_bfloat16(encoders, family):
    half = load_encoder(f"tiny:{family}", dtype=torch.bfloat16)
    pixels = pixels_for(half)
    exact, rounded = encoders(family)(pixels).patch_map, half(pixels).patch_map
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("family", ["dinov2", "siglip", "vit_mae", "timm_vit", "open_clip_vit"])
def test_compiled(encoders, family):
    encoder = load_encoder(f"tiny:{family}")
    pixels = pixels_for(encoder)
    compiled = torch.compile(encoder, backend="aot_eager")
    torch.testing.assert_close(compiled(pixels).patch_map, encoder(pixels).patch_map, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", sorted(STAGES))
def test_stages_have_their_own_widths_and_grids(encoders, family):
    encoder = encoders(family)
    layers = encoder(pixels_for(encoder, 1), range(1, encoder.num_layers + 1)).layers
    widths, rows = (
        [layer.patch_map.shape[1] for layer in layers],
        [layer.patch_map.shape[2] for layer in layers],
    )
    assert (
        widths == sorted(widths)
        and rows == sorted(rows, reverse=True)
        and rows[-1] * encoder.stride == encoder.transform.size[0]
    )
    assert not any(layer.normalised for layer in layers[:-1])


def test_a_reload_in_a_fresh_process_needs_no_network(runs, encoders, tmp_path):
    save_encoder(encoders("siglip"), tmp_path / "encoder")
    code = (
        "import sys, torch\nfrom encoders import load_encoder\n"
        "patch_map = load_encoder(sys.argv[1])(torch.ones(1, 3, 64, 64)).patch_map\n"
        "print([patch_map.double().sum().item()])"
    )
    printed = runs.finish(runs.start_plain(code, tmp_path / "encoder", project=True))
    assert str([encoders("siglip")(torch.ones(1, 3, 64, 64)).patch_map.double().sum().item()]) in printed
