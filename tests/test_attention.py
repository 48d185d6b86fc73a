"""A Llama's attention, against PyTorch's and transformers' own, and on real weights."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from llama_adapter_edu.method import attention

# All sizes differ, so that swapped axes cannot pass by luck.
BATCH, HEADS, KV_HEADS, WORDS, HEAD_DIM, WIDTH = 2, 6, 3, 5, 8, 20
TEXT = "The red fox met the blue fox, and the red fox"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def heads(n_heads: int, n_words: int = WORDS) -> torch.Tensor:
    return torch.randn(BATCH, n_heads, n_words, HEAD_DIM)


def small_layer(**settings) -> attention.AttentionLayer:
    return attention.AttentionLayer(
        torch.nn.Linear(WIDTH, HEADS * HEAD_DIM),
        torch.nn.Linear(WIDTH, KV_HEADS * HEAD_DIM),
        torch.nn.Linear(WIDTH, KV_HEADS * HEAD_DIM),
        torch.nn.Linear(HEADS * HEAD_DIM, WIDTH),
        head_dim=HEAD_DIM,
        **settings,
    )


def test_split_heads_cuts_neighbouring_numbers_and_merge_heads_undoes_it():
    x = torch.randn(BATCH, WORDS, HEADS * HEAD_DIM)
    split = attention.split_heads(x, HEAD_DIM)
    for head, numbers in enumerate(x.split(HEAD_DIM, dim=-1)):
        assert torch.equal(split[:, head], numbers)
    assert torch.equal(attention.merge_heads(split), x)


def test_repeat_kv_heads_serves_neighbouring_query_heads():
    key = heads(KV_HEADS)
    repeated = attention.repeat_kv_heads(key, 2)
    assert torch.equal(repeated, key.repeat_interleave(2, dim=1))


def test_a_query_gives_no_weight_to_later_words_and_one_in_all_to_the_others():
    weights = attention.causal_softmax(torch.randn(BATCH, HEADS, WORDS, WORDS))
    assert torch.equal(weights, weights.tril())
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(BATCH, HEADS, WORDS))


@pytest.mark.parametrize("kv_heads", [1, KV_HEADS, HEADS])
def test_causal_attention_equals_pytorchs(kv_heads):
    query, key, value = heads(HEADS), heads(kv_heads), heads(kv_heads)
    right = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(attention.causal_attention(query, key, value), right)


@pytest.mark.parametrize("n_queries", [1, 2])
def test_with_fewer_queries_than_keys_the_queries_are_the_last_words(n_queries):
    query, key, value = heads(HEADS), heads(KV_HEADS), heads(KV_HEADS)
    whole = attention.causal_attention(query, key, value)
    last = attention.causal_attention(query[:, :, -n_queries:], key, value)
    torch.testing.assert_close(last, whole[:, :, -n_queries:])


@pytest.mark.parametrize(("head_dim", "theta"), [(8, 10_000.0), (6, 100.0)])
def test_rotary_tables_equal_transformers(head_dim, theta):
    position = torch.tensor([[0, 1, 2, 3, 700], [9, 8, 30, 0, 2]])
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        rope_theta=theta,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    right = LlamaRotaryEmbedding(config)(torch.zeros(1), position)
    mine = attention.rotary_tables(position, head_dim, theta)
    # An angle of 700 radians keeps 4 decimals in float32.
    torch.testing.assert_close(mine, right, atol=1e-4, rtol=0)


def test_apply_rotary_equals_transformers_in_each_row_of_a_batch():
    position = torch.stack([torch.arange(WORDS), torch.arange(WORDS) + 40])
    cos, sin = attention.rotary_tables(position, HEAD_DIM, theta=100.0)
    query, key = heads(HEADS), heads(KV_HEADS)
    right = apply_rotary_pos_emb(query, key, cos, sin)
    mine = attention.apply_rotary(query, cos, sin), attention.apply_rotary(key, cos, sin)
    torch.testing.assert_close(mine, right)


def test_rotated_scores_depend_on_the_distance_only():
    query, key = heads(HEADS, 1), heads(HEADS, 1)

    def score(query_position: int, key_position: int) -> torch.Tensor:
        tables = [
            attention.rotary_tables(torch.tensor([[position]]), HEAD_DIM, theta=100.0)
            for position in (query_position, key_position)
        ]
        rotated = [
            attention.apply_rotary(x, *table) for x, table in zip((query, key), tables, strict=True)
        ]
        return attention.attention_scores(*rotated)

    torch.testing.assert_close(score(5, 2), score(35, 32))
    assert (score(5, 2) - score(5, 3)).abs().max() > 0.1


@pytest.fixture(scope="module")
def real_layers(llama):
    """(transformers' attention, its input, its output) of each layer while it reads a text."""
    model, tokenizer = llama
    seen = []

    def keep(module, _, keywords, output):
        seen.append((module, keywords["hidden_states"], output[0]))

    blocks = model.model.layers
    hooks = [b.self_attn.register_forward_hook(keep, with_kwargs=True) for b in blocks]
    with torch.no_grad():
        model(tokenizer(TEXT, return_tensors="pt").input_ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_every_attention_layer_of_the_real_llama_is_reproduced(real_layers):
    assert len(real_layers) == 30
    for theirs, hidden, right in real_layers:
        mine, query = attention.AttentionLayer.from_llama(theirs)(hidden)
        # Relative to the layer: outputs reach 2 in layer 0, several hundred in layer 24.
        assert (mine - right).abs().max() < 1e-5 * right.abs().max()
        assert query.shape == (1, 9, hidden.shape[1], 64)


def test_from_llama_shares_the_weights(tiny):
    theirs = tiny("llama").model.layers[0].self_attn
    mine = attention.AttentionLayer.from_llama(theirs)
    assert mine.key_layer is theirs.k_proj
    assert mine.value_layer is theirs.v_proj


def test_from_llama_takes_over_theta(tiny):
    model = tiny(
        "llama", rope_theta=50.0, rope_parameters={"rope_type": "default", "rope_theta": 50.0}
    )
    assert attention.AttentionLayer.from_llama(model.model.layers[0].self_attn).theta == 50.0


SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def test_a_scaled_rotary_embedding_is_refused():
    config = LlamaConfig(hidden_size=48, num_attention_heads=6, rope_scaling=SCALED)
    theirs = LlamaAttention(config, layer_idx=0)
    with pytest.raises(ValueError, match=r"this model has 'llama3'.*add_adaption_prompts"):
        attention.AttentionLayer.from_llama(theirs)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[1] * 12, [7, 1, 4], [12]])
def test_a_cache_changes_nothing(real_layers, chunks):
    theirs, hidden, _ = real_layers[3]
    layer = attention.AttentionLayer.from_llama(theirs)
    whole, whole_query = layer(hidden)
    cache = attention.KeyValueCache()
    parts = [layer(chunk, cache) for chunk in hidden.split(chunks, dim=1)]
    outputs, queries = zip(*parts, strict=True)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(queries, dim=2), whole_query, atol=1e-5, rtol=1e-5)
    assert len(cache) == sum(chunks)


def test_the_cache_keeps_the_words_in_order():
    cache = attention.KeyValueCache()
    assert len(cache) == 0
    key, value = heads(KV_HEADS, 7), heads(KV_HEADS, 7)
    for start, end in ((0, 4), (4, 5), (5, 7)):
        every_key, every_value = cache.append(key[:, :, start:end], value[:, :, start:end])
        assert len(cache) == end
        assert torch.equal(every_key, key[:, :, :end])
        assert torch.equal(every_value, value[:, :, :end])


def test_the_future_and_other_rows_of_the_batch_do_not_matter():
    layer, hidden = small_layer(), torch.randn(BATCH, WORDS, WIDTH)
    output, _ = layer(hidden)
    changed = hidden.clone()
    changed[1, 3:] += 1
    after, _ = layer(changed)
    torch.testing.assert_close(after[0], output[0])
    torch.testing.assert_close(after[1, :3], output[1, :3])
    assert (after[1, 3:] - output[1, 3:]).abs().amax(dim=-1).min() > 1e-3


def test_the_order_of_earlier_words_matters():
    layer, hidden = small_layer(), torch.randn(BATCH, WORDS, WIDTH)
    swapped = hidden[:, [1, 0, 2, 3, 4]]
    assert (layer(swapped)[0] - layer(hidden)[0])[:, -1].abs().max() > 1e-3


def test_gradients_reach_the_input_and_every_weight():
    layer, hidden = small_layer(), torch.randn(BATCH, WORDS, WIDTH, requires_grad=True)
    output, query = layer(hidden)
    (output.square().sum() + query.sum()).backward()
    for name, tensor in [("hidden", hidden), *layer.named_parameters()]:
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().sum() > 0, name


def test_bfloat16_stays_bfloat16_and_close(tiny):
    hidden = torch.randn(BATCH, WORDS, 48)
    layer = attention.AttentionLayer.from_llama(tiny("llama").model.layers[0].self_attn)
    with torch.no_grad():
        right, _ = layer(hidden)
        cache = attention.KeyValueCache()
        output, query = layer.to(torch.bfloat16)(hidden.bfloat16(), cache)
    assert output.dtype == query.dtype == cache.key.dtype == torch.bfloat16
    assert (output - right).abs().max() < 0.03 * right.abs().max()


def test_the_lessons_attention_equals_the_librarys():
    from llama_adapter_edu.course.reference.lesson_02 import attend

    layer, hidden = small_layer(theta=100.0), torch.randn(BATCH, WORDS, WIDTH)
    caches = attention.KeyValueCache(), attention.KeyValueCache()
    for words in hidden.split([3, 1, 1], dim=1):
        mine, right = attend(layer, words, caches[0]), layer(words, caches[1])
        torch.testing.assert_close(mine, right, rtol=0, atol=0)
