"""Solutions of lesson 04: what a failed check falls back to.

Generated from solutions/04_zero_init_gate.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'4.1': 'gated_prompt_attention', '4.2': 'gated_attention_weights', '4.3': 'GatedPrompts', '4.4': 'gets_gradient'}
STUBS = {'4.1': '8d24ae3195f0', '4.2': '8b624430c0c2', '4.3': '30b69b1353a4', '4.4': '0e030c6706fe'}
GIVEN = ('_', 'added', 'all_prompts', 'ax', 'axes', 'bad', 'bare', 'bars', 'batch', 'block', 'colour', 'command', 'commands', 'fig', 'first', 'g', 'gate', 'gates', 'good', 'guessing', 'head', 'heads_value', 'hidden', 'history', 'inputs', 'keep', 'kept', 'key', 'layer', 'layer_prompts', 'learns', 'lengths', 'loss', 'losses', 'mine', 'model', 'module', 'n', 'n_learnt', 'name', 'of_gates', 'of_prompts', 'of_words', 'opening', 'openings', 'optimizer', 'p', 'part', 'position', 'prompt_key', 'prompt_value', 'prompts', 'queries', 'query', 'rows', 'side_by_side', 'size', 'sizes', 'started', 'states', 'tensor', 'tokenizer', 'value', 'weights', 'word_scores')
CELLS = ('f4a19fe4029b', '998711e750b8', '5cbad8ff9182', 'a4e17bb74fed', '9657a1085607', 'fe197ae86284', '45e2e99b3b7c', '464910a2cd8e', '836b08678a2b', 'c18e40591f39', 'e55404831fda', '805ba74ef215', 'e4745e50925c', '217a0f58dfd6', 'daf0dfedfcdf', 'ad56efec2ca1')
CHECKS = {'4.1': '@check("4.1", "gated_prompt_attention")\ndef _():\n    # b=2, h=12 query heads in g=3 groups, s=5 words, p=7 prompts, d=8\n    some_query, some_gate = torch.randn(2, 12, 5, 8), torch.randn(12)\n    some_key, some_value = torch.randn(3, 7, 8), torch.randn(3, 7, 8)\n    added = gated_prompt_attention(some_query, some_key, some_value, some_gate)\n    assert_shape(added, "b h s d", b=2, h=12, s=5, d=8)\n\n    # head after head\n    read = prompt_attention(some_query, some_key, some_value)\n    right = torch.stack([math.tanh(some_gate[h]) * read[:, h] for h in range(12)], dim=1)\n    bare_gate = torch.stack([some_gate[h] * read[:, h] for h in range(12)], dim=1)\n    gated_query = rearrange(some_gate.tanh(), "h -> h 1 1") * some_query\n    mistakes = {\n        "the activation is missing: use activation(gate), not the gate itself": bare_gate,\n        "the gate should multiply what the softmax gives, not the scores": prompt_attention(\n            gated_query, some_key, some_value\n        ),\n        "the gate is not used": read,\n    }\n    assert_close(added, right, "b h s d", mistakes=mistakes)\n\n    inputs = some_query, some_key, some_value\n    opened = gated_prompt_attention(*inputs, some_gate, activation=torch.sigmoid)\n    right = torch.stack([some_gate[h].sigmoid() * read[:, h] for h in range(12)], dim=1)\n    assert_close(opened, right, "b h s d", what="with activation=torch.sigmoid")\n    scaled = gated_prompt_attention(*inputs, torch.full((1,), 0.5), scale=0.25)\n    right = math.tanh(0.5) * prompt_attention(*inputs, scale=0.25)\n    assert_close(scaled, right, "b h s d", what="with one gate for all heads and scale=0.25")\n\n    closed = gated_prompt_attention(*inputs, torch.zeros(12))\n    assert torch.count_nonzero(closed) == 0, "a gate of zero should add exactly nothing"\n    half = [x.bfloat16() for x in inputs]\n    assert gated_prompt_attention(*half, some_gate).dtype == torch.bfloat16, (\n        "a float32 gate should not turn a bfloat16 result into float32: cast it back at the end"\n    )', '4.2': '@check("4.2", "gated_attention_weights")\ndef _():\n    # b=2, h=3, s=t=5 words, p=7 prompts\n    for_prompts, for_words = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 5)\n    some_gate = torch.tensor([-0.5, 0.2, 2.0])\n    weights = gated_attention_weights(for_prompts, for_words, some_gate)\n    assert isinstance(weights, Tensor) and weights.shape == (2, 3, 5, 12), (\n        "expected one tensor with b=2, h=3, s=5 and 7 + 5 weights"\n    )\n\n    right = torch.zeros(2, 3, 5, 12)  # head after head, word after word\n    for h in range(3):\n        right[:, h, :, :7] = math.tanh(some_gate[h]) * for_prompts[:, h].softmax(-1)\n        for s in range(5):\n            right[:, h, s, 7 : 8 + s] = for_words[:, h, s, : s + 1].softmax(-1)\n    opening = rearrange(some_gate.tanh(), "h -> h 1 1")\n    in_the_scores = torch.cat([(opening * for_prompts).softmax(-1), right[..., 7:]], -1)\n    joint = causal_softmax(torch.cat([for_prompts, for_words], -1))\n    mistakes = {\n        "the gate should multiply the softmax, not the scores": in_the_scores,\n        "this is one softmax over both; take two": joint,\n        "this is one softmax over both; take two before the gate comes in": torch.cat(\n            [opening * joint[..., :7], joint[..., 7:]], -1\n        ),\n        "the gate is for the prompts only; words keep their weights": torch.cat(\n            [right[..., :7], opening * right[..., 7:]], -1\n        ),\n        "put the prompts first": torch.cat([right[..., 7:], right[..., :7]], -1),\n    }\n    assert_close(weights, right, mistakes=mistakes)', '4.3': '@check("4.3", "GatedPrompts")\ndef _():\n    # p=7 prompts of width m=40, h=12 heads\n    module = GatedPrompts(7, 40, 12)\n    learnt = dict(module.named_parameters())\n    assert set(learnt) == {"prompts", "gate"}, (\n        f"expected the parameters prompts and gate, found {sorted(learnt)}: wrap both tensors, and "\n        "nothing else, in nn.Parameter"\n    )\n    assert_shape(module.prompts, "p m", p=7, m=40)\n    assert_shape(module.gate, "h", h=12)\n    assert torch.count_nonzero(module.gate) == 0, "the gate should start at exactly zero"\n    size = module.prompts.std().item()\n    assert 0.8 < size < 1.2, f"the prompts should come from N(0, 1), but their std is {size:.2g}"\n    other = GatedPrompts(7, 40, 12)\n    assert not torch.equal(module.prompts, other.prompts), "two modules have the same prompts"\n\n    some = torch.randn(2, 12, 5, 8), torch.randn(3, 7, 8), torch.randn(3, 7, 8)\n    with torch.no_grad():\n        module.gate.copy_(torch.linspace(-1, 1, 12))\n    right = gated_prompt_attention(*some, torch.linspace(-1, 1, 12))\n    assert_close(module(*some), right, "b h s d", what="with open gates")\n    right = gated_prompt_attention(*some, torch.linspace(-1, 1, 12), scale=0.25)\n    assert_close(module(*some, 0.25), right, "b h s d", what="with scale=0.25")\n    assert module(*some).requires_grad, "no gradient reaches the gate"', '4.4': '@check("4.4", "gets_gradient")\ndef _():\n    key_proj, value_proj = nn.Linear(40, 24, bias=False), nn.Linear(40, 24, bias=False)\n    some_query, push = torch.randn(2, 12, 5, 8), torch.randn(2, 12, 5, 8)\n    for prompts_are_zero in (False, True):\n        for gate_is_zero in (False, True):\n            module = GatedPrompts(7, 40, 12)\n            nn.init.normal_(module.prompts, std=not prompts_are_zero)\n            nn.init.normal_(module.gate, std=not gate_is_zero)\n            keys_values = prompt_keys_values(module.prompts, key_proj, value_proj, 8)\n            (push * module(some_query, *keys_values)).sum().backward()\n            measured = {n: bool(p.grad.abs().max() > 0) for n, p in module.named_parameters()}\n\n            predicted = gets_gradient(prompts_are_zero, gate_is_zero)\n            start = f"prompts {\'zero\' if prompts_are_zero else \'random\'}, "\n            start += f"gate {\'zero\' if gate_is_zero else \'random\'}"\n            assert isinstance(predicted, dict) and set(predicted) == {"prompts", "gate"}, (\n                f\'expected a dictionary like {{"prompts": True, "gate": True}}, got {predicted!r}\'\n            )\n            assert predicted["prompts"] == measured["prompts"], (\n                f"{start}: the measurement says {measured[\'prompts\']} for the prompts. "\n                "What reaches them is multiplied by tanh(gate)"\n            )\n            assert predicted["gate"] == measured["gate"], (\n                f"{start}: the measurement says {measured[\'gate\']} for the gate. "\n                "What reaches it is multiplied by what the head reads from the prompts"\n            )'}

import torch
from einops import rearrange
from jaxtyping import Float
from llama_adapter_edu.method.attention import causal_softmax
from torch import Tensor
from torch import nn
from llama_adapter_edu.method.gated_prompts import gated_prompt_attention


def gated_attention_weights(
    scores_bhsp: Float[Tensor, "b h s p"],
    scores_bhst: Float[Tensor, "b h s t"],
    gate: Float[Tensor, "h"],
) -> Float[Tensor, "b h s pt"]:
    """Equation 7: [softmax(prompt scores) * tanh(gate), causal softmax(word scores)]."""
    opening = rearrange(torch.tanh(gate), "h -> h 1 1")
    of_prompts = opening * scores_bhsp.softmax(dim=-1)
    return torch.cat([of_prompts, causal_softmax(scores_bhst)], dim=-1)


class GatedPrompts(nn.Module):
    """What one adapted layer learns: `prompts` (p m), from N(0, 1), and `gate` (h), from zero."""

    def __init__(self, adapter_len: int, model_width: int, n_heads: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(adapter_len, model_width))
        self.gate = nn.Parameter(torch.zeros(n_heads))

    def forward(
        self,
        query: Float[Tensor, "b h s d"],
        prompt_key: Float[Tensor, "g p d"],
        prompt_value: Float[Tensor, "g p d"],
        scale: float | None = None,
    ) -> Float[Tensor, "b h s d"]:
        """What the prompts add to each head."""
        return gated_prompt_attention(query, prompt_key, prompt_value, self.gate, scale=scale)


def gets_gradient(prompts_are_zero: bool, gate_is_zero: bool) -> dict[str, bool]:
    """Whether prompts and gate get a gradient other than zero, from this start."""
    return {"prompts": not gate_is_zero, "gate": not prompts_are_zero}
