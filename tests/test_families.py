"""What transformers' attention interface carries: small random models of many families."""

import pytest
import torch

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    disable_adapter,
    load_adapter,
    save_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_prompts

FAMILIES = {
    "llama": {},
    "llama, heads wider than the model": {"head_dim": 16},
    "llama, narrow heads and biases": {"head_dim": 4, "attention_bias": True, "mlp_bias": True},
    "llama, one key/value head": {"num_key_value_heads": 1},
    "mistral": {"head_dim": 16, "sliding_window": 4},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "phi3": {},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 10, "sliding_window": 4},
    "gemma3_text": {"head_dim": 16, "sliding_window": 4},
    "olmo2": {},
    "smollm3": {},
    "granite": {"attention_multiplier": 0.3},
}
CONFIG = AdaptionPromptConfig(adapter_len=5, adapter_layers=2)


@pytest.fixture(params=FAMILIES)
def make(request, tiny):
    """Build the family's model, the same each time, with biases that are not zero."""
    family = request.param.partition(",")[0]

    def build(attn_implementation="eager", **settings):
        if family == "gemma2":  # transformers refuses sdpa for it
            attn_implementation = "eager"
        settings["attn_implementation"] = attn_implementation
        model = tiny(family, **FAMILIES[request.param] | settings)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        return model

    return build


@pytest.fixture
def words():
    torch.manual_seed(1)
    return torch.randint(3, 96, (2, 7))


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_closed_gates_change_nothing_and_open_ones_are_the_same_for_every_kernel(make, words, attn):
    model = make(attn_implementation=attn)
    base = logits(model, words)
    add_adaption_prompts(model, CONFIG)
    assert torch.equal(logits(model, words), base)
    twin = add_adaption_prompts(make(attn_implementation="eager"), CONFIG)
    for one, other in zip(
        adapter_prompts(model, "default").values(),
        adapter_prompts(twin, "default").values(),
        strict=True,
    ):
        torch.nn.init.normal_(one.gate)
        other.load_state_dict(one.state_dict())
    opened = logits(model, words)
    assert (opened - base).abs().max() > 1e-3
    torch.testing.assert_close(opened, logits(twin, words), rtol=1e-4, atol=1e-5)
    with disable_adapter(model):
        assert torch.equal(logits(model, words), base)


def test_it_learns_generates_and_comes_back_from_disk(make, words, tmp_path):
    model = add_adaption_prompts(make(attn_implementation="sdpa"), CONFIG)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(8):
        loss = model(input_ids=words, labels=words).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)

    options = {"max_new_tokens": 5, "do_sample": False}
    tokens = model.generate(words, **options)
    assert torch.equal(tokens, model.generate(words, use_cache=False, **options))
    save_adapter(model, tmp_path)
    again = load_adapter(make(attn_implementation="sdpa"), tmp_path)
    assert torch.equal(logits(again, words), logits(model, words))


def test_later_words_and_other_rows_do_not_matter(make, words):
    model = add_adaption_prompts(make(), CONFIG)
    for prompt in adapter_prompts(model, "default").values():
        torch.nn.init.normal_(prompt.gate)
    both = logits(model, words)
    other = words.clone()
    other[0, 4:] = other[0, 4:].flip(0) + 1
    torch.testing.assert_close(logits(model, other)[:, :4], both[:, :4])
    torch.testing.assert_close(logits(model, words[:1]), both[:1])
