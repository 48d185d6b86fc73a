"""Solutions of lesson 02: what a failed check falls back to.

Generated from solutions/02_attention.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'2.1': 'rotary_tables', '2.2': 'apply_rotary', '2.3': 'causal_attention', '2.4': 'KeyValueCache', '2.5': 'attend', '2.6': 'decode_greedily'}
STUBS = {'2.1': 'a32df63cb35d', '2.2': 'b9b885c51f48', '2.3': '6083b3e393cc', '2.4': 'a44e0682ce98', '2.5': 'fa90d97fdd3b', '2.6': 'd49e661f163f'}
GIVEN = ('_', 'answer', 'ax', 'axes', 'block', 'cos', 'equal', 'everything', 'fig', 'from_the_start', 'head', 'hidden', 'hidden_of_layers', 'ids', 'in_order', 'key', 'layer', 'mine', 'mine_answer', 'mixed', 'model', 'n', 'n_read', 'n_written', 'one_step', 'out_of_order', 'position', 'positions', 'query', 'question', 'score', 'scores', 'sentence', 'sin', 'tables', 'theirs', 'title', 'token', 'token_ids', 'tokenizer', 'value', 'weights', 'with_caches', 'word', 'word_before', 'words')
CELLS = ('f4a19fe4029b', '49c4ce611fef', '1a6409d2fa11', '4593d0f4f474', '0b4a190dbed8', 'd57e1da9ea16', '9e321f5d7c6e', '0b09b5b663d1', '2f1bc6eabea0', 'd3e13e59e5be', 'abfcb573d7da', '13f553a99256', 'a105c141d85b', '028a4fa58b9e', '619d8a042312', '8fec8533072c')
CHECKS = {'2.1': '@check("2.1", "rotary_tables")\ndef _():\n    position = torch.tensor([[0, 1, 2, 3, 4], [9, 8, 7, 0, 5]])  # b s\n    pair = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])  # the pair that each of d = 8 entries belongs to\n\n    def angle(exponent):\n        return einsum(position.float(), 16.0**exponent, "b s, d -> b s d")\n\n    right = angle(-2 * pair / 8)\n    mistakes = {\n        "each angle should stand twice along d, once for each entry of the pair": right[..., :4],\n        "write (two i), not (i two): pair i is i and i + d/2": angle(-2 * pair.sort()[0] / 8),\n        "the frequencies grow: the exponent needs a minus": angle(2 * pair / 8),\n        "the exponent is -2i/d; yours is -i/d": angle(-pair / 8),\n    }\n    cos, sin = rotary_tables(position, head_dim=8, theta=16.0)\n    assert_close(cos, right.cos(), "b s d", mistakes={k: a.cos() for k, a in mistakes.items()})\n    assert_close(sin, right.sin(), "b s d", what="the sines")\n\n    theirs = model.model.rotary_emb(torch.zeros(1), position)\n    mine = rotary_tables(position, head_dim=64, theta=100_000.0)\n    assert_close(mine[0], theirs[0], "b s d", what="cosines of the real Llama")\n    assert_close(mine[1], theirs[1], "b s d", what="sines of the real Llama")', '2.2': '@check("2.2", "apply_rotary")\ndef _():\n    to_the_right, up = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])  # b h s d\n    turned = apply_rotary(to_the_right, cos=torch.zeros(1, 1, 2), sin=torch.ones(1, 1, 2))\n    mistakes = {"the arrow turns backwards: (first, second) becomes (-second, first)": -up}\n    assert_close(turned, up, "b h s d", mistakes=mistakes, what="a quarter turn of (1, 0)")\n\n    x, angle = torch.randn(2, 3, 5, 8), torch.randn(2, 5, 4)  # b h s d, b s i\n    cos, sin = (\n        repeat(table, "b s i -> b s (two i)", two=2) for table in (angle.cos(), angle.sin())\n    )\n    # Complex numbers turn, too: one pair is one complex number.\n    turn = torch.polar(torch.ones(()), rearrange(angle, "b s i -> b 1 s i"))\n    right = torch.complex(x[..., :4], x[..., 4:]) * turn\n    right = torch.cat([right.real, right.imag], dim=-1)\n\n    first, second = x[..., 0::2], x[..., 1::2]\n    neighbours = rearrange([-second, first], "two b h s i -> b h s (i two)")\n    wide_cos, wide_sin = rearrange([cos, sin], "two b s d -> two b 1 s d")\n    mistakes = {\n        "entry i belongs to entry i + d/2, not to its neighbour: write (two i), not (i two)": (\n            x * wide_cos + neighbours * wide_sin\n        ),\n        "the partner\'s part is missing: add the quarter turn times sin": x * wide_cos,\n    }\n    assert_close(apply_rotary(x, cos, sin), right, "b h s d", mistakes=mistakes)', '2.3': '@check("2.3", "causal_attention")\ndef _():\n    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 5, 8), torch.randn(2, 3, 5, 8)\n    pytorchs = F.scaled_dot_product_attention\n    right = pytorchs(query, key, value, is_causal=True, enable_gqa=True)\n    others_key, others_value = (repeat(x, "b g t d -> b (r g) t d", r=2) for x in (key, value))\n    mistakes = {\n        "a query sees later words: use causal_softmax": pytorchs(\n            query, key, value, enable_gqa=True\n        ),\n        "query heads read the wrong key/value heads: (g r), not (r g)": pytorchs(\n            query, others_key, others_value, is_causal=True\n        ),\n        "the values of head h are not those of its group: (g r), not (r g)": pytorchs(\n            query, repeat_kv_heads(key, 2), others_value, is_causal=True\n        ),\n    }\n    assert_close(causal_attention(query, key, value), right, "b h s d", mistakes=mistakes)\n\n    two_queries = causal_attention(query[:, :, -2:], key, value)\n    from_the_start = pytorchs(query[:, :, -2:], key, value, is_causal=True, enable_gqa=True)\n    mistakes = {\n        "2 queries and 5 keys: the queries are the last words, not the first": from_the_start\n    }\n    assert_close(two_queries, right[:, :, -2:], "b h s d", mistakes=mistakes, what="2 queries")', '2.4': '@check("2.4", "KeyValueCache")\ndef _():\n    key, value = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)  # b g t d: 5 words\n    cache = KeyValueCache()\n    first = cache.append(key[:, :, :3], value[:, :, :3])\n    assert first is not None, "append returns nothing: is the `return` missing?"\n    assert_close(first[0], key[:, :, :3], "b g t d", what="keys of the first 3 words")\n    assert len(cache) == 3, f"the cache should hold 3 words now, it holds {len(cache)}"\n    cache.append(key[:, :, 3:4], value[:, :, 3:4])\n    every_key, every_value = cache.append(key[:, :, 4:], value[:, :, 4:])\n\n    backwards = key[:, :, [4, 3, 0, 1, 2]]\n    mistakes = {\n        "the new words should stand behind the old ones, not before them": backwards,\n        "append should return the keys of all words, not of the new ones only": key[:, :, 4:],\n        "these are the values: key and value are mixed up": value,\n    }\n    assert_close(every_key, key, "b g t d", mistakes=mistakes, what="keys of all 5 words")\n    mistakes = {"these are the keys: key and value are mixed up": key}\n    assert_close(every_value, value, "b g t d", mistakes=mistakes, what="values of all 5 words")\n    assert len(cache) == 5, f"the cache should hold 5 words now, it holds {len(cache)}"\n    assert len(KeyValueCache()) == 0, "a new cache should be empty: store the words in self"', '2.5': '@check("2.5", "attend")\ndef _():\n    def small_layer():\n        """m = 10, h = g = 3, d = 4."""\n        parts = nn.Linear(10, 12), nn.Linear(10, 12), nn.Linear(10, 12), nn.Linear(12, 10)\n        return AttentionLayer(*parts, head_dim=4).requires_grad_(False)\n\n    small, hidden = small_layer(), torch.randn(2, 5, 10)  # b s m\n    result = attend(small, hidden)\n    assert isinstance(result, tuple) and len(result) == 2, "return two things: output, query"\n    output, query = result\n    assert output.shape[-1] != 12, "the output is h*d wide: output_layer comes last"\n    assert_shape(output, "b s m", b=2, s=5, m=10)\n    assert_shape(query, "b h s d", b=2, h=3, s=5, d=4)\n\n    mixed, _ = attend(small, hidden[:, [1, 3, 0, 2, 4]])\n    message = "the order of the earlier words makes no difference: turn queries and keys"\n    assert not torch.allclose(mixed[:, -1], output[:, -1]), message\n\n    not_turned = split_heads(small.query_layer(hidden), head_dim=4)\n    message = "the second result should be the queries after apply_rotary"\n    assert_close(query[:, :, 0], not_turned[:, :, 0], "b h d", what="queries of the first word")\n    assert not torch.allclose(query[:, :, 1:], not_turned[:, :, 1:]), message\n\n    # Queries of zeros weigh all words alike: the last word gets the plain mean of the values.\n    blind = small_layer()\n    blind.query_layer.weight.zero_()\n    blind.query_layer.bias.zero_()\n    mean = blind.output_layer(blind.value_layer(hidden).mean(dim=1))\n    what = "the plain mean of the values (values are not turned)"\n    assert_close(attend(blind, hidden)[0][:, -1], mean, "b m", what=what)\n\n    hidden_of_layers = model.model(token_ids, output_hidden_states=True).hidden_states\n    tables = model.model.rotary_emb(hidden, rearrange(torch.arange(37), "s -> 1 s"))\n    for number in (0, 5, 10):\n        block = model.model.layers[number]\n        hidden = block.input_layernorm(hidden_of_layers[number])\n        right, _ = block.self_attn(hidden, position_embeddings=tables, attention_mask=None)\n        real = AttentionLayer.from_llama(block.self_attn)\n        whole, _ = attend(real, hidden)\n        assert_close(whole, right, "b s m", what=f"layer {number} of the real Llama")\n\n    cache = KeyValueCache()\n    parts = [attend(real, words, cache)[0] for words in hidden.split([30, 1, 6], dim=1)]\n    assert len(cache) == 37, f"after 37 words the cache holds {len(cache)}: use cache.append"\n    what = "in parts, with a cache (positions start at len(cache); keys are kept turned)"\n    assert_close(torch.cat(parts, dim=1), right, "b s m", what=what)', '2.6': '@check("2.6", "decode_greedily")\ndef _():\n    table = torch.randn(11, 11)  # v v: the score of each word after each word\n    sizes = []  # how many words are read in each step\n\n    def read_and_note(words):\n        assert words.ndim == 2, f"read takes words b s, got the shape {tuple(words.shape)}"\n        sizes.append(words.shape[1])\n        return table[words]\n\n    def followers(word):\n        """The 5 words after a word of each row, by the table: b -> b s."""\n        words = [word]\n        for _ in range(5):\n            words.append(table[words[-1]].argmax(dim=-1))\n        return torch.stack(words[1:], dim=1)\n\n    prompt = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])  # b s\n    right = followers(prompt[:, -1])\n    written = decode_greedily(read_and_note, prompt, 5)\n    what = f"words read in the steps: {sizes}"\n    assert sizes[0] == 4, f"{what}: the first step reads the whole prompt, 4 words"\n    assert len(sizes) > 1, f"{what}: read again after each new word"\n    assert set(sizes[1:]) == {1}, f"{what}: after the prompt, read the new word only"\n    mistakes = {\n        "return the new words only, without the prompt": torch.cat([prompt, right], dim=1),\n        "take the scores after the last word, not after the first": followers(prompt[:, 0]),\n    }\n    assert_close(written, right, "b s", mistakes=mistakes)'}

from collections.abc import Callable
import torch
from einops import rearrange
from jaxtyping import Float
from jaxtyping import Int
from llama_adapter_edu.method.attention import AttentionLayer
from llama_adapter_edu.method.attention import merge_heads
from llama_adapter_edu.method.attention import split_heads
from torch import Tensor
from llama_adapter_edu.method.attention import rotary_tables
from llama_adapter_edu.method.attention import apply_rotary
from llama_adapter_edu.method.attention import causal_attention
from llama_adapter_edu.method.attention import KeyValueCache


def attend(
    layer: AttentionLayer,
    hidden_states: Float[Tensor, "b s m"],
    cache: KeyValueCache | None = None,
) -> tuple[Float[Tensor, "b s m"], Float[Tensor, "b h s d"]]:
    """The output of an attention layer, and its turned queries.

    `cache` holds the keys and values of the earlier words; those of the s new words are appended.
    """
    query = split_heads(layer.query_layer(hidden_states), layer.head_dim)
    key = split_heads(layer.key_layer(hidden_states), layer.head_dim)
    value = split_heads(layer.value_layer(hidden_states), layer.head_dim)

    start = 0 if cache is None else len(cache)
    position = torch.arange(start, start + hidden_states.shape[1])
    cos, sin = rotary_tables(rearrange(position, "s -> 1 s"), layer.head_dim, layer.theta)
    query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)

    if cache is not None:
        key, value = cache.append(key, value)
    attended = causal_attention(query, key, value)
    return layer.output_layer(merge_heads(attended)), query


def decode_greedily(
    read: Callable[[Tensor], Tensor], token_ids: Int[Tensor, "b s"], n_words: int
) -> Int[Tensor, "b n"]:
    """Read the prompt `token_ids`, then write n_words, each the most likely one.

    `read` takes new words (b s), gives scores (b s v), and remembers the words it has read.
    """
    written = []
    for _ in range(n_words):
        token_ids = read(token_ids)[:, -1:].argmax(dim=-1)
        written.append(token_ids)
    return torch.cat(written, dim=1)
