"""The slide's wrapper: right numbers, on our layer and on transformers', at any shape."""

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course.tasks.attention_with_queries import LlamaAttentionWithQueries
from llama_adapter_edu.method.attention import AttentionLayer, KeyValueCache
from llama_adapter_edu.method.wrapped_layer import AdaptationPromptAttentionLayer

WIDTH, HEADS, KV_HEADS, HEAD_DIM, PROMPTS = 20, 6, 2, 4, 5


def base_layer(kv_heads=KV_HEADS, bias=False) -> AttentionLayer:
    """A small layer whose heads together (24) are wider than the model (20)."""
    torch.manual_seed(0)
    outs = HEADS * HEAD_DIM, kv_heads * HEAD_DIM, kv_heads * HEAD_DIM
    linears = [nn.Linear(WIDTH, out, bias=bias) for out in outs]
    return AttentionLayer(*linears, nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=bias), HEAD_DIM)


def wrapped(base=None, n_prompts=PROMPTS, width=WIDTH, gates=0.5) -> AdaptationPromptAttentionLayer:
    """The wrapper with opened gates, a different one for each head."""
    layer = AdaptationPromptAttentionLayer(base or base_layer(), n_prompts, width)
    nn.init.normal_(layer.adaption_gate, std=gates)
    return layer


def wrap_top(model, n_layers: int, gates: float) -> list[AdaptationPromptAttentionLayer]:
    """Put the wrapper in the place of the top layers' attention."""
    model.requires_grad_(False)
    decoder_layers = model.model.layers[-n_layers:]
    for layer in decoder_layers:
        base = LlamaAttentionWithQueries(layer.self_attn)
        layer.self_attn = wrapped(base, 10, model.config.hidden_size, gates)
    return [layer.self_attn for layer in decoder_layers]


def adapt_alike(model, wrappers) -> list:
    """Adaption prompts through the attention interface, with the wrappers' numbers."""
    add_adaption_prompts(model, AdaptionPromptConfig(adapter_layers=len(wrappers)))
    prompts = list(adapter_prompts(model, "default").values())
    with torch.no_grad():
        for prompt, wrapper in zip(prompts, wrappers, strict=True):
            prompt.prompts.copy_(wrapper.prompt_embedding.weight)
            prompt.gate.copy_(wrapper.adaption_gate)
    return prompts


def same(actual, expected, tol=1e-5) -> bool:
    """Every difference is below `tol` of the largest number."""
    return bool((actual - expected).abs().max() <= tol * expected.abs().max().clamp(min=1))


def by_hand(layer, hidden):
    """Equation 7 and 8 in loops: what each query of each head reads from the prompts."""
    base = layer.base_attention_layer
    frozen, queries = base(hidden)
    prompts = layer.prompt_embedding.weight
    added = torch.zeros(*hidden.shape[:2], HEADS * HEAD_DIM)
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        cut = slice(shared * HEAD_DIM, (shared + 1) * HEAD_DIM)
        key, value = base.key_layer(prompts)[:, cut], base.value_layer(prompts)[:, cut]
        weights = torch.softmax(queries[:, head] @ key.T / HEAD_DIM**0.5, dim=-1)
        place = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        added[..., place] = layer.adaption_gate[head].tanh() * (weights @ value)
    return frozen + added @ base.output_layer.weight.T


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("length", [1, KV_HEADS, HEADS, 7])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_it_computes_the_papers_equations_at_any_shape(batch, length, bias):
    layer = wrapped(base_layer(bias=bias))
    hidden = torch.randn(batch, length, WIDTH)
    output, queries = layer(hidden)
    assert torch.allclose(output, by_hand(layer, hidden), atol=1e-5)
    assert torch.equal(queries, layer.base_attention_layer(hidden)[1])
    assert not torch.allclose(output, layer.base_attention_layer(hidden)[0], atol=1e-2)


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
def test_any_number_of_key_value_heads_with_repeated_weights_is_the_same(kv_heads):
    grouped = wrapped(base_layer(kv_heads))
    full = copy.deepcopy(grouped)
    for name in ("key_layer", "value_layer"):
        weight = getattr(grouped.base_attention_layer, name).weight.detach()
        heads = weight.unflatten(0, (kv_heads, HEAD_DIM)).repeat_interleave(HEADS // kv_heads, 0)
        linear = nn.Linear(WIDTH, HEADS * HEAD_DIM, bias=False)
        linear.weight = nn.Parameter(heads.flatten(0, 1))
        setattr(full.base_attention_layer, name, linear)
    hidden = torch.randn(2, 5, WIDTH)
    assert torch.allclose(grouped(hidden)[0], full(hidden)[0], atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_closed_gates_change_nothing(bias):
    layer = AdaptationPromptAttentionLayer(base_layer(bias=bias), PROMPTS, WIDTH)
    hidden = torch.randn(2, 5, WIDTH)
    assert torch.equal(layer(hidden)[0], layer.base_attention_layer(hidden)[0])


def test_no_word_sees_a_later_one():
    layer, hidden = wrapped(), torch.randn(2, 6, WIDTH)
    for word in range(6):
        other = hidden.clone()
        other[:, word] += 1
        moved = (layer(other)[0] - layer(hidden)[0]).abs().amax(dim=(0, 2)) > 1e-6
        assert moved.tolist() == [position >= word for position in range(6)]


def test_a_row_does_not_depend_on_its_batch():
    layer, hidden = wrapped(), torch.randn(4, 5, WIDTH)
    alone = torch.cat([layer(row[None])[0] for row in hidden])
    assert torch.allclose(layer(hidden)[0], alone, atol=1e-6)


def test_everything_moves_with_the_layer_and_is_saved_once():
    layer = wrapped()
    assert {name.split(".")[0] for name in layer.state_dict()} == {
        "base_attention_layer",
        "prompt_embedding",
        "adaption_gate",
    }
    layer.to("meta")
    hidden = torch.randn(2, 5, WIDTH, device="meta")
    assert layer(hidden)[0].device.type == "meta"
    tensors = [x for m in layer.modules() for x in vars(m).values() if torch.is_tensor(x)]
    assert not tensors
    on_meta = AdaptationPromptAttentionLayer(base_layer().to("meta"), PROMPTS, WIDTH)
    assert on_meta.adaption_gate.is_meta and on_meta.prompt_embedding.weight.is_meta


def test_only_prompts_and_gates_train():
    layer = AdaptationPromptAttentionLayer(base_layer(), PROMPTS, WIDTH)
    trains = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert trains == {"prompt_embedding.weight", "adaption_gate"}

    hidden = torch.randn(2, 5, WIDTH)
    layer(hidden)[0].square().sum().backward()
    assert layer.adaption_gate.grad.abs().min() > 0
    assert layer.prompt_embedding.weight.grad.abs().max() == 0  # behind gates of zero

    nn.init.ones_(layer.adaption_gate)
    layer(hidden)[0].square().sum().backward()
    assert layer.prompt_embedding.weight.grad.abs().max() > 0


def test_word_by_word_with_our_cache_is_the_whole_sentence():
    layer, hidden, cache = wrapped(), torch.randn(2, 5, WIDTH), KeyValueCache()
    steps = [layer(word, cache=cache)[0] for word in hidden.split([2, 1, 1, 1], dim=1)]
    assert torch.allclose(torch.cat(steps, dim=1), layer(hidden)[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_base_keeps_float32_parameters(dtype):
    layer = wrapped(base_layer().to(dtype))
    assert layer.adaption_gate.dtype == layer.prompt_embedding.weight.dtype == torch.float32
    output, _ = layer(torch.randn(2, 5, WIDTH, dtype=dtype))
    output.float().square().sum().backward()
    assert output.dtype == dtype
    assert layer.prompt_embedding.weight.grad.dtype == torch.float32


def test_bad_input_is_refused_in_words(tiny):
    with pytest.raises(ValueError, match="emb_dim is 25, but the base layer reads a width of 20"):
        AdaptationPromptAttentionLayer(base_layer(), PROMPTS, 25)
    with pytest.raises(TypeError, match=r"got Qwen3Attention.*add_adaption_prompts"):
        LlamaAttentionWithQueries(tiny("qwen3").model.layers[0].self_attn)


def test_the_llama_shim_hands_out_what_our_own_layer_computes(llama):
    attention = llama[0].model.layers[7].self_attn
    hidden, position = torch.randn(2, 9, 576), torch.arange(9)[None]
    rotary = llama[0].model.rotary_emb(hidden, position)
    mask = torch.full((9, 9), float("-inf")).triu(1)[None, None]
    shim = LlamaAttentionWithQueries(attention)
    output, queries = shim(hidden, rotary, attention_mask=mask)
    our_output, our_queries = AttentionLayer.from_llama(attention)(hidden)
    assert same(output, our_output) and same(queries, our_queries)
    assert shim.state_dict().keys() == {f"attention.{k}" for k in attention.state_dict()}
    assert not attention.q_proj._forward_hooks


def test_a_failing_call_leaves_no_hook(llama):
    attention = llama[0].model.layers[0].self_attn
    layer = LlamaAttentionWithQueries(attention)
    with pytest.raises(RuntimeError):
        layer(torch.randn(1, 3, 5), (None, None), attention_mask=None)
    assert not attention.q_proj._forward_hooks


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("settings", [{}, {"attention_bias": True, "head_dim": 12}])
def test_in_a_model_it_equals_the_attention_interface(tiny, attn_implementation, settings):
    settings = settings | {"initializer_range": 0.2}  # so that gradients are not all tiny
    models = [tiny("llama", attn_implementation, **settings).train() for _ in range(2)]
    for model in models if settings.get("attention_bias") else ():  # biases start as zero
        for layer in model.model.layers:
            nn.init.ones_(layer.self_attn.o_proj.bias)
    wrappers = wrap_top(models[0], 2, gates=0.5)
    prompts = adapt_alike(models[1], wrappers)
    words = torch.randint(3, 96, (3, 6))
    mask = torch.ones_like(words)
    mask[1, :2] = 0
    results = [model(words, attention_mask=mask, labels=words) for model in models]
    assert same(results[0].logits[mask == 1], results[1].logits[mask == 1])
    for result in results:
        result.loss.backward()
    for wrapper, prompt in zip(wrappers, prompts, strict=True):
        assert torch.allclose(wrapper.prompt_embedding.weight.grad, prompt.prompts.grad, atol=1e-6)
        assert torch.allclose(wrapper.adaption_gate.grad, prompt.gate.grad, atol=1e-6)
        assert prompt.prompts.grad.abs().max() > 1e-4


def test_in_the_real_llama_it_equals_the_attention_interface(fresh_llama, llama):
    model, tokenizer = fresh_llama
    twin = copy.deepcopy(llama[0])
    wrappers = wrap_top(model, 10, gates=0.1)
    prompts = adapt_alike(twin, wrappers)
    texts = ["Turn the kitchen lights off.", "It is too dark in here, isn't it?"]
    words = tokenizer(texts, return_tensors="pt", padding=True)
    results = [m.train()(**words, labels=words.input_ids) for m in (model, twin)]
    assert same(results[0].logits, results[1].logits)
    for result in results:
        result.loss.backward()
    for wrapper, prompt in zip(wrappers, prompts, strict=True):
        assert same(wrapper.prompt_embedding.weight.grad, prompt.prompts.grad)
        assert same(wrapper.adaption_gate.grad, prompt.gate.grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_generation_with_a_cache_is_generation_without(tiny):
    model = tiny("llama")
    wrap_top(model, 2, gates=1.0)
    words, options = torch.randint(3, 96, (3, 4)), {"max_new_tokens": 6, "do_sample": False}
    with_cache = model.generate(words, **options)
    assert torch.equal(with_cache, model.generate(words, use_cache=False, **options))

    cache = DynamicCache(config=model.config)
    parts = [model(part, past_key_values=cache).logits for part in words.split([3, 1], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), model(words).logits, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(tiny):
    words, grads = torch.randint(3, 96, (2, 5)), []
    for checkpointing in (False, True):
        model = tiny("llama").train()
        torch.manual_seed(1)
        wrappers = wrap_top(model, 2, gates=0.5)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(words, labels=words).loss.backward()
        grads.append(wrappers[0].prompt_embedding.weight.grad)
    assert torch.equal(*grads) and grads[0].abs().max() > 0
