"""Solutions of lesson 06: what a failed check falls back to.

Generated from solutions/06_into_a_real_llama.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'6.1': 'top_layers', '6.2': 'freeze_all_but_prompts', '6.3': 'sdpa_with_prompts', '6.4': 'attach', '6.5': 'count_parameters', '6.6': 'save_prompts, load_prompts'}
STUBS = {'6.1': '82ff37861989', '6.2': '8d680844b94f', '6.3': 'fd01a8621806', '6.4': 'ecc4c412fad0', '6.5': '6281341bbc1f', '6.6': 'dc16d7596b1d'}
GIVEN = ('_', 'adapted', 'added', 'after', 'answer', 'attention', 'ax', 'bare', 'batch', 'batches', 'biased', 'by_head', 'by_word', 'cached', 'choices', 'chosen', 'column', 'cos', 'count', 'difference', 'expected', 'extra', 'favourites', 'file', 'folder', 'greedy', 'has_peft', 'head_dim', 'heads', 'hidden', 'hook', 'i', 'implementation', 'key', 'largest', 'layer', 'layers', 'left', 'llama', 'llama_7b', 'loss', 'losses', 'mine', 'model', 'my_file', 'name', 'names', 'nothing', 'number', 'numbers', 'o_proj', 'opening', 'openings', 'optimizer', 'other', 'output', 'p', 'parameter', 'position', 'projections', 'prompt', 'prompt_key', 'prompt_value', 'query', 'question', 'recomputed', 'right', 'row', 'rows', 'same', 'saved', 'seen', 'settings', 'shape', 'short', 'sin', 'sizes', 'slots', 'sums', 'texts', 'theirs', 'theta', 'token', 'tokenizer', 'total', 'trainable', 'two_texts', 'unseen', 'value', 'weights', 'widest', 'words', 'wrong', 'x', 'yours')
CELLS = ('f4a19fe4029b', '41db76b38e64', '4c69272fe6e8', 'aebc97f037e9', 'dff6bbf6b7a7', '59e9a7e2bca9', '1b1f64e2d743', '2f9595a0ba6d', '670ab8afc565', 'dbe9aae71ec6', 'b1d7fffdbc8f', '19e19a4e7bba', '407fbd908e8c', '3f1eb0cff29d', 'bd241cd497a5', '8fb5d0de371e', '30b7202c20b7', '3d2f05ce458f', '7579529daa61', 'c6d63bcf21cb', '8bc0d94d6d4e', 'ca788dc99844', '03f50197b4aa', 'b91632311d62', 'c7684f24f24f', '4ea7114bd017')
CHECKS = {'6.1': '@check("6.1", "top_layers")\ndef _():\n    names = ["bottom", "second", "third", "top"]\n    two = list(top_layers(names, 2))\n    assert two != ["top", "third"], "the lowest of the chosen layers comes first, not the top one"\n    assert two == ["third", "top"], f"the topmost 2 of {names} are third and top, got {two}"\n    assert list(top_layers(names, 4)) == names, "4 of 4 layers are all of them"\n    none = list(top_layers(names, 0))\n    assert none == [], f"0 layers should be an empty list, got {none}: layers[-0:] takes all layers"\n    for impossible in (5, -1):\n        try:\n            found = list(top_layers(names, impossible))\n        except ValueError:\n            continue\n        raise AssertionError(f"{impossible} of 4 layers gave {found}; raise a ValueError instead")', '6.2': '@check("6.2", "freeze_all_but_prompts")\ndef _():\n    small = small_llama()\n    for layer in small.model.layers[2:]:\n        layer.self_attn.adaption_prompt = AdaptionPrompt(7, 24, 6)\n    freeze_all_but_prompts(small)\n    trains = {name for name, p in small.named_parameters() if p.requires_grad}\n    base = sorted(name for name in trains if "adaption_prompt" not in name)\n    mlp = bool(base) and all("gate_proj" in name for name in base)\n    assert not mlp, f"{base[0]} trains: Llama\'s MLP has a gate too, and it belongs to the base"\n    assert not base, f"{len(base)} parameters of the base still train, as {base[0]}"\n    for part in ("prompts", "gate"):\n        count = sum(name.endswith(part) for name in trains)\n        assert count == 2, f"2 layers have an AdaptionPrompt, but the {part} of {count} train"', '6.3': '@check("6.3", "sdpa_with_prompts")\ndef _():\n    layer = small_llama().model.layers[0].self_attn\n    query, key, value = torch.randn(3, 6, 5, 4), torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)\n    inputs = (layer, query, key, value, None)\n    words, _ = sdpa_attention_forward(*inputs, scaling=0.3)  # 0.3 is not 1 / sqrt(d)\n\n    result = sdpa_with_prompts(*inputs, scaling=0.3)\n    pair = isinstance(result, tuple) and len(result) == 2\n    assert pair, "return two things as sdpa does: the heads and its weights"\n    unscaled, _ = sdpa_attention_forward(*inputs)\n    mistakes = {"hand **kwargs on to sdpa: the model\'s own scale is lost": unscaled}\n    assert_close(result[0], words, "b s h d", mistakes=mistakes, what="a layer without prompts")\n\n    # A layer with prompts. Each of the 2 key/value heads serves 3 query heads.\n    prompt = layer.adaption_prompt = AdaptionPrompt(7, 24, 6)\n    nn.init.normal_(prompt.gate)\n    prompt_key, prompt_value = (\n        repeat(projection(prompt.prompts), "p (g d) -> b (g r) p d", b=3, r=3, d=4)\n        for projection in (layer.k_proj, layer.v_proj)\n    )\n    attended = scaled_dot_product_attention(query, prompt_key, prompt_value, scale=0.3)\n    other_scale = scaled_dot_product_attention(query, prompt_key, prompt_value)\n    gate = rearrange(prompt.gate, "h -> h 1 1")\n    right = rearrange(gate.tanh() * attended, "b h s d -> b s h d")\n    mistakes = {\n        "the gate is missing": words + rearrange(attended, "b h s d -> b s h d"),\n        "the gate lacks its tanh": words + rearrange(gate * attended, "b h s d -> b s h d"),\n        "reshape scrambles heads and words; rearrange b h s d to b s h d": words\n        + (gate.tanh() * attended).reshape(words.shape),\n        "the prompts\' scores need the scale in kwargs[\'scaling\']": words\n        + rearrange(gate.tanh() * other_scale, "b h s d -> b s h d"),\n        "the words\' part is lost: add the prompts to sdpa\'s output": right,\n    }\n    heads, _ = sdpa_with_prompts(*inputs, scaling=0.3)\n    assert_close(heads, words + right, "b s h d", mistakes=mistakes, what="a layer with prompts")', '6.4': '@check("6.4", "attach")\ndef _():\n    small = small_llama()\n    padding = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])\n    inputs = {"input_ids": torch.randint(31, (3, 5)), "attention_mask": padding}\n    before = small(**inputs).logits[:, -1]\n    # Forget the mask that an earlier run has registered.\n    AttentionMaskInterface.register("sdpa_with_prompts", lambda **kwargs: None)\n    attach(small, 2, adapter_len=7)\n\n    found = [getattr(layer.self_attn, "adaption_prompt", None) for layer in small.model.layers]\n    has = [number for number, prompt in enumerate(found) if prompt is not None]\n    assert has == [2, 3], f"the topmost 2 of 4 layers are 2 and 3; prompts sit at {has}"\n    assert found[2] is not found[3], "both layers share one AdaptionPrompt; make one for each layer"\n    assert_shape(found[2].prompts, "p m", p=7, m=24)\n    assert len(found[2].gate) != 2, "make one gate for each query head, not each key/value head"\n    assert_shape(found[2].gate, "h", h=6)\n    frozen = [p.requires_grad for name, p in small.named_parameters() if "adaption" not in name]\n    assert not any(frozen), "the base still trains: call freeze_all_but_prompts"\n    trains = all(p.requires_grad for p in found[2].parameters())\n    assert trains, "the new prompts do not train: freeze after they are in the model"\n\n    closed = small(**inputs).logits[:, -1]\n    said = "the gates are zero, yet a padded batch gives other logits: register the mask as well"\n    assert torch.equal(closed, before), said\n    for prompt in found[2:]:\n        nn.init.ones_(prompt.gate)\n    changed = not torch.equal(small(**inputs).logits[:, -1], before)\n    assert changed, "open gates change nothing: is the model switched to the new function?"', '6.5': '@check("6.5", "count_parameters")\ndef _():\n    small = small_llama()\n    attach(small, 2, adapter_len=7)\n    adapter = 2 * (7 * 24 + 6)\n    attention, mlp, norms = 24 * (24 + 8 + 8 + 24), 3 * 24 * 40, 2 * 24\n    words = 31 * 24  # one matrix at both ends\n    total = words + 4 * (attention + mlp + norms) + 24 + adapter\n\n    result = count_parameters(small)\n    pair = isinstance(result, (tuple, list)) and len(result) == 2\n    assert pair, f"return two numbers, those that train and all; got {result!r}"\n    trainable, everything = result\n    tensors = {"that is the number of tensors; count the numbers in them": 4}\n    assert_close(trainable, adapter, mistakes={**tensors, "all comes second": total}, what="trains")\n    mistakes = {\n        "the word matrix is counted twice: it is one, with two names": total + words,\n        "that is the base alone; the prompts are a part of the model too": total - adapter,\n    }\n    assert_close(everything, total, mistakes=mistakes, what="all")', '6.6': '@check("6.6", "save_prompts", "load_prompts")\ndef _():\n    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)\n    path = Path(folder.name, "prompts.safetensors")\n    models = {(2, 7): small_llama(), (3, 7): small_llama(), (2, 1): small_llama()}\n    for (adapter_layers, adapter_len), model in models.items():\n        attach(model, adapter_layers, adapter_len)\n        save_prompts(model, path.with_stem(f"{adapter_layers}_{adapter_len}"))\n    saved = load_file(path.with_stem("2_7"))\n    own = {n: p.detach() for n, p in models[2, 7].named_parameters() if "adaption_prompt" in n}\n    base = [name for name in saved if "adaption_prompt" not in name]\n    assert not base, f"the file holds {len(base)} tensors of the base, as {base[0]}"\n    missing = sorted(own.keys() - saved.keys())\n    assert not missing, f"the file lacks {len(missing)} of {len(own)} tensors, as {missing[0]}"\n    for name, tensor in own.items():\n        assert_close(saved[name], tensor, what=name)\n\n    fresh = small_llama()\n    attach(fresh, 2, adapter_len=7)\n    before = dict(fresh.named_parameters())\n    load_prompts(fresh, path.with_stem("2_7"))\n    for name, parameter in fresh.named_parameters():\n        said = "was replaced by another object: an optimizer would go on with the old one"\n        assert parameter is before[name], f"{name} {said}"\n        if name in own:\n            assert_close(parameter, own[name], what=name)\n\n    for other, word in {"3_7": "3 layers", "2_1": "1 prompt in each layer"}.items():\n        try:\n            load_prompts(fresh, path.with_stem(other))\n        except (ValueError, RuntimeError):\n            continue\n        raise AssertionError(f"a file with {word} was read into 2 layers of 7 prompts, silently")\n    folder.cleanup()'}

from collections.abc import Sequence
from pathlib import Path
from einops import rearrange
from jaxtyping import Float
from llama_adapter_edu import AdaptionPrompt
from llama_adapter_edu import gated_prompt_attention
from llama_adapter_edu.method.gated_prompts import prompt_keys_values
from safetensors.torch import load_file
from safetensors.torch import save_file
from torch import Tensor
from torch import nn
from transformers import AttentionInterface
from transformers import AttentionMaskInterface
from transformers import LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from llama_adapter_edu.adapters.inspect import count_parameters


def top_layers(layers: Sequence, count: int) -> Sequence:
    """The topmost `count` of the layers, which are listed from the bottom up.

    Raises ValueError if there are not that many.
    """
    if not 0 <= count <= len(layers):
        raise ValueError(f"asked for {count} layers, the model has {len(layers)}")
    return layers[len(layers) - count :]


def freeze_all_but_prompts(model: nn.Module) -> None:
    """Let the model's `AdaptionPrompt` modules train, and nothing else; in place."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, AdaptionPrompt):
            module.requires_grad_(True)


def sdpa_with_prompts(
    module: nn.Module,
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b g t d"],
    value: Float[Tensor, "b g t d"],
    attention_mask: Tensor | None,
    **kwargs,
) -> tuple[Float[Tensor, "b s h d"], None]:
    """sdpa over the words, plus the gated prompts of the layer `module` if it has any (eq. 7, 8).

    `kwargs` is what else the model passes on. sdpa needs all of it; `scaling` is the scale of the
    scores. Returns the heads and what sdpa gave as weights.
    """
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    prompt = getattr(module, "adaption_prompt", None)
    if prompt is None:
        return output, weights
    prompt_key, prompt_value = prompt_keys_values(
        prompt.prompts, module.k_proj, module.v_proj, module.head_dim
    )
    scale = kwargs["scaling"]
    added = gated_prompt_attention(query, prompt_key, prompt_value, prompt.gate, scale=scale)
    return output + rearrange(added, "b h s d -> b s h d"), weights


def attach(model: LlamaForCausalLM, adapter_layers: int, adapter_len: int = 10) -> None:
    """Add prompts (p m) and gates (h) to the topmost `adapter_layers` layers, in place.

    Only they train afterwards. Their gates are zero: the model computes what it did before.
    """
    width, n_heads = model.config.hidden_size, model.config.num_attention_heads
    for layer in top_layers(model.model.layers, adapter_layers):
        prompt = AdaptionPrompt(adapter_len, width, n_heads, device=model.device)
        layer.self_attn.adaption_prompt = prompt
    freeze_all_but_prompts(model)
    AttentionInterface.register("sdpa_with_prompts", sdpa_with_prompts)
    AttentionMaskInterface.register("sdpa_with_prompts", sdpa_mask)
    model.set_attn_implementation("sdpa_with_prompts")


def save_prompts(model: nn.Module, path: Path) -> None:
    """Write the model's prompts (p m) and gates (h), and nothing of the base."""
    parameters = model.named_parameters()
    save_file({name: p.detach() for name, p in parameters if ".adaption_prompt." in name}, path)


def load_prompts(model: nn.Module, path: Path) -> None:
    """Read what `save_prompts` wrote into the model's own prompts, in place.

    Raises ValueError or RuntimeError if names or shapes are not those of the model.
    """
    tensors = load_file(path)
    expected = {name for name, _ in model.named_parameters() if ".adaption_prompt." in name}
    if different := sorted(expected ^ set(tensors)):
        raise ValueError(
            f"{path.name} is not for this model: {different[0]} is only in one of them"
        )
    model.load_state_dict(tensors, strict=False)
