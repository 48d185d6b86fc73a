"""Attention to the prompts and the sum of eq. 8 in one kernel each way, for NVIDIA GPUs.

    out (b s h d) = tokens (b s h d) + softmax(query (b h s d) key (b h p d)^T * scale) value

The gate is in the value already (`AdaptionPrompt.gated_heads`). One program of a kernel takes all
prompts of one row and head, filled up to P slots, and BLOCK neighbouring queries; backward, one
block of them after the other, for it sums the gradients of key and value over all queries.

It needs Triton, which comes with PyTorch for NVIDIA GPUs, and a GPU that computes in bfloat16.

Shape legend: b batch, s query position, h query head, p prompt slot, d head width.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

MOST = 64  # prompts, and queries in a block
TILE = 2**14  # bytes of each: a program keeps four such tiles in its GPU's fast memory
WIDTHS = 16, 32, 64, 128  # of heads: the axes in a kernel are powers of two
exact = tl.constexpr("ieee")  # float32 stays float32


def takes(
    key: Float[Tensor, "*b h p d"], value: Float[Tensor, "*b h p d"], mask: Tensor | None = None
) -> bool:
    """Whether the kernels can attend to these prompts: their number, width, type and device."""
    *_, n_prompts, width = key.shape
    return (
        _on_a_gpu_with_bfloat16(key)
        and key.dtype.itemsize <= 4
        and mask is None
        and width in WIDTHS
        and n_prompts <= _longest(key)
    )


def _on_a_gpu_with_bfloat16(tensor: Tensor) -> bool:
    nvidia = torch.version.cuda is not None and tensor.is_cuda
    return nvidia and torch.cuda.get_device_properties(tensor.device).major >= 8


def _longest(heads: Tensor) -> int:
    """How many vectors of this width and type a tile has."""
    return min(MOST, TILE // (heads.shape[-1] * heads.dtype.itemsize))


@triton.jit
def _queries(
    first, row, head, n_queries, n_heads, of_row, of_head, of_query,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where in memory a block of queries and its tokens' attention lie; which are in the row."""
    place, d = (first + tl.arange(0, BLOCK))[:, None], tl.arange(0, D)[None, :]
    query = row * of_row + head * of_head + place * of_query + d
    token = ((row * n_queries + place) * n_heads + head) * D + d
    return query, token, place < n_queries


@triton.jit
def _prompts(row, head, n_prompts, of_row, D: tl.constexpr, P: tl.constexpr):
    """Where in memory the prompts of a row and head lie, and which slots have one."""
    slot, d = tl.arange(0, P)[:, None], tl.arange(0, D)[None, :]
    return row * of_row + (head * n_prompts + slot) * D + d, slot < n_prompts


@triton.jit
def _weights(query, key, is_prompt, scale):
    scores = tl.dot(query, tl.trans(key), input_precision=exact) * scale
    scores = tl.where(tl.trans(is_prompt), scores, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return powers / tl.sum(powers, axis=1)[:, None]


@triton.jit
def _forward(
    out, tokens, queries, keys, values, scale, n_queries, n_heads, n_prompts,
    of_row, of_head, of_query, prompts_of_row,
    D: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = (tl.program_id(0) // n_heads).to(tl.int64), tl.program_id(0) % n_heads
    at_prompt, is_prompt = _prompts(row, head, n_prompts, prompts_of_row, D, P)
    key = tl.load(keys + at_prompt, mask=is_prompt, other=0.0)
    value = tl.load(values + at_prompt, mask=is_prompt, other=0.0)
    first = tl.program_id(1) * BLOCK
    at, at_token, is_query = _queries(
        first, row, head, n_queries, n_heads, of_row, of_head, of_query, D, BLOCK
    )
    query = tl.load(queries + at, mask=is_query, other=0.0)
    weights = _weights(query, key, is_prompt, scale).to(value.dtype)
    added = tl.dot(weights, value, input_precision=exact)
    token = tl.load(tokens + at_token, mask=is_query, other=0.0)
    tl.store(out + at_token, token + added.to(token.dtype), mask=is_query)


@triton.jit
def _backward(
    d_out, d_queries, d_keys, d_values, queries, keys, values, scale, n_queries, n_heads, n_prompts,
    of_row, of_head, of_query, prompts_of_row,
    D: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = (tl.program_id(0) // n_heads).to(tl.int64), tl.program_id(0) % n_heads
    at_prompt, is_prompt = _prompts(row, head, n_prompts, prompts_of_row, D, P)
    key = tl.load(keys + at_prompt, mask=is_prompt, other=0.0)
    value = tl.load(values + at_prompt, mask=is_prompt, other=0.0)
    d_key, d_value = tl.zeros([P, D], tl.float32), tl.zeros([P, D], tl.float32)
    for first in tl.range(0, n_queries, BLOCK, num_stages=1):  # more need more memory
        at, at_token, is_query = _queries(
            first, row, head, n_queries, n_heads, of_row, of_head, of_query, D, BLOCK
        )
        query = tl.load(queries + at, mask=is_query, other=0.0)
        d = tl.load(d_out + at_token, mask=is_query, other=0.0)
        weights = _weights(query, key, is_prompt, scale)
        d_weights = tl.dot(d, tl.trans(value), input_precision=exact)
        mean = tl.sum(weights * d_weights, axis=1)[:, None]
        d_scores = (weights * (d_weights - mean) * scale).to(query.dtype)
        d_query = tl.dot(d_scores, key, input_precision=exact)
        tl.store(d_queries + at, d_query.to(query.dtype), mask=is_query)
        d_key += tl.dot(tl.trans(d_scores), query, input_precision=exact)
        d_value += tl.dot(tl.trans(weights.to(d.dtype)), d, input_precision=exact)
    at_gradient, _ = _prompts(row, head, n_prompts, n_heads * n_prompts * D, D, P)
    tl.store(d_keys + at_gradient, d_key.to(key.dtype), mask=is_prompt)
    tl.store(d_values + at_gradient, d_value.to(value.dtype), mask=is_prompt)


def _axes(query: Tensor, key: Tensor, _: Tensor) -> dict[str, int]:
    """Lengths of axes, and strides, as both kernels take them."""
    of_row, of_head, of_query, _ = query.stride()
    _, n_heads, n_queries, width = query.shape
    n_prompts = key.shape[2]
    block = min(_longest(query), max(16, triton.next_power_of_2(n_queries)))
    return {
        **{"n_queries": n_queries, "n_heads": n_heads, "n_prompts": n_prompts},
        **{"of_row": of_row, "of_head": of_head, "of_query": of_query},
        "prompts_of_row": key.stride(0),  # 0 if rows share them
        **{"D": width, "P": max(16, triton.next_power_of_2(n_prompts)), "BLOCK": block},
    }


def _in_layout(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same numbers as the kernels read them: copies only where they lie otherwise."""
    # The gradient of a query is written where a query like it would lie.
    as_its_gradient = torch.empty_like(query).stride() == query.stride()
    if query.stride(-1) != 1 or not as_its_gradient:
        query = query.contiguous()
    if not (key[:1].is_contiguous() and key.stride() == value.stride()):
        key, value = key.contiguous(), value.contiguous()
    return query, key, value


@torch.library.custom_op("llama_adapter_edu::add_prompts", mutates_args=())
def _add_prompts(tokens: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    tokens, heads = tokens.contiguous(), _in_layout(query, key, value)
    out = torch.empty_like(tokens)
    axes = _axes(*heads)
    grid = len(query) * axes["n_heads"], triton.cdiv(axes["n_queries"], axes["BLOCK"])
    with torch.cuda.device_of(query):
        _forward[grid](out, tokens, *heads, scale, **axes)
    return out


@_add_prompts.register_fake
def _(tokens: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return torch.empty_like(tokens, memory_format=torch.contiguous_format)


@torch.library.custom_op("llama_adapter_edu::prompt_gradients", mutates_args=())
def _prompt_gradients(
    d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the query, and of key and value side by side (two b h p d)."""
    heads = _in_layout(query, key, value)
    d_query, d_pair = _empty_gradients(*heads)
    axes = _axes(*heads)
    with torch.cuda.device_of(query):
        grid = (len(query) * axes["n_heads"],)
        _backward[grid](d_out.contiguous(), d_query, *d_pair, *heads, scale, **axes)
    return d_query, d_pair


@_prompt_gradients.register_fake
def _(d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple:
    return _empty_gradients(*_in_layout(query, key, value))


def _empty_gradients(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), key.new_empty(2, *key.shape)


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    _, *heads, ctx.scale = inputs
    ctx.save_for_backward(*heads)


def _gradients(ctx, d_out: Tensor) -> tuple:
    d_query, d_pair = _prompt_gradients(d_out, *ctx.saved_tensors, ctx.scale)
    return d_out, d_query, *d_pair, None


_add_prompts.register_autograd(_gradients, setup_context=_save)


def add_prompts(
    tokens: Float[Tensor, "b s h d"],
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "*b h p d"],
    value: Float[Tensor, "*b h p d"],
    scale: float | None = None,
) -> Float[Tensor, "b s h d"]:
    """The tokens' attention, plus attention to prompts whose values are gated (eq. 8).

    Keys and values are the same for all rows (h p d), or each row has its own (b h p d). `scale`
    multiplies the dot products; 1 / sqrt(d) unless the model has its own. All is computed in the
    type of `tokens`. There are first derivatives only: a second backward is a RuntimeError.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = (x.to(tokens.dtype) for x in (query, key, value))
    pair = (x.expand(len(query), -1, -1, -1) for x in (key, value))
    return _add_prompts(tokens, query, *pair, scale)
