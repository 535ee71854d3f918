"""The released Cambrian-1 layout, key by key, on a tiny checkpoint in that layout."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from encoders import load_encoder, save_encoder
from fusion.convert_cambrian import convert, new_name
from fusion.fuse import load_and_say
from fusion.fuse_args import RELEASED_ENCODERS
from fusion.tiny import tiny_language_model
from vision_core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HIDDEN, GRID = 32, 64, 4


def layer(prefix, query_width, windowed):
    """Published tensors of a sampler layer, as the specs list them."""
    shapes = {"proj_context.weight": (WIDTH, WIDTH), "proj_in.weight": (WIDTH, query_width + WIDTH)}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    shapes |= {"proj_out.linear_1.weight": (WIDTH, WIDTH), "proj_out.linear_2.weight": (query_width, WIDTH)}
    for part in ("q_proj", "k_proj_0", "v_proj_0", "k_proj_1", "v_proj_1"):
        shapes |= {
            f"cross_attn.{part}.0.weight": (WIDTH,),
            f"cross_attn.{part}.0.bias": (WIDTH,),
            f"cross_attn.{part}.1.weight": (WIDTH, WIDTH),
        }
    shapes |= {"cross_attn.o_proj.weight": (WIDTH, WIDTH)}
    shapes |= {f"pos_embed_{encoder}": (r * r, WIDTH) for encoder, r in windowed.items()}
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


@pytest.fixture
def published(tmp_path):
    """A folder in the published layout, its tensors, and the sources of its two encoders."""
    for name, family in (("one", "tiny:dinov2"), ("two", "tiny:clip")):
        save_encoder(load_encoder(family), tmp_path / name)
    language_model, tokenizer = tiny_language_model()
    shapes = {
        f"model.mm_projector_aux_{i}.{j}.weight": (WIDTH, 64 if j == 0 else WIDTH)
        for i in (0, 1)
        for j in (0, 2)
    }
    shapes |= {f"model.mm_projector_aux_{i}.{j}.bias": (WIDTH,) for i in (0, 1) for j in (0, 2, 3)}
    shapes |= {f"model.mm_projector_aux_{i}.3.weight": (WIDTH,) for i in (0, 1)}
    shapes |= {"model.mm_projector.0.weight": (HIDDEN, WIDTH), "model.mm_projector.0.bias": (HIDDEN,)}
    shapes |= {"model.mm_projector.2.weight": (HIDDEN, HIDDEN), "model.mm_projector.2.bias": (HIDDEN,)}
    shapes |= {"model.vision_query": (1, WIDTH), "model.image_newline": (HIDDEN,)}
    for depth in range(3):
        shapes |= layer(f"model.vision_sampler_0.layers.{depth}", WIDTH, {1: 2})
    for index in range(2):
        shapes |= layer(f"model.vision_sampler_layers.{index}.layers.0", HIDDEN, {1: 2})
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors |= {name: tensor.contiguous() for name, tensor in language_model.state_dict().items()}
    folder = tmp_path / "cambrian"
    folder.mkdir()
    names = sorted(tensors)
    for part, chosen in enumerate((names[::2], names[1::2])):
        save_file(
            {name: tensors[name] for name in chosen},
            folder / f"model-0000{part + 1}-of-00002.safetensors",
            metadata={"format": "pt"},
        )
    config = language_model.config.to_dict() | {
        "model_type": "cambrian_llama",
        "architectures": ["CambrianLlamaForCausalLM"],
        "image_token_len": GRID**2,
        "query_num_list": [GRID**2],
        "connector_only": False,
        "connector_depth": 3,
        "vision_hidden_size": WIDTH,
        "num_of_vision_sampler_layers": 2,
        "start_of_vision_sampler_layers": 0,
        "stride_of_vision_sampler_layers": 3,
        "image_position": 91,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return folder, tensors, [f"{tmp_path / 'one'}?grid=4", f"{tmp_path / 'two'}?grid=8"]


def test_every_tensor_finds_its_place(published, references, pictures):
    folder, tensors, encoders = published
    model, processor = convert(folder, encoders)
    state = model.state_dict()
    grids = (GRID, (GRID,), (4, 8))
    for name, tensor in tensors.items():
        is_language = name.startswith(("model.embed_tokens", "model.layers", "model.norm", "lm_head"))
        ours = state[f"language_model.{name}" if is_language else new_name(name, *grids)]
        assert torch.equal(ours[: len(tensor)], tensor), name  # the embeddings have a row more, for <image>
    assert model.config.sva_layers == [0, 3]
    assert model.config.vision_config.mask_rule == "published"
    # what the tensors mean: the connector on a square image against the published formula
    weights = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    inputs = processor.image_processor(pictures[2])
    from fusion.modeling_fused_vision import resized_map

    maps = [
        resized_map(encoder(pixels), side)[0].double().numpy()
        for encoder, pixels, side in zip(
            model.vision_model.encoders,
            processor.image_processor.views(inputs["pixel_values"]),
            (4, 8),
            strict=True,
        )
    ]
    valid = [torch.ones(side, side).numpy() for side in (4, 8)]
    expected = torch.from_numpy(references[1](weights, maps, valid, GRID, (GRID,), depth=3, num_heads=16))
    image = model.vision_model.encode(**inputs)[0]
    tokens = image.tokens[image.cells].double()
    assert (tokens - expected).norm() / expected.norm() < 1e-5


def test_the_command(runs, published, tmp_path, pictures):
    folder, _, encoders = published
    arguments = ("--checkpoint", folder, "--encoders", *encoders, "--output_dir", tmp_path / "ours")
    runs.finish(
        runs.launch(
            [sys.executable, "-m"],
            "fusion.convert_cambrian",
            *arguments,
            environment={"PYTHONPATH": str(ROOT)},
        )
    )
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    inputs = processor(text=["<image> what"], images=pictures[:1], return_tensors="pt")
    in_memory, _ = convert(folder, encoders)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, in_memory(**inputs).logits)


def test_what_does_not_fit_is_refused(published, tmp_path):
    folder, tensors, encoders = published
    with pytest.raises(UserError, match="nowhere holds no model: it is no folder at all"):
        convert(tmp_path / "nowhere", encoders)
    with pytest.raises(UserError, match="not a tensor of the published"):
        new_name("model.vision_tower.x", GRID, (GRID,), (4, 8))
    with pytest.raises(UserError, match="not a tensor of the published"):
        new_name("model.vision_sampler_0.layers.0.gate", GRID, (GRID,), (4, 8))
    with pytest.raises(UserError, match="one token per window here"):
        new_name("model.vision_sampler_0.layers.0.pos_embed_0", GRID, (GRID,), (4, 8))
    with pytest.raises(UserError, match="are encoders and grids those of the checkpoint"):
        convert(folder, encoders[:1])
    file = folder / "model-00001-of-00002.safetensors"
    kept = load_file(file)
    for kind in ("vision_sampler", "model.layers"):
        gone = {
            name: tensor
            for name, tensor in kept.items()
            if name != next(each for each in sorted(kept) if kind in each)
        }
        save_file(gone, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"the checkpoint has no .*\(1 in all\)"):
            convert(folder, encoders)
    config = json.loads((folder / "config.json").read_text())
    save_file(kept, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if name != "connector_depth"})
    )
    with pytest.raises(UserError, match="does not say connector_depth"):
        convert(folder, encoders)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    with pytest.raises(UserError, match="type 'llava' is not a released Cambrian-1's"):
        convert(folder, encoders)


def test_the_released_encoders_are_written_as_the_command_reads_them():
    """Their weights cannot be had here; that their texts are read is what can be checked."""
    for text in RELEASED_ENCODERS:
        with pytest.raises(UserError) as refused:
            load_and_say(text)
        assert "unknown option" not in str(refused.value)
        assert "no whole number" not in str(refused.value)
