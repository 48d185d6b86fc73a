"""Gated soft-prompt attention against equation 7 as printed, and the module that holds it.

Sizes: b=2, h=6 query heads in g=2 groups of r=3, s=4 query and t=5 key positions, p=7, d=8, m=20.
"""

import math

import pytest
import torch
from einops import rearrange, reduce, repeat
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from llama_adapter_edu import AdaptionPrompt, gated_prompt_attention
from llama_adapter_edu.method.attention import attention_scores, causal_attention, repeat_kv_heads
from llama_adapter_edu.method.gated_prompts import (
    GATE_ACTIVATIONS,
    prompt_attention,
    prompt_keys_values,
    prompt_scores,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def inputs(seed):
    """query (b h s d), prompt key and prompt value (g p d), and a gate for each head."""
    return torch.randn(2, 6, 4, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 8), torch.randn(6)


def one_for_each_query_head(x):
    return repeat(x, "g p d -> b (g r) p d", b=2, r=3)


def equation_7(query, key, value, prompt_key, prompt_value, gate):
    """Eq. 5 to 8, query by query: join all keys, split the softmax, sum all values."""
    n_prompts, n_earlier = prompt_key.shape[1], key.shape[2] - query.shape[2]
    result = torch.empty_like(query)
    for b, h, s in torch.cartesian_prod(*[torch.arange(n) for n in query.shape[:3]]).tolist():
        group, n_words = h // 3, n_earlier + s + 1
        keys = torch.cat([prompt_key[group], key[b, group, :n_words]])
        values = torch.cat([prompt_value[group], value[b, group, :n_words]])
        scores = keys @ query[b, h, s] / math.sqrt(query.shape[-1])
        of_prompts = math.tanh(gate[h]) * scores[:n_prompts].softmax(0)
        result[b, h, s] = torch.cat([of_prompts, scores[n_prompts:].softmax(0)]) @ values
    return result


def test_words_plus_gated_prompts_is_equation_7(inputs):
    query, prompt_key, prompt_value, gate = inputs
    key, value = torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    expected = equation_7(query, key, value, prompt_key, prompt_value, gate)
    words = causal_attention(query, key, value)
    torch.testing.assert_close(words + gated_prompt_attention(*inputs), expected, rtol=0, atol=1e-5)


def test_weights_of_words_and_prompts_sum_to_one_plus_tanh_of_the_gate(inputs):
    query, prompt_key, _, gate = inputs
    ones = torch.ones(2, 7, 8)
    added = gated_prompt_attention(query, prompt_key, ones, gate)
    expected = repeat(gate.tanh(), "h -> b h s d", b=2, s=4, d=8)
    torch.testing.assert_close(added, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_gate_adds_exactly_nothing(inputs, dtype):
    query, key, value, _ = (x.to(dtype) for x in inputs)
    added = gated_prompt_attention(query, key, value, torch.zeros(6))
    assert torch.count_nonzero(added) == 0
    words = torch.randn(2, 6, 4, 8).to(dtype)
    assert torch.equal(words + added, words)


def test_one_gate_for_a_layer_is_equal_gates_for_all_heads(inputs):
    *rest, _ = inputs
    per_layer = gated_prompt_attention(*rest, torch.tensor([0.7]))
    assert torch.equal(per_layer, gated_prompt_attention(*rest, torch.full((6,), 0.7)))


def test_each_head_has_its_own_gate(inputs):
    *rest, _ = inputs
    only_head_4 = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, 0.0])
    added = gated_prompt_attention(*rest, only_head_4)
    assert reduce(added.abs(), "b h s d -> h", "max").nonzero().flatten().tolist() == [4]


def test_gate_activation_is_tanh_unless_another_is_given(inputs):
    *rest, gate = inputs
    as_printed = gated_prompt_attention(*rest, gate, activation=lambda g: g)
    attended = prompt_attention(*rest)
    torch.testing.assert_close(as_printed, rearrange(gate, "h -> h 1 1") * attended)
    torch.testing.assert_close(
        gated_prompt_attention(*rest, gate), rearrange(gate.tanh(), "h -> h 1 1") * attended
    )


def test_grouped_heads_equal_repeated_heads(inputs):
    query, key, value, _ = inputs
    batch_key = repeat(key, "g p d -> b g p d", b=2)
    expected = attention_scores(query, repeat_kv_heads(batch_key, 3))
    torch.testing.assert_close(prompt_scores(query, key), expected)
    repeated_key, repeated_value = (x.repeat_interleave(3, dim=0) for x in (key, value))
    torch.testing.assert_close(
        prompt_attention(query, key, value), prompt_attention(query, repeated_key, repeated_value)
    )


@pytest.mark.parametrize("scale", [None, 0.2])
def test_prompt_attention_is_plain_attention_over_the_prompts(inputs, scale):
    query, key, value, _ = inputs
    heads = one_for_each_query_head(key), one_for_each_query_head(value)
    expected = scaled_dot_product_attention(query, *heads, scale=scale)
    torch.testing.assert_close(prompt_attention(query, key, value, scale), expected)


def test_own_scale_reaches_the_gated_attention_and_the_module(inputs):
    query, key, value, gate = inputs
    expected = rearrange(gate.tanh(), "h -> h 1 1") * prompt_attention(query, key, value, 0.2)
    torch.testing.assert_close(gated_prompt_attention(*inputs, scale=0.2), expected)
    module = opened(AdaptionPrompt(7, 20, 6), gate)
    torch.testing.assert_close(module(query, key, value, 0.2), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_results_have_the_dtype_of_the_values(inputs, dtype):
    query, key, value, gate = inputs
    half = [x.to(dtype) for x in (query, key, value)]
    assert prompt_attention(*half).dtype == dtype
    assert gated_prompt_attention(*half, gate).dtype == dtype
    torch.testing.assert_close(
        gated_prompt_attention(*half, gate).float(),
        gated_prompt_attention(*inputs),
        rtol=0.05,
        atol=0.05,
    )


def test_keys_and_values_of_prompts_are_split_by_head():
    prompts, key_proj, value_proj = torch.randn(7, 20), nn.Linear(20, 16), nn.Linear(20, 16)
    key, value = prompt_keys_values(prompts, key_proj, value_proj, head_dim=8)
    for split, projected in ((key, key_proj(prompts)), (value, value_proj(prompts))):
        assert torch.equal(split, torch.stack([projected[:, :8], projected[:, 8:]]))


def test_gradients_reach_prompts_and_gates_through_frozen_projections(inputs):
    query, _, _, gate = inputs
    module = opened(AdaptionPrompt(7, 20, 6), gate)
    projections = [nn.Linear(20, 16).requires_grad_(False) for _ in range(2)]
    module(query, *prompt_keys_values(module.prompts, *projections, 8)).square().sum().backward()
    assert module.prompts.grad.abs().min() > 0
    assert module.gate.grad.abs().min() > 0
    assert all(p.grad is None for projection in projections for p in projection.parameters())


def test_gradients_reach_queries_keys_and_values(inputs):
    leaves = [x.requires_grad_() for x in inputs]
    gated_prompt_attention(*leaves).square().sum().backward()
    assert all(x.grad.abs().max() > 0 for x in leaves)


def opened(module, gate):
    with torch.no_grad():
        module.gate.copy_(gate)
    return module


@pytest.mark.parametrize("init_std", [1.0, 0.02])
def test_prompts_start_normal_and_gates_at_exactly_zero(init_std):
    module = AdaptionPrompt(100, 400, 6, init_std=init_std)
    assert module.prompts.std().item() == pytest.approx(init_std, rel=0.02)
    assert module.prompts.mean().item() == pytest.approx(0, abs=0.03 * init_std)
    assert within_one_std(module.prompts, init_std) == pytest.approx(0.683, abs=0.01)
    assert torch.equal(module.gate, torch.zeros(6))
    assert torch.equal(module.gate_opening, torch.zeros(6))


def within_one_std(x, std):
    """0.683 for a normal distribution, 0.577 for an even one of the same std."""
    return (x.abs() < std).float().mean().item()


def test_the_module_learns_two_tensors_only():
    sizes = {n: tuple(p.shape) for n, p in AdaptionPrompt(7, 20, 6).named_parameters()}
    assert sizes == {"prompts": (7, 20), "gate": (6,)}
    assert AdaptionPrompt(7, 20, 6, gate="per_layer").gate.shape == (1,)
    assert list(AdaptionPrompt(7, 20, 6).state_dict()) == ["prompts", "gate"]


def test_the_module_computes_with_its_gate_and_activation(inputs):
    query, key, value, gate = inputs
    module = opened(AdaptionPrompt(7, 20, 6, gate_activation="identity"), gate)
    expected = gated_prompt_attention(query, key, value, gate, lambda g: g)
    torch.testing.assert_close(module(query, key, value), expected)
    assert torch.equal(module.gate_opening, gate)


CASTS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "double": lambda module: module.double(),
    "to": lambda module: module.to(torch.float16),
}


@pytest.mark.parametrize("cast", CASTS)
def test_prompts_stay_float32_in_a_model_that_is_cast(cast):
    model = nn.ModuleDict({"base": nn.Linear(3, 3), "adapter": AdaptionPrompt(7, 20, 6)})
    before = {name: p.clone() for name, p in model["adapter"].named_parameters()}
    CASTS[cast](model)
    assert model["base"].weight.dtype != torch.float32
    for name, parameter in model["adapter"].named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name])


def test_prompts_move_with_the_model_and_stay_float32():
    module = AdaptionPrompt(7, 20, 6).to("meta", torch.float16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float32)}
    module.to_empty(device="cpu")
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("cpu", torch.float32)}
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in module.parameters())


def test_prompts_can_be_made_on_another_device():
    module = AdaptionPrompt(7, 20, 6, device="meta")
    assert {p.device.type for p in module.parameters()} == {"meta"}


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_the_module_computes_the_taught_function(activation):
    prompt = AdaptionPrompt(7, 12, 6, gate_activation=activation)
    with torch.no_grad():
        prompt.gate.normal_()
    query, key, value = torch.randn(2, 6, 5, 4), torch.randn(3, 7, 4), torch.randn(3, 7, 4)
    tensors = [tensor.requires_grad_() for tensor in (query, key, value)]
    opening = GATE_ACTIVATIONS[activation]
    results = (
        prompt(query, key, value, 0.3),
        gated_prompt_attention(query, key, value, prompt.gate, opening, 0.3),
    )
    torch.testing.assert_close(*results)
    weights = torch.randn_like(results[0])
    gradients = [torch.autograd.grad((r * weights).sum(), [*tensors, prompt.gate]) for r in results]
    for mine, right in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, right)
