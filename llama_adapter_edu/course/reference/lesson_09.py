"""Solutions of lesson 09: what a failed check falls back to.

Generated from solutions/09_a_llama_that_sees.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'9.1': 'image_vector', '9.2': 'add_image', '9.3': 'image_keys_values', '9.4': 'attend_row_by_row'}
STUBS = {'9.1': 'c94ba20347b4', '9.2': '87b0c2cdedb9', '9.3': 'cc3191ca0048', '9.4': '9dd0e2ef85f7'}
GIVEN = ('LAYERS', '_', 'added', 'answers', 'asked', 'attention', 'ax', 'axes', 'bare', 'bars', 'blind', 'blind_part', 'by_hand', 'chosen', 'clip', 'closed', 'coarse', 'colour', 'difference', 'digit', 'digits', 'drawn', 'encoder', 'features', 'few', 'file', 'fine', 'folder', 'gates', 'grid', 'guess', 'hatch', 'head', 'heads', 'heights', 'held_kind', 'here', 'i', 'ids', 'image', 'images', 'in_one_call', 'kind', 'layer', 'learns', 'llama', 'loaded', 'look', 'looks', 'losses', 'loudness', 'lowest', 'name', 'names', 'never', 'no_picture', 'number', 'of_all_vision', 'of_digit', 'of_encoder', 'of_image', 'of_layer', 'on_gpu', 'p', 'pair', 'photos', 'picture', 'place', 'places', 'prompt', 'q', 'query', 'question', 'right', 'row', 'run', 'said', 'same', 'scale', 'score', 'scores', 'seeing_part', 'seen', 'shown', 'shuffled', 'sizes', 'some', 'stored', 'test_digits', 'test_images', 'text', 'title', 'token', 'token_ids', 'tokenizer', 'top', 'total', 'trainable', 'trained', 'training', 'two', 'value', 'value_proj', 'w', 'weights', 'with_image', 'without', 'words', 'words_only', 'wrong_picture', 'x')
CELLS = ('f4a19fe4029b', 'b6a4621949d3', 'b407f3d07ddc', '124002273c6b', '7acaa4304d4f', '5ca73fa79f36', 'ad93fef76704', '07a5df7e0654', '3fe24a120c79', '1b742a339331', '193da54e2d93', '056322f9f333', '1f14ed050d3c', '5f7a15ab7553', '1234dd22c98a', 'bb5155131b66', '989b639049a0', 'ec5344dd39e4', '934255ad1a62', '21bcde45d377', '6e6382dcbc9a', '8ef2d210b28f', '12ed70b5082f', '98df7aedb132')
CHECKS = {'9.1': '@check("9.1", "image_vector")\ndef _():\n    # b=2 pictures, three scales of width 5, 3 and 4, m=7\n    scales = [torch.randn(2, 5), torch.randn(2, 3), torch.randn(2, 4)]\n    projection = nn.Linear(12, 7)\n    vector = image_vector(scales, projection)\n    assert_shape(vector, "b m", b=2, m=7)\n\n    # the same sum, scale by scale: each has its own columns of the matrix\n    parts = projection.weight.split([5, 3, 4], dim=1)\n    right = projection.bias + sum(scale @ part.T for scale, part in zip(scales, parts, strict=True))\n    mistakes = {\n        "the scales are in the wrong order": projection(torch.cat(scales[::-1], dim=-1)),\n        "that is one scale only": projection.bias + scales[-1] @ parts[-1].T,\n    }\n    assert_close(vector, right, "b m", mistakes=mistakes)', '9.2': '@check("9.2", "add_image")\ndef _():\n    # p=5 prompts, b=3 pictures, m=7\n    prompts, pictures = torch.randn(5, 7), torch.randn(3, 7)\n    added = add_image(prompts, pictures)\n    assert_shape(added, "b p m", b=3, p=5, m=7)\n\n    right = torch.empty(3, 5, 7)\n    for b in range(3):\n        for p in range(5):\n            right[b, p] = prompts[p] + pictures[b]\n    first = repeat(prompts, "p m -> b p m", b=3).clone()\n    first[:, 0] += pictures\n    mistakes = {\n        "only the first prompt got the picture; eq. 10 repeats it for all": first,\n        "each row gets its own picture; this is the mean of all": repeat(\n            prompts + pictures.mean(dim=0), "p m -> b p m", b=3\n        ),\n        "the prompts themselves are lost: add, do not replace": repeat(\n            pictures, "b m -> b p m", p=5\n        ),\n    }\n    assert_close(added, right, "b p m", mistakes=mistakes)', '9.3': '@check("9.3", "image_keys_values")\ndef _():\n    # b=3 rows, p=5 prompts, m=14, g=2 key/value heads of d=4\n    projections = nn.Linear(14, 8), nn.Linear(14, 8)\n    of_layer = partial(\n        prompt_keys_values, key_proj=projections[0], value_proj=projections[1], head_dim=4\n    )\n    prompts = torch.randn(3, 5, 14)\n    result = image_keys_values(prompts, of_layer)\n    assert isinstance(result, tuple) and len(result) == 2, "return two tensors: keys and values"\n\n    rights = [torch.stack(rows) for rows in zip(*map(of_layer, prompts), strict=True)]\n    for what, mine, right, other in (\n        ("the keys", result[0], rights[0], rights[1]),\n        ("the values", result[1], rights[1], rights[0]),\n    ):\n        assert_shape(mine, "b g p d", b=3, g=2, p=5, d=4)\n        mixed = rearrange(rearrange(right, "b g p d -> g (b p) d"), "g (p b) d -> b g p d", b=3)\n        mistakes = {\n            "keys and values are swapped": other,\n            "rows are mixed up: join and split in the same order, (b p) both times": mixed,\n            "all rows have the keys and values of row 0": repeat(right[0], "g p d -> b g p d", b=3),\n        }\n        assert_close(mine, right, "b g p d", mistakes=mistakes, what=what)', '9.4': '@check("9.4", "attend_row_by_row")\ndef _():\n    # b=3 rows, s=7 words, p=5 prompts; each of g=2 key/value heads serves r=3 query heads, d=4\n    prompt = AdaptionPrompt(5, 14, 6)\n    nn.init.normal_(prompt.gate)\n    query = torch.randn(3, 6, 7, 4)\n    prompt_key, prompt_value = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)\n    added = attend_row_by_row(prompt, query, prompt_key, prompt_value, 0.3)\n    assert_shape(added, "b h s d", b=3, h=6, s=7, d=4)\n\n    def by_torch(key, value, scale=0.3):\n        key, value = (repeat(x, "b g p d -> b (g r) p d", r=3) for x in (key, value))\n        attended = scaled_dot_product_attention(query, key, value, scale=scale)\n        return rearrange(prompt.gate.tanh(), "h -> h 1 1") * attended\n\n    row_0 = [repeat(x[0], "g p d -> b g p d", b=3) for x in (prompt_key, prompt_value)]\n    mistakes = {\n        "all rows look at the prompts of row 0": by_torch(*row_0),\n        "the scale is not handed on": by_torch(prompt_key, prompt_value, scale=None),\n    }\n    right = by_torch(prompt_key, prompt_value)\n    assert_close(added, right, "b h s d", mistakes=mistakes)'}

from einops import rearrange
from einops import repeat
from jaxtyping import Float
from llama_adapter_edu import AdaptionPrompt
from torch import Tensor
from torch.func import functional_call
from llama_adapter_edu.vision.image_prompt import image_vector
from llama_adapter_edu.method.image_prompts import add_image
from llama_adapter_edu.method.image_prompts import image_keys_values


def attend_row_by_row(
    prompt: AdaptionPrompt,
    query: Float[Tensor, "b h s d"],
    prompt_key: Float[Tensor, "b g p d"],
    prompt_value: Float[Tensor, "b g p d"],
    scale: float | None = None,
) -> Float[Tensor, "b h s d"]:
    """What `prompt` adds when each row of the batch has keys and values of its own (eq. 7).

    `prompt(query, key, value, scale)` takes a query (b h s d), and keys and values (g p d) that all
    its rows share.
    """
    n_rows, n_heads = query.shape[:2]
    gate = repeat(prompt.gate, "h -> (b h r)", b=n_rows, r=n_heads // len(prompt.gate))
    rows_as_heads = (
        rearrange(query, "b h s d -> 1 (b h) s d"),
        rearrange(prompt_key, "b g p d -> (b g) p d"),
        rearrange(prompt_value, "b g p d -> (b g) p d"),
    )
    added = functional_call(prompt, {"gate": gate}, (*rows_as_heads, scale))
    return rearrange(added, "1 (b h) s d -> b h s d", b=n_rows)
