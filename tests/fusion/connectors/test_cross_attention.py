"""A vision cross-attention layer against the published formula in float64 loops, its two paths
against each other."""

import copy

import numpy as np
import pytest
import torch

from fusion.connectors.cross_attention import VisionCrossAttentionLayer
from fusion.connectors.windows import VisionWindows

WIDTH, HEADS, QUERY_WIDTH = 24, 4, 40


def make(sizes, shaken, masked=False, queries=6, **options):
    torch.manual_seed(0)
    layer = shaken(VisionCrossAttentionLayer(QUERY_WIDTH, WIDTH, HEADS, sizes, **options))
    masks = [torch.rand(queries, size) > 0.4 if masked and size > 1 else None for size in sizes]
    for mask in masks:
        if mask is not None:
            mask[:, 0] |= ~mask.any(1)
    tokens = tuple(2 * torch.randn(queries, size, WIDTH) + 0.7 for size in sizes)
    windows = VisionWindows(tokens, tuple(masks), torch.randn(2, WIDTH), torch.arange(queries) % 2)
    return layer, windows, torch.randn(queries, QUERY_WIDTH)


def published(layer):
    """The layer's tensors by their published names, in float64."""
    attention, out = layer.attention, {}
    for name in ("proj_context", "proj_in"):
        out[f"{name}.weight"] = getattr(layer, name).weight
    out |= {"norm.weight": layer.norm.weight, "norm.bias": layer.norm.bias}
    out |= {
        "proj_out.linear_1.weight": layer.proj_out[0].weight,
        "proj_out.linear_2.weight": layer.proj_out[2].weight,
    }
    out |= {
        "cross_attn.q_proj.0.weight": attention.q_norm.weight,
        "cross_attn.q_proj.0.bias": attention.q_norm.bias,
    }
    out |= {
        "cross_attn.q_proj.1.weight": attention.q_proj.weight,
        "cross_attn.o_proj.weight": attention.o_proj.weight,
    }
    positions = iter(layer.positions)
    for i, size in enumerate(attention.window_sizes):
        for letter, norms, projections in (
            ("k", attention.k_norms, attention.k_projs),
            ("v", attention.k_norms if attention.shared_norms else attention.v_norms, attention.v_projs),
        ):
            (out[f"cross_attn.{letter}_proj_{i}.0.weight"], out[f"cross_attn.{letter}_proj_{i}.0.bias"]) = (
                norms[i].weight,
                norms[i].bias,
            )
            out[f"cross_attn.{letter}_proj_{i}.1.weight"] = projections[i].weight
        if size > 1:
            out[f"pos_embed_{i}"] = next(positions)
    return {name: tensor.detach().double().numpy() for name, tensor in out.items()}


@pytest.mark.parametrize("path", ["plain", "fast"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("sizes", "masked"),
    [((1,), False), ((1, 1, 1, 16), False), ((4, 1, 9), True), ((16,), True), ((4, 4), True)],
)
def test_the_layer_is_the_published_formula(references, shaken, path, shared, sizes, masked):
    layer, windows, queries = make(sizes, shaken, masked, shared_norms=shared)
    weights = published(layer)
    expected = []
    for n, query in enumerate(queries.double().numpy()):
        known = [
            [True] * size if mask is None else mask[n].tolist()
            for mask, size in zip(windows.masks, sizes, strict=True)
        ]
        of_encoders = [tokens[n].double().numpy() for tokens in windows.tokens]
        context = windows.context[windows.image_index[n]].double().numpy()
        expected.append(references[0](weights, query, context, of_encoders, known, HEADS))
    expected = torch.from_numpy(np.stack(expected))
    result = layer(queries, windows, path).double()
    assert (result - expected).norm() / expected.norm() < 1e-6  # asked: 1e-5


@pytest.mark.parametrize("constant_query", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_paths_agree_forward_and_backward(shaken, masked, constant_query):
    layer, windows, queries = make((1, 4, 1, 16), shaken, masked)
    queries = queries[:1] if constant_query else queries
    results = []
    for path in ("plain", "fast"):
        twin = copy.deepcopy(layer)
        leaves = [tensor.clone().requires_grad_() for tensor in (queries, windows.context, *windows.tokens)]
        output = twin(
            leaves[0], VisionWindows(tuple(leaves[2:]), windows.masks, leaves[1], windows.image_index), path
        )
        output.square().sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in (*leaves, *twin.parameters()))])
    for plain, fast in zip(*results, strict=True):
        assert (plain - fast).norm() <= 1e-5 * plain.norm()


@pytest.mark.parametrize("path", ["plain", "fast"])
def test_a_query_is_changed_by_its_own_windows_context_and_query_only(shaken, path):
    layer, windows, queries = make((1, 4), shaken)

    def changed(tokens=None, context=None, queries=queries):
        other = VisionWindows(
            tokens or windows.tokens,
            windows.masks,
            windows.context if context is None else context,
            windows.image_index,
        )
        difference = (layer(queries, other, path) - layer(queries_before, windows, path)).abs().amax(1)
        return (difference > 1e-6).tolist()

    queries_before = queries
    for encoder in (0, 1):
        tokens = [tokens.clone() for tokens in windows.tokens]
        tokens[encoder][2, -1] += torch.randn(WIDTH)
        assert changed(tokens=tuple(tokens)) == [n == 2 for n in range(6)]
    context = windows.context.clone()
    context[1] += torch.randn(WIDTH)
    assert changed(context=context) == [n % 2 == 1 for n in range(6)]
    moved = queries.clone()
    moved[4] += torch.randn(QUERY_WIDTH)
    assert changed(queries=moved) == [n == 4 for n in range(6)]


def test_masked_tokens_change_nothing(shaken):
    layer, windows, queries = make((1, 9), shaken, masked=True)
    hidden = ~windows.masks[1]
    assert hidden.any()
    other = windows.tokens[1].clone()
    other[hidden] = torch.randn(int(hidden.sum()), WIDTH) * 9
    for path in ("plain", "fast"):
        result = layer(
            queries,
            VisionWindows((windows.tokens[0], other), windows.masks, windows.context, windows.image_index),
            path,
        )
        assert torch.allclose(result, layer(queries, windows, path), atol=1e-6)


class Counter:
    """Of the values that autograd keeps."""

    values = 0

    def count(self, tensor):
        self.values += tensor.numel()
        return tensor


def test_checkpointing_keeps_less_and_gives_the_same_gradients(shaken):
    layer, windows, queries = make((1, 16), shaken)
    kept, gradients = [], []
    for checkpointed in (False, True):
        twin = copy.deepcopy(layer).train()
        twin.gradient_checkpointing = checkpointed
        leaves = [tensor.clone().requires_grad_() for tensor in windows.tokens]
        counter = Counter()
        with torch.autograd.graph.saved_tensors_hooks(counter.count, lambda tensor: tensor):
            output = twin(
                queries, VisionWindows(tuple(leaves), windows.masks, windows.context, windows.image_index)
            )
        output.square().sum().backward()
        kept.append(counter.values)
        gradients.append([leaf.grad for leaf in (*leaves, *twin.parameters())])
    assert kept[1] < kept[0] / 3
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


def test_a_zero_initialised_layer_is_the_identity_and_can_leave_it(shaken):
    layer, windows, queries = make((1, 4), shaken, zero_init_output=True)
    output = layer(queries, windows)
    assert torch.equal(output, queries)
    output.square().sum().backward()
    assert layer.proj_out[2].weight.grad.abs().sum() > 0


def test_one_graph_is_enough_for_the_compiler(shaken):
    layer, windows, queries = make((1, 16), shaken)

    def run(queries, tokens, context, image):
        return layer(queries, VisionWindows(tokens, (None, None), context, image))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    result = compiled(queries, windows.tokens, windows.context, windows.image_index)
    assert torch.allclose(result, layer(queries, windows), atol=1e-6)


def test_half_precision_stays_near_single(shaken):
    layer, windows, queries = make((1, 1, 16), shaken)
    single = layer(queries, windows)
    half = layer.bfloat16()
    tokens = tuple(tokens.bfloat16() for tokens in windows.tokens)
    for path in ("plain", "fast"):
        result = half(
            queries.bfloat16(),
            VisionWindows(tokens, windows.masks, windows.context.bfloat16(), windows.image_index),
            path,
        )
        assert result.dtype == torch.bfloat16
        assert (result.float() - single).norm() / single.norm() < 0.02


def test_windows_split_by_image_and_join_again(shaken):
    _, windows, _ = make((1, 4), shaken, masked=True)
    windows.image_index = torch.tensor([0, 0, 1, 1, 1, 1])
    parts = windows.split([2, 4])
    parts[0].masks = (None, None)  # an image without padding among others that have some
    joined = VisionWindows.join(parts)
    assert torch.equal(joined.image_index, windows.image_index)
    assert torch.equal(joined.context, windows.context)
    assert all(torch.equal(one, other) for one, other in zip(joined.tokens, windows.tokens, strict=True))
    assert joined.masks[0] is None
    assert joined.masks[1][:2].all()
    assert torch.equal(joined.masks[1][2:], windows.masks[1][2:])
