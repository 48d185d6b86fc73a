"""Turn the gates of an adapter for a moment, and read what the model does then."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.adapters.inspect import gate_openings
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.encoding import IGNORE_INDEX, encode
from llama_adapter_edu.data.evaluate import expected_answers, generate_answers

Rows = Sequence[Mapping[str, Any]]
TOP = 5


@dataclass(frozen=True)
class Reading:
    """What a model does with some rows.

    Attributes:
        loss: mean cross entropy in nats over all tokens of the expected answers.
        answers: the greedy answer to each row.
        next_tokens: for each row the five likeliest first tokens of the answer, as (text,
            probability), the likeliest first.
    """

    loss: float
    answers: list[str]
    next_tokens: list[list[tuple[str, float]]]


@contextmanager
def turned_gates(model: PreTrainedModel, factors: Float[Tensor, "l h"]) -> Iterator[None]:
    """Inside the `with` block, each opening of the active adapter is multiplied by its factor.

    The opening, not the gate: a factor may open a head further than tanh could. Afterwards the
    gates are as they were, to the bit. No other thread may use the model meanwhile.

    Args:
        factors: one for each opening, shaped as `gate_openings(model)`.

    Raises:
        ValueError: no adapter is active, `factors` has another shape, or a layer is offloaded.
    """
    openings = gate_openings(model)
    if not len(openings):
        raise ValueError("the model has no active adapter whose gates could be turned.")
    if factors.shape != openings.shape:
        raise ValueError(f"expected factors of shape {tuple(openings.shape)}, one a gate.")
    prompts = list(adapter_prompts(model, active_adapter(model)).values())
    if any(prompt.gate.is_meta for prompt in prompts):
        raise ValueError("layers of this model are offloaded: load it whole to turn its gates.")
    before = [(prompt.gate.detach().clone(), prompt.gate_activation) for prompt in prompts]
    try:
        with torch.no_grad():
            for prompt, opening, factor in zip(prompts, openings, factors, strict=True):
                prompt.gate.copy_(opening * factor.to(opening))
                prompt.gate_activation = "identity"
        yield
    finally:
        with torch.no_grad():
            for prompt, (gate, activation) in zip(prompts, before, strict=True):
                prompt.gate.copy_(gate)
                prompt.gate_activation = activation


def read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    *,
    max_new_tokens: int = 32,
) -> Reading:
    """What the model answers to rows with `instruction` and `output`, and how far off it is.

    Only rows that `scores` does not find right are generated.

    Raises:
        ValueError: no rows, or a row that `encode` refuses.
    """
    loss, right, next_tokens = scores(model, tokenizer, rows)
    answers = expected_answers(rows)
    wrong = [n for n, is_right in enumerate(right) if not is_right]
    if wrong:
        asked = [rows[n] for n in wrong]
        generated = generate_answers(model, tokenizer, asked, max_new_tokens=max_new_tokens)
        for n, answer in zip(wrong, generated, strict=True):
            answers[n] = answer
    return Reading(loss, answers, next_tokens)


def scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows
) -> tuple[float, list[bool], list[list[tuple[str, float]]]]:
    """The loss, which rows are right, and the likeliest first tokens of each, in one forward pass.

    A row is right where the model, given the expected answer so far, finds each next token of it
    the likeliest: then its greedy answer is the expected one.
    """
    encoded = [encode(row, tokenizer) for row in rows]
    batch = collate(encoded, tokenizer.pad_token_id)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
    learnt = labels != IGNORE_INDEX
    loss = torch.nn.functional.cross_entropy(logits[learnt], labels[learnt])
    right = ((logits.argmax(dim=-1) == labels) | ~learnt).all(dim=1)
    first = learnt.int().argmax(dim=1)
    top = logits[torch.arange(len(first)), first].softmax(dim=-1).topk(TOP)
    next_tokens = [
        [(tokenizer.decode([token]), chance) for token, chance in zip(*pair, strict=True)]
        for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    return float(loss), right.tolist(), next_tokens


def thirds(n_layers: int) -> list[range]:
    """The rows of `gate_openings` in three parts, lowest first; earlier parts are longer by one."""
    parts = torch.arange(n_layers).tensor_split(3)
    return [range(int(part[0]), int(part[-1]) + 1) for part in parts if len(part)]
