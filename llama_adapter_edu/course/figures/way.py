"""One token's way through the paper's picture, step by step, with the numbers of the real Llama.

`way_of_token` takes the numbers out of an adapted model; `benchmarks/token_way.py` stores those of
the demo's adapter in `course/results/token_way.json`; `token_way` shows them.
"""

import json
from importlib.resources import files
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.adapters.choice import active_adapter, disable_adapter
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course.figures.page import Page
from llama_adapter_edu.method.attention import (
    AttentionLayer,
    apply_rotary,
    attention_scores,
    causal_softmax,
    repeat_kv_heads,
    rotary_tables,
    split_heads,
)
from llama_adapter_edu.method.gated_prompts import prompt_keys_values, prompt_scores

INSTEAD = "The picture above shows the same way, standing still."
SHOWN = 4  # numbers of each vector
NEXT = 3


def token_way() -> Page:
    """The way of one token, to step through forwards and back. It needs no model and no network."""
    place = files("llama_adapter_edu.course").joinpath("results", "token_way.json")
    return Page("tokenWay", json.loads(place.read_text(encoding="utf-8")), INSTEAD)


def way_of_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, layer: int, head: int
) -> dict[str, Any]:
    """What the last token of a text does in one head of one adapted layer of a Llama.

    Returns:
        the tokens and their `token_weights`; the `prompt_weights`; `gate` and `opening`; the first
        numbers of `query`, `from_tokens`, `from_prompts` and their gated `sum`; and the likeliest
        next tokens `with_adapter` and `without`, with their probabilities.

    Raises:
        ValueError: no adapter is active, or the layer has no prompts.
    """
    name = active_adapter(model)
    prompts = adapter_prompts(model, name) if name else {}
    if layer not in prompts:
        raise ValueError(f"layer {layer} has no prompts that act; these have: {list(prompts)}.")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    hidden, merged, following = _run(model, ids, layer)
    attention = attention_layers(model)[layer]
    prompt, own = prompts[layer], AttentionLayer.from_llama(attention)
    with torch.no_grad():
        seen, value, query = _tokens(own, hidden)
        pair = prompt_keys_values(prompt.prompts, own.key_layer, own.value_layer, own.head_dim)
        weights = prompt_scores(query, pair[0]).softmax(dim=-1)
        gate, opening = (x.expand(len(merged))[head] for x in (prompt.gate, prompt.gate_opening))
        read = einsum(seen[0, head, -1], value[0, head], "t, t d -> d")
        group = head * len(pair[1]) // len(merged)  # neighbouring heads share keys and values
        added = einsum(weights[0, head, -1], pair[1][group], "p, p d -> d")
        total = read + opening * added
        with disable_adapter(model):
            without = model(ids).logits[0, -1].softmax(dim=-1)
    torch.testing.assert_close(total, merged[head], atol=1e-3, rtol=1e-3)  # the model's own number
    return {
        "text": text,
        "layer": layer,
        "head": head,
        "tokens": [tokenizer.decode([token]) for token in ids[0].tolist()],
        "query": _some(query[0, head, -1]),
        "token_weights": _rounded(seen[0, head, -1]),
        "prompt_weights": _rounded(weights[0, head, -1]),
        "gate": round(gate.item(), 4),
        "opening": round(opening.item(), 4),
        "from_tokens": _some(read),
        "from_prompts": _some(added),
        "sum": _some(total),
        "with_adapter": _best(tokenizer, following),
        "without": _best(tokenizer, without),
    }


def _run(model: PreTrainedModel, ids: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """What comes into a layer's attention, the last token's heads (h d) that leave it for o_proj,
    and the chances of the next tokens."""
    attention, seen = attention_layers(model)[layer], {}

    def into(_, inputs, named) -> None:
        seen["hidden"] = inputs[0] if inputs else named["hidden_states"]

    hooks = [
        attention.register_forward_pre_hook(into, with_kwargs=True),
        attention.o_proj.register_forward_pre_hook(lambda _, x: seen.update(merged=x[0])),
    ]
    try:
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    merged = rearrange(seen["merged"][0, -1], "(h d) -> h d", d=attention.head_dim)
    return seen["hidden"], merged, logits[0, -1].softmax(dim=-1)


def _tokens(own: AttentionLayer, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens' weights (b h s t), their values (b h t d), and the queries (b h s d)."""
    _, query = own(hidden)
    key, value = (split_heads(x(hidden), own.head_dim) for x in (own.key_layer, own.value_layer))
    position = rearrange(torch.arange(hidden.shape[1]), "s -> 1 s")
    key = apply_rotary(key, *rotary_tables(position, own.head_dim, own.theta))
    key, value = (repeat_kv_heads(x, query.shape[1] // x.shape[1]) for x in (key, value))
    return causal_softmax(attention_scores(query, key)), value, query


def _rounded(numbers: Tensor) -> list[float]:
    return [round(float(x), 4) for x in numbers]


def _some(vector: Tensor) -> list[float]:
    return _rounded(vector[:SHOWN])


def _best(tokenizer: PreTrainedTokenizerBase, chances: Tensor) -> list[tuple[str, float]]:
    best = chances.topk(NEXT)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(tokenizer.decode([token]), round(chance, 4)) for token, chance in pairs]
