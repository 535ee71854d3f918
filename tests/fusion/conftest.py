"""The published aggregator as slow loops in float64, tiny fused models, and pictures of several
shapes."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from fusion.assemble import assemble_vlm, fuse_encoders
from fusion.convert_cambrian import new_name
from fusion.tiny import tiny_language_model, tiny_tokenizer

SMALL = {"width": 16, "num_heads": 4, "depth": 2}


def layer_norm(x, weight, bias, eps=1e-5):
    return (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + eps) * weight + bias


def gelu(x):
    return np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x])


def reference_layer(p, query, context, windows, masks, num_heads):
    """specs of the released layer, one query at a time. p: published names to float64 arrays;
    windows: of each encoder [r * r, C]; masks: lists of bool."""
    h = p["proj_in.weight"] @ np.concatenate([query, p["proj_context.weight"] @ context])
    q = p["cross_attn.q_proj.1.weight"] @ layer_norm(
        h, p["cross_attn.q_proj.0.weight"], p["cross_attn.q_proj.0.bias"]
    )
    keys, values = [], []
    for i, (window, mask) in enumerate(zip(windows, masks, strict=True)):
        for j in range(len(window)):
            x = window[j] + (p[f"pos_embed_{i}"][j] if len(window) > 1 else 0)
            if mask[j]:
                for out, letter in ((keys, "k"), (values, "v")):
                    name = f"cross_attn.{letter}_proj_{i}"
                    out.append(
                        p[f"{name}.1.weight"] @ layer_norm(x, p[f"{name}.0.weight"], p[f"{name}.0.bias"])
                    )
    d = len(q) // num_heads
    attended = np.zeros(len(q))
    for head in range(num_heads):
        part = slice(head * d, (head + 1) * d)
        scores = np.array([q[part] @ key[part] / math.sqrt(d) for key in keys])
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        attended[part] = sum(weight * value[part] for weight, value in zip(weights, values, strict=True))
    h = layer_norm(h + p["cross_attn.o_proj.weight"] @ attended, p["norm.weight"], p["norm.bias"])
    return query + p["proj_out.linear_2.weight"] @ gelu(p["proj_out.linear_1.weight"] @ h)


def reference_aggregator(p, maps, valid, grid, group_grids, depth, num_heads):
    """The connector for one image: maps [C_i, g_i, g_i], valid: masks [g_i, g_i] of each encoder.
    Returns [grid * grid, H] of all cells."""
    projected = []
    for i, patch_map in enumerate(maps):
        name, out = (
            f"model.mm_projector_aux_{i}",
            np.zeros((*patch_map.shape[1:], len(p[f"model.mm_projector_aux_{i}.0.bias"]))),
        )
        for row in range(patch_map.shape[1]):
            for column in range(patch_map.shape[2]):
                x = gelu(p[f"{name}.0.weight"] @ patch_map[:, row, column] + p[f"{name}.0.bias"])
                x = p[f"{name}.2.weight"] @ x + p[f"{name}.2.bias"]
                out[row, column] = layer_norm(x, p[f"{name}.3.weight"], p[f"{name}.3.bias"])
        projected.append(out)
    context = projected[0].reshape(-1, projected[0].shape[-1]).mean(0)
    groups = []
    for g, side in enumerate(group_grids):
        tokens = np.zeros((side, side, projected[0].shape[-1]))
        for row in range(side):
            for column in range(side):
                windows, masks = [], []
                for out, mask in zip(projected, valid, strict=True):
                    r = out.shape[0] // side
                    under = [(row * r + u, column * r + v) for u in range(r) for v in range(r)]
                    windows.append(np.stack([out[place] for place in under]))
                    known = [bool(mask[place]) for place in under]
                    masks.append(known if any(known) else [True] * len(known))
                query = p["model.vision_query"][g]
                for layer in range(depth):
                    prefix = f"model.vision_sampler_{g}.layers.{layer}."
                    own = {
                        name.removeprefix(prefix): value
                        for name, value in p.items()
                        if name.startswith(prefix)
                    }
                    query = reference_layer(own, query, context, windows, masks, num_heads)
                tokens[row, column] = query
        if side != grid:
            resized = torch.nn.functional.interpolate(
                torch.from_numpy(tokens).movedim(-1, 0)[None], size=(grid, grid), mode="bilinear"
            )
            tokens = resized[0].movedim(0, -1).numpy()
        groups.append(tokens.reshape(grid * grid, -1))
    joined = np.concatenate(groups, axis=1)
    hidden = np.stack(
        [gelu(p["model.mm_projector.0.weight"] @ row + p["model.mm_projector.0.bias"]) for row in joined]
    )
    return hidden @ p["model.mm_projector.2.weight"].T + p["model.mm_projector.2.bias"]


def published_names(connector):
    """Published tensors of one of our aggregators, by running the converter's renaming backwards
    over all names that the layout has."""
    count = len(connector.encoder_grids)
    layer = [
        "proj_context.weight",
        "proj_in.weight",
        "norm.weight",
        "norm.bias",
        "proj_out.linear_1.weight",
        "proj_out.linear_2.weight",
    ]
    layer += [
        "cross_attn.q_proj.0.weight",
        "cross_attn.q_proj.0.bias",
        "cross_attn.q_proj.1.weight",
        "cross_attn.o_proj.weight",
    ]
    layer += [
        f"cross_attn.{k}_proj_{i}.{rest}"
        for k in "kv"
        for i in range(count)
        for rest in ("0.weight", "0.bias", "1.weight")
    ]
    names = ["model.vision_query", "model.image_newline"]
    names += [f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    names += [
        f"model.mm_projector_aux_{i}.{j}.{kind}"
        for i in range(count)
        for j in (0, 2, 3)
        for kind in ("weight", "bias")
    ]
    for g, side in enumerate(connector.group_grids):
        places = [f"pos_embed_{i}" for i, grid in enumerate(connector.encoder_grids) if grid > side]
        names += [
            f"model.vision_sampler_{g}.layers.{d}.{name}"
            for d in range(len(connector.vision_sampler[g]))
            for name in [*layer, *places]
        ]
    grids = connector.grid, connector.group_grids, connector.encoder_grids
    return {name: new_name(name, *grids).removeprefix("vision_model.connector.") for name in names}


@pytest.fixture
def references():
    """(reference_layer, reference_aggregator, published_names)."""
    return reference_layer, reference_aggregator, published_names


@pytest.fixture
def shaken():
    """Gives every norm of a module an affine of its own: with ones and zeros a wrong one would not
    show."""

    def shake(module):
        generator = torch.Generator().manual_seed(3)
        for name, parameter in module.named_parameters():
            if "norm" in name or parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        return module

    return shake


@pytest.fixture(scope="session")
def fused():
    """`fused(connector, encoders, ...)`: a tiny fused vision model and its image processor."""

    def build(connector="sva", encoders=("tiny:dinov2", "tiny:timm_siglip"), hidden_size=64, **options):
        if connector == "sva":
            options.setdefault("connector_options", SMALL)
        options = {"grid": 4, "encoder_grids": [4, 8][: len(encoders)], **options}
        return fuse_encoders(list(encoders), hidden_size=hidden_size, connector=connector, **options)

    return build


@pytest.fixture(scope="session")
def vlm(fused):
    """`vlm(family, ...)`: a tiny vision-language model and its processor; by default with two
    vision layers in the language model."""

    def build(family="llama", vision=None, sizes=None, **options):
        options = {"num_sva_layers": 2, "sva_stride": 2, **options}
        return assemble_vlm((vision or fused())[0], *tiny_language_model(family, **(sizes or {})), **options)

    return build


@pytest.fixture(scope="session")
def pictures():
    """Noise of five shapes, the last of one pixel."""
    generator = np.random.default_rng(0)
    shapes = [(60, 80), (90, 30), (64, 64), (20, 64), (1, 1)]
    return [Image.fromarray(generator.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


LLAVA_TEMPLATE = """\
{%- for message in messages -%}
{%- for part in message['content'] -%}{{ '<image>' if part['type'] == 'image' else part['text'] }}{%- endfor -%}
{%- endfor -%}"""


def build_tiny_llava():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.padding_side = "left"
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return LlavaForConditionalGeneration(config).eval(), processor


@pytest.fixture(scope="session")
def tiny_llava():
    """`tiny_llava()`: transformers' own model with one encoder, untrained, and its processor."""
    return build_tiny_llava
