"""The loss at learnt positions alone is the language model's own loss."""

import pytest
import torch

from fusion.supervised_loss import supervised_loss
from fusion.tiny import FAMILIES, tiny_language_model


def batch(vocabulary, learnt_share=0.3, shape=(3, 37)):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, shape, generator=generator)
    labels = torch.where(torch.rand(shape, generator=generator) < learnt_share, ids, -100)
    mask = torch.ones_like(ids)
    mask[1, 30:], labels[1, 30:] = 0, -100
    return ids, labels, mask


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_value_and_gradients_are_those_of_the_whole_logits(family, chunk):
    model, tokenizer = tiny_language_model(family)
    ids, labels, mask = batch(len(tokenizer))
    own = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    expected = torch.autograd.grad(own, list(model.parameters()), allow_unused=True)
    loss = supervised_loss(model, labels, chunk=chunk, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(loss, own, rtol=1e-6, atol=0)
    got = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["cohere", "granite"])
def test_families_that_scale_their_logits(family):
    sizes = {"logit_scale": 0.25} if family == "cohere" else {"logits_scaling": 4.0}
    model, tokenizer = _of(family, **sizes)
    ids, labels, mask = batch(len(tokenizer))
    own = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(
        supervised_loss(model, labels, chunk=5, input_ids=ids, attention_mask=mask), own, rtol=1e-6, atol=0
    )


def test_against_a_slow_loop_in_float64():
    model, tokenizer = tiny_language_model("llama")
    model.double()
    ids, labels, mask = batch(len(tokenizer))
    logits = model(input_ids=ids, attention_mask=mask).logits
    terms = [
        -logits[b, t].log_softmax(-1)[labels[b, t + 1]]
        for b in range(3)
        for t in range(ids.shape[1] - 1)
        if labels[b, t + 1] != -100
    ]
    # the sum is taken in float32
    loss = supervised_loss(model, labels, chunk=4, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(loss.double(), torch.stack(terms).mean(), rtol=1e-6, atol=0)


def test_number_of_items_of_a_step_divides():
    model, tokenizer = tiny_language_model("llama")
    ids, labels, mask = batch(len(tokenizer))
    loss, of_step = (
        supervised_loss(model, labels, number, input_ids=ids, attention_mask=mask)
        for number in (None, torch.tensor(500))
    )
    torch.testing.assert_close(of_step * 500, loss * (labels[:, 1:] != -100).sum())


def test_nothing_learnt_is_zero_with_gradients():
    model, tokenizer = tiny_language_model("llama")
    ids, labels, mask = batch(len(tokenizer), learnt_share=0.0)
    loss = supervised_loss(model, labels, input_ids=ids, attention_mask=mask)
    loss.backward()
    assert loss == 0 and all(
        parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters()
    )


def test_logits_of_other_positions_are_not_computed():
    model, tokenizer = tiny_language_model("qwen3")
    ids, labels, mask = batch(len(tokenizer))
    rows = []
    head = model.get_output_embeddings()
    linear = head.forward

    def counted(states):
        rows.append(states.shape[:-1].numel())
        return linear(states)

    head.forward = counted
    supervised_loss(model, labels, chunk=8, input_ids=ids, attention_mask=mask)
    assert sum(rows) == (labels[:, 1:] != -100).sum() and max(rows) == 8


@pytest.mark.parametrize("learnt_share", [0.0, 0.3, 1.0])
def test_the_head_is_called_once_whatever_is_learnt(learnt_share):
    """What shards its weight gathers it around every call, on all processes together; so hooks see
    one call forward and one backward."""
    model, tokenizer = tiny_language_model("qwen3")
    ids, labels, mask = batch(len(tokenizer), learnt_share)
    calls, head = [], model.get_output_embeddings()
    head.register_forward_hook(lambda *_: calls.append("forward"))
    head.register_full_backward_hook(lambda *_: calls.append("backward"))
    supervised_loss(model, labels, chunk=8, input_ids=ids, attention_mask=mask).backward()
    assert calls == ["forward", "backward"] and "forward" not in vars(head)


def test_logits_that_an_unknown_setting_changes_are_noticed(monkeypatch):
    model, tokenizer = _of("granite", logits_scaling=4.0)
    ids, labels, mask = batch(len(tokenizer))
    monkeypatch.setattr("fusion.supervised_loss.AFTER_THE_HEAD", ())
    with pytest.raises(AssertionError, match="GraniteForCausalLM changes its logits"):
        supervised_loss(model, labels, input_ids=ids, attention_mask=mask)


def _of(family, **sizes):
    from transformers import AutoConfig, AutoModelForCausalLM

    from fusion.tiny import SIZES, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), **SIZES, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval(), tokenizer
