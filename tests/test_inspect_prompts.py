"""`prompt_weights`: what each head looks at among the prompts, from a run of the model itself."""

import pytest
import torch

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    disable_adapter,
    prompt_weights,
    set_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.method.attention import AttentionLayer

N_HEADS, N_KV_HEADS, HEAD_DIM = 6, 2, 8
SETTINGS = AdaptionPromptConfig(adapter_len=7, adapter_layers=2)


@pytest.fixture
def model(tiny):
    """Three layers, prompts in the upper two, gates open."""
    model = add_adaption_prompts(tiny(attn_implementation="sdpa"), SETTINGS)
    for prompt in adapter_prompts(model, "default").values():
        torch.nn.init.normal_(prompt.gate)
    return model


@pytest.fixture
def words():
    return torch.randint(3, 96, (3, 5), generator=torch.Generator().manual_seed(1))


def weights_by_loop(model, number, hidden):
    """Head by head, from the layer's input: an own query, an own softmax."""
    attention = model.model.layers[number].self_attn
    _, query = AttentionLayer.from_llama(attention)(hidden)
    prompts = attention.adaption_prompts["default"].prompts
    keys = attention.k_proj(prompts).split(HEAD_DIM, dim=-1)
    heads = []
    for head in range(N_HEADS):
        key = keys[head // (N_HEADS // N_KV_HEADS)]
        heads.append((query[:, head] @ key.T / HEAD_DIM**0.5).softmax(dim=-1))
    return torch.stack(heads, dim=1)


def test_weights_are_those_of_each_layers_own_queries(model, words):
    inputs = {}
    for number in (1, 2):
        model.model.layers[number].self_attn.register_forward_pre_hook(
            lambda _, args, kwargs, number=number: inputs.update({number: kwargs["hidden_states"]}),
            with_kwargs=True,
        )
    weights = prompt_weights(model, words)
    assert list(weights) == [1, 2]
    for number, hidden in inputs.items():
        torch.testing.assert_close(weights[number], weights_by_loop(model, number, hidden))


def test_weights_sum_to_one_and_do_not_depend_on_the_layers_own_gate(model, words):
    before = prompt_weights(model, words)[2]
    with torch.no_grad():
        adapter_prompts(model, "default")[2].gate.zero_()
    after = prompt_weights(model, words)[2]
    assert after.shape == (3, N_HEADS, 5, 7)
    torch.testing.assert_close(after.sum(dim=-1), torch.ones(3, N_HEADS, 5))
    assert torch.equal(before, after)


def test_the_active_adapter_is_the_one_looked_into(model, words):
    add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=4, adapter_layers=1), "second")
    assert {n: w.shape[-1] for n, w in prompt_weights(model, words).items()} == {2: 4}
    set_adapter(model, "default")
    assert {n: w.shape[-1] for n, w in prompt_weights(model, words).items()} == {1: 7, 2: 7}


def test_other_inputs_reach_the_model(model, words):
    left_padded = torch.cat([torch.zeros(3, 2, dtype=torch.long), words], dim=1)
    mask = (left_padded != 0).long()
    position = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    padded = prompt_weights(model, left_padded, attention_mask=mask, position_ids=position)
    for number, weights in prompt_weights(model, words).items():
        torch.testing.assert_close(padded[number][:, :, 2:], weights)


def test_looking_inside_changes_nothing(model, words):
    before = model(words).logits
    weights = prompt_weights(model, words)
    assert torch.equal(model(words).logits, before)
    assert not any(w.requires_grad for w in weights.values())
    assert torch.is_grad_enabled()


def test_half_precision_models_give_float32_weights(tiny, words):
    model = add_adaption_prompts(tiny(dtype=torch.bfloat16), SETTINGS)
    assert {w.dtype for w in prompt_weights(model, words).values()} == {torch.float32}


def test_hooks_are_gone_after_a_failing_run(model, words):
    with pytest.raises(IndexError):
        prompt_weights(model, words + 96)
    prompts = adapter_prompts(model, "default").values()
    assert not any(prompt._forward_pre_hooks for prompt in prompts)


def test_without_an_active_adapter_the_error_says_what_to_do(tiny, model, words):
    with pytest.raises(ValueError, match="add one with add_adaption_prompts"):
        prompt_weights(tiny(), words)
    with disable_adapter(model), pytest.raises(ValueError, match="leave the disable_adapter"):
        prompt_weights(model, words)
