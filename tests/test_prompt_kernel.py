"""The prompts' kernel against float64: on an NVIDIA GPU, or on a CPU with TRITON_INTERPRET=1."""

import os
from functools import partial

import pytest
import torch
from einops import einsum, repeat
from gates import open_gates
from tiny_run import tiny_model
from torch._dynamo.testing import CompileCounterWithBackend

from llama_adapter_edu.adapters.layers.at_once import HeadsAtOnce
from llama_adapter_edu.training.compiled import compiled_layers
from llama_adapter_edu.training.loss import columns_loss_sum, cross_entropy_sum

pytest.importorskip("triton", reason="needs Triton")
ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from llama_adapter_edu.adapters.layers import prompt_kernel  # noqa: E402
from llama_adapter_edu.adapters.layers.prompt_kernel import (  # noqa: E402
    MOST,
    WIDTHS,
    add_prompts,
    takes,
)

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# Triton's interpreter computes no bfloat16.
DTYPES = [torch.float32, torch.float16, torch.bfloat16][: 3 if ON_GPU else 2]
BOUNDS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
SHAPES = {  # b h s d p
    "several blocks, the last one not full": (2, 3, 150, 16, 10),
    "one prompt, fewer queries than a block": (1, 2, 5, 32, 1),
    "as SmolLM2": (3, 9, 64, 64, 10),
    "as LLaMA, with some prompts": (2, 2, 16, 128, 17),
}


def in_float64(tokens, query, key, value, scale):
    tokens, query, key, value = (x.double() for x in (tokens, query, key, value))
    weights = (einsum(query, key, "b h s d, b h p d -> b h s p") * scale).softmax(-1)
    return tokens + einsum(weights, value, "b h s p, b h p d -> b s h d")


def inputs(shape, dtype, *, shared=True, heads_first=False):
    torch.manual_seed(0)
    b, h, s, d, p = shape
    make = partial(torch.randn, device=DEVICE, dtype=dtype)
    tokens, out_gradient = make(b, s, h, d), make(b, s, h, d)
    query = make(b, h, s, d) if heads_first else make(b, s, h, d).transpose(1, 2)
    rows = [make(h, p, d) if shared else make(b, h, p, d) for _ in "kv"]
    heads = [repeat(x, "h p d -> b h p d", b=b) if shared else x for x in rows]
    return [x.detach().requires_grad_() for x in (tokens, query, *heads)], out_gradient


def relative_errors(given, out_gradient, scale=0.3):
    out, right = add_prompts(*given, scale), in_float64(*given, scale)
    found = torch.autograd.grad(out, given, out_gradient)
    wanted = torch.autograd.grad(right, given, out_gradient.double())
    pairs = zip((out, *found), (right, *wanted), strict=True)
    return [((x - y).norm() / y.norm().clamp(min=1e-3)).item() for x, y in pairs]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_and_all_gradients_are_those_in_float64(shape, dtype):
    assert max(relative_errors(*inputs(shape, dtype))) < BOUNDS[dtype]


@pytest.fixture
def anywhere(monkeypatch):
    """The kernels take prompts on a CPU, too: Triton interprets them."""
    if not ON_GPU:
        monkeypatch.setattr(prompt_kernel, "_on_a_gpu_with_bfloat16", lambda tensor: True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_most_prompts_that_it_takes(width, dtype, anywhere):
    heads = torch.zeros(2, MOST, width, device=DEVICE, dtype=dtype)
    most = prompt_kernel._longest(heads)
    assert most == (32 if width == 128 and dtype == torch.float32 else MOST)
    assert takes(heads[:, :most], heads[:, :most])
    too_many = torch.zeros(2, most + 1, width, device=DEVICE, dtype=dtype)
    assert not takes(too_many, too_many)
    assert max(relative_errors(*inputs((1, 2, 150, width, most), dtype))) < BOUNDS[dtype]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "of each row"])
@pytest.mark.parametrize("heads_first", [True, False], ids=["(b h s d)", "(b s h d)"])
def test_any_layout_and_rows_with_keys_of_their_own(shared, heads_first):
    given, out_gradient = inputs(
        (2, 3, 70, 16, 5), torch.float32, shared=shared, heads_first=heads_first
    )
    assert max(relative_errors(given, out_gradient)) < 1e-5


LAYOUTS = {
    "(b h d s)": lambda x: x.mT.contiguous().mT,
    "every other number": lambda x: torch.stack([x, x * 0], dim=-1)[..., 0],
    "a part of longer rows": lambda x: torch.cat([x, x * 0], dim=-1)[..., : x.shape[-1]],
    "one for all rows": lambda x: x[:1].expand_as(x),
    "one for all heads": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("lies", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("which", ["tokens", "query", "key", "value", "gradient"])
def test_each_tensor_may_lie_in_memory_as_it_likes(which, lies):
    given, out_gradient = inputs((2, 3, 20, 32, 6), torch.float32)
    names = ["tokens", "query", "key", "value", "gradient"]
    tensors = dict(zip(names, [*given, out_gradient], strict=True))
    tensors[which] = lies(tensors[which].detach())
    *given, out_gradient = (x.detach().requires_grad_() for x in tensors.values())
    assert max(relative_errors(given, out_gradient.detach())) < 1e-5


def test_large_scores_and_inputs_of_other_types_and_no_rows():
    given, out_gradient = inputs((2, 3, 20, 32, 6), torch.float32)
    assert max(relative_errors(given, out_gradient, scale=50.0)) < 1e-4
    other = [given[0], *(x.detach().half().requires_grad_() for x in given[1:])]
    assert max(relative_errors(other, out_gradient)) < 4e-3
    assert add_prompts(*(x[:0] for x in given)).shape == (0, 20, 3, 32)


@pytest.mark.parametrize("shared", [True, False])
def test_the_compiler_is_told_what_the_operators_give(shared):
    given, out_gradient = inputs((2, 3, 70, 16, 5), torch.float32, shared=shared)
    torch.library.opcheck(prompt_kernel._add_prompts, (*given, 0.3))
    heads = [x.detach() for x in given[1:]]
    tests = "test_schema", "test_faketensor"
    gradients = prompt_kernel._prompt_gradients
    torch.library.opcheck(gradients, (out_gradient, *heads, 0.3), test_utils=tests)


def test_the_scale_is_one_over_the_root_of_the_width_unless_it_is_said():
    given, _ = inputs((1, 2, 8, 16, 4), torch.float32)
    torch.testing.assert_close(add_prompts(*given), add_prompts(*given, 0.25))


def test_what_it_does_not_take(anywhere):
    def heads(p, d, dtype=torch.float32):
        return torch.zeros(2, p, d, device=DEVICE, dtype=dtype)

    assert takes(heads(3, 64), heads(3, 64))
    mask = torch.ones(1, 1, 1, 3, device=DEVICE, dtype=torch.bool)
    for other in heads(3, 80), heads(3, 64, torch.float64):
        assert not takes(other, other)
    assert not takes(heads(3, 64), heads(3, 64), mask)


@pytest.fixture
def adapted(monkeypatch, anywhere):
    """A model whose layers may use the kernels, and a list of when they were launched."""
    torch.manual_seed(0)
    model, calls = tiny_model(head_dim=16).to(DEVICE), []

    def counted(*heads, axes=prompt_kernel._axes):
        calls.append(heads[0].shape)
        return axes(*heads)

    monkeypatch.setattr(prompt_kernel, "_axes", counted)
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.7  # not 1 / sqrt(d)
    open_gates(model)
    return model, calls


def gradients(model, ids, loss_sum=cross_entropy_sum):
    learnt = [p for p in model.parameters() if p.requires_grad]
    columns = torch.arange(0, ids.shape[1], device=DEVICE)
    loss = columns_loss_sum(model, {"input_ids": ids, "labels": ids}, columns, loss_sum)
    return [loss.detach(), *torch.autograd.grad(loss, learnt)]


def some_ids(length):
    return torch.randint(1, 50, (3, length), device=DEVICE)


def test_heads_at_once_use_it_and_learn_the_same(adapted):
    model, calls = adapted
    heads, ids = HeadsAtOnce(model), some_ids(20)
    before = gradients(model, ids)
    assert not calls
    with heads.ready(3):
        found = gradients(model, ids)
    assert len(heads.layers) == 2 and len(calls) == 2 * 2  # forward and backward
    torch.testing.assert_close(found, before, atol=1e-4, rtol=1e-4)
    assert all(gradient.abs().max() > 0 for gradient in found)


def test_compiled_layers_use_it_and_learn_the_same_at_each_length(adapted):
    model, calls = adapted
    batches = [some_ids(length) for length in (20, 150, 70, 30, 64)]
    before = [gradients(model, ids) for ids in batches]
    assert not calls
    counter = CompileCounterWithBackend("inductor" if ON_GPU else "aot_eager")
    with compiled_layers(model, backend=counter, fullgraph=True) as loss_sum:
        found = [gradients(model, ids, loss_sum) for ids in batches]
    assert calls
    torch.testing.assert_close(found, before, atol=1e-4, rtol=1e-4)
    # Below the prompts, the lowest with prompts, those above, and the loss: for the first length,
    # and for all others.
    assert counter.frame_count == 2 * (3 + 1)


def test_compiled_generation_uses_it_and_answers_the_same(adapted):
    model, calls = adapted
    ids, settings = some_ids(6), {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    before = model.generate(ids, **settings)
    assert not calls
    model.forward = torch.compile(model.forward, backend="inductor" if ON_GPU else "aot_eager")
    found = model.generate(ids, cache_implementation="static", **settings)
    assert calls
    assert found.tolist() == before.tolist()
