"""Solutions of lesson 06: what a failed check falls back to.

Generated from solutions/06_into_a_real_llama.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'6.1': 'top_layers', '6.2': 'freeze_all_but_prompts', '6.3': 'sdpa_with_prompts', '6.4': 'attach', '6.5': 'count_parameters', '6.6': 'save_prompts, load_prompts'}
STUBS = {'6.1': '82ff37861989', '6.2': '8d680844b94f', '6.3': 'fd01a8621806', '6.4': '00d84b6f818c', '6.5': '6281341bbc1f', '6.6': 'dc16d7596b1d'}
GIVEN = ('_', 'adapted', 'added', 'after', 'answer', 'attention', 'ax', 'bare', 'batch', 'batches', 'biased', 'by_head', 'by_word', 'cached', 'choices', 'chosen', 'column', 'cos', 'count', 'difference', 'expected', 'extra', 'favourites', 'file', 'folder', 'greedy', 'has_peft', 'head_dim', 'heads', 'hidden', 'hook', 'i', 'implementation', 'key', 'largest', 'layer', 'layers', 'left', 'llama', 'llama_7b', 'loss', 'losses', 'mine', 'model', 'my_file', 'name', 'names', 'nothing', 'number', 'numbers', 'o_proj', 'opening', 'openings', 'optimizer', 'other', 'output', 'p', 'parameter', 'position', 'projections', 'prompt', 'prompt_key', 'prompt_value', 'query', 'question', 'recomputed', 'right', 'row', 'rows', 'same', 'saved', 'seen', 'settings', 'shape', 'short', 'sin', 'sizes', 'slots', 'sums', 'texts', 'theirs', 'theta', 'token', 'tokenizer', 'total', 'trainable', 'two_texts', 'unseen', 'value', 'weights', 'widest', 'words', 'wrong', 'x', 'yours')
CELLS = ('f4a19fe4029b', '295cb9cc247b', '4c69272fe6e8', 'aebc97f037e9', 'dff6bbf6b7a7', '59e9a7e2bca9', '1b1f64e2d743', '2f9595a0ba6d', '670ab8afc565', 'dbe9aae71ec6', 'b1d7fffdbc8f', '19e19a4e7bba', '407fbd908e8c', '3f1eb0cff29d', 'bd241cd497a5', '8fb5d0de371e', '30b7202c20b7', '3d2f05ce458f', '7579529daa61', 'c6d63bcf21cb', '8bc0d94d6d4e', 'ca788dc99844', '03f50197b4aa', 'b91632311d62', 'c7684f24f24f', '4ea7114bd017')
CHECKS = {'6.1': '@check("6.1", "top_layers", n=[4, 6], count=[2, 3])\ndef _(n, count):\n    names = ["bottom", *(f"layer {number}" for number in range(1, n - 1)), "top"]\n\n    def topmost(count):\n        try:\n            return list(top_layers(names, count))\n        except ValueError:\n            raise AssertionError(\n                f"{count} of {n} layers are possible: no ValueError then"\n            ) from None\n\n    found, right = topmost(count), [names[i] for i in range(n - count, n)]\n    assert found != right[::-1], "the lowest of the chosen layers comes first, not the top one"\n    assert found == right, f"the topmost {count} of {names} are {right}, got {found}"\n    assert topmost(n) == names, f"{n} of {n} layers are all of them"\n    none = topmost(0)\n    assert none == [], f"0 layers should be an empty list, got {none}: layers[-0:] takes all layers"\n    assert topmost(1) == ["top"], "the topmost 1 layer is the top one"\n    modules = nn.ModuleList(nn.Linear(1, 1) for _ in names)\n    same = list(top_layers(modules, count)) == list(modules)[n - count :]\n    assert same, "the layers of a model are an nn.ModuleList, and it fails there"\n    for impossible in (n + 1, n + 5, -1, -n):\n        try:\n            found = top_layers(names, impossible)\n        except ValueError:\n            continue\n        except Exception as error:\n            found = f"a {type(error).__name__}"\n        raise AssertionError(f"{impossible} of {n} layers gave {found}; raise a ValueError instead")', '6.2': '@check("6.2", "freeze_all_but_prompts", layers=[[2, 3], [0]], before=[True, False])\ndef _(layers, before):\n    small = small_llama()\n    for number in layers:\n        small.model.layers[number].self_attn.adaption_prompt = AdaptionPrompt(7, 24, 6)\n    small.requires_grad_(before)\n    small.model.norm.train()\n    modes = [module.training for module in small.modules()]\n    for parameter in small.parameters():\n        parameter.grad = torch.ones_like(parameter)\n    values = {name: p.detach().clone() for name, p in small.named_parameters()}\n\n    freeze_all_but_prompts(small)\n    trains = {name for name, p in small.named_parameters() if p.requires_grad}\n    base = sorted(name for name in trains if "adaption_prompt" not in name)\n    mlp = bool(base) and all("gate_proj" in name for name in base)\n    assert not mlp, f"{base[0]} trains: Llama\'s MLP has a gate too, and it belongs to the base"\n    assert not base, f"{len(base)} parameters of the base still train, as {base[0]}"\n    for part in ("prompts", "gate"):\n        count = sum(name.endswith(part) for name in trains)\n        says = f"{len(layers)} layers have an AdaptionPrompt, but the {part} of {count} train"\n        assert count == len(layers), says\n    same = modes == [module.training for module in small.modules()]\n    assert same, "leave train and eval mode as they are: only requires_grad should change"\n    for name, parameter in small.named_parameters():\n        assert parameter.grad is not None, f"the gradient of {name} is gone: leave it as it is"\n        assert torch.equal(parameter, values[name]), f"the values of {name} have changed"', '6.3': '@check("6.3", "sdpa_with_prompts", b=[3, 2], s=[5, 6], t=[5, 8], p=[7, 4], scaling=[0.3, 0.7])\ndef _(b, s, t, p, scaling):\n    layer = small_llama().model.layers[0].self_attn\n    layer.k_proj, layer.v_proj = nn.Linear(24, 8), nn.Linear(24, 8)  # other Llamas have a bias\n    query, key, value = torch.randn(b, 6, s, 4), torch.randn(b, 2, t, 4), torch.randn(b, 2, t, 4)\n    mask = torch.ones(s, t).tril(t - s) > 0\n    mask = repeat(mask, "s t -> b 1 s t", b=b).clone()\n    mask[1, :, 1:, 0] = False  # of the second row, word 0 is hidden from the later ones\n    inputs, rest = (layer, query, key, value, mask), {"scaling": scaling}  # it is not 1 / sqrt(d)\n    words = sdpa_attention_forward(*inputs, **rest)[0]\n\n    heads, weights = unpacked(sdpa_with_prompts(*inputs, **rest), "the heads", "sdpa\'s weights")\n    mistakes = {\n        "hand **kwargs on to sdpa: the model\'s own scale is lost": (\n            sdpa_attention_forward(*inputs)[0]\n        ),\n        "hand attention_mask on to sdpa: the mask is lost": (\n            sdpa_attention_forward(*inputs[:4], None, **rest)[0]\n        ),\n    }\n    assert_close(heads, words, "b s h d", mistakes=mistakes, what="a layer without prompts")\n    assert weights is None, "the second result is what sdpa gives as weights: None"\n    everyone = {"is_causal": False, **rest}  # without a mask, and words see later ones\n    heads = sdpa_with_prompts(*inputs[:4], None, **everyone)[0]\n    right, lost = (sdpa_attention_forward(*inputs[:4], None, **x)[0] for x in (everyone, rest))\n    mistakes = {"hand all of **kwargs on to sdpa: is_causal=False is lost": lost}\n    assert_close(heads, right, "b s h d", mistakes=mistakes, what="a layer without prompts")\n\n    prompt = layer.adaption_prompt = AdaptionPrompt(p, 24, 6)\n\n    class Called(nn.Module):\n        """The answer with the layer\'s prompts and gate as inputs of their own."""\n\n        def __init__(self):\n            super().__init__()\n            self.layer = layer\n\n        def forward(self, query, key, value):\n            return sdpa_with_prompts(self.layer, query, key, value, mask, **rest)[0]\n\n    def call(query, key, value, prompts, gate):\n        own = {"layer.adaption_prompt.prompts": prompts, "layer.adaption_prompt.gate": gate}\n        return torch.func.functional_call(Called(), own, (query, key, value))\n\n    tensors = query, key, value, prompt.prompts, prompt.gate\n    assert_gradients(call, *tensors, what="with closed gates", tol=0.002)\n\n    for _ in range(2):  # the second time with other prompts in the same layer\n        nn.init.normal_(prompt.gate)\n        nn.init.normal_(prompt.prompts)\n        prompt_key, prompt_value = (  # each of the 2 key/value heads serves 3 query heads\n            repeat(projection(prompt.prompts), "p (g d) -> b (g r) p d", b=b, r=3, d=4)\n            for projection in (layer.k_proj, layer.v_proj)\n        )\n\n        def added(opening, key=prompt_key, value=prompt_value, scale=scaling):\n            attended = scaled_dot_product_attention(query, key, value, scale=scale)\n            return rearrange(opening * attended, "b h s d -> b s h d")\n\n        gate = rearrange(prompt.gate, "h -> h 1 1")\n        right = added(gate.tanh())\n        scrambled = rearrange(right, "b s h d -> b h s d").reshape(words.shape)\n        mistakes = {\n            "the prompts add nothing: add their part to sdpa\'s output": words,\n            "the gate is missing": words + added(torch.ones(1)),\n            "the gate lacks its tanh": words + added(gate),\n            "the tanh is applied twice: gated_prompt_attention does it already": (\n                words + added(gate.tanh().tanh())\n            ),\n            "reshape scrambles heads and words; rearrange b h s d to b s h d": words + scrambled,\n            "the prompts\' scores need the scale in kwargs[\'scaling\']": (\n                words + added(gate.tanh(), scale=None)\n            ),\n            "keys and values of the prompts look swapped": (\n                words + added(gate.tanh(), prompt_value, prompt_key)\n            ),\n            "the words\' part is lost: add the prompts to sdpa\'s output": right,\n            "the prompts\' part is taken away, not added": words - right,\n        }\n        if s == 6:  # as many words as heads\n            says = "b h s d was added to b s h d: the sizes are equal here, the axes are not"\n            mistakes[says] = words + rearrange(right, "b s h d -> b h s d")\n        heads = sdpa_with_prompts(*inputs, **rest)[0]\n        what = "a layer with prompts"\n        assert_close(heads, words + right, "b s h d", mistakes=mistakes, what=what)\n    assert_gradients(call, *tensors, tol=0.002)', '6.4': '@check("6.4", "attach", adapter_layers=[2, 3], adapter_len=[7, 4])\ndef _(adapter_layers, adapter_len):\n    small = small_llama()\n    padding = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])\n    inputs = {"input_ids": torch.randint(31, (3, 5)), "attention_mask": padding}\n    before = small(**inputs).logits[:, -1]\n    # Forget what an earlier run has registered.\n    AttentionInterface.register("sdpa_with_prompts", sdpa_attention_forward)\n    AttentionMaskInterface.register("sdpa_with_prompts", lambda **kwargs: None)\n    attach(small, adapter_layers, adapter_len=adapter_len)\n\n    def prompts_of(model):\n        found = [getattr(layer.self_attn, "adaption_prompt", None) for layer in model.model.layers]\n        return {number: prompt for number, prompt in enumerate(found) if prompt is not None}\n\n    found, right = prompts_of(small), list(range(4 - adapter_layers, 4))\n    says = f"the topmost {adapter_layers} of 4 layers are {right}; prompts sit at {list(found)}"\n    assert list(found) == right, says\n    different = len({id(prompt) for prompt in found.values()}) == adapter_layers\n    assert different, "the layers share one AdaptionPrompt; make one for each layer"\n    for prompt in found.values():\n        assert_shape(prompt.prompts, "p m", p=adapter_len, m=24)\n        assert len(prompt.gate) != 2, "make one gate for each query head, not each key/value head"\n        assert_shape(prompt.gate, "h", h=6)\n        assert not prompt.gate.any(), "the gates should start at zero: leave them as they are made"\n        trains = all(p.requires_grad for p in prompt.parameters())\n        assert trains, "the new prompts do not train: freeze after they are in the model"\n    frozen = [p.requires_grad for name, p in small.named_parameters() if "adaption" not in name]\n    assert not any(frozen), "the base still trains: call freeze_all_but_prompts"\n\n    closed = small(**inputs).logits[:, -1]\n    said = "the gates are zero, yet a padded batch gives other logits: register the mask as well"\n    assert torch.equal(closed, before), said\n    for prompt in found.values():\n        nn.init.ones_(prompt.gate)\n    changed = not torch.equal(small(**inputs).logits[:, -1], before)\n    said = "open gates change nothing: is the model switched to your function, and that registered?"\n    assert changed, said\n\n    with torch.device("meta"):\n        away = small_llama()\n    attach(away, 1)\n    (prompt,) = prompts_of(away).values()\n    assert prompt.prompts.is_meta, "the prompts should be on the model\'s device: device=..."\n    says = f"without adapter_len there are 10 prompts, not {len(prompt.prompts)}"\n    assert len(prompt.prompts) == 10, says', '6.5': '@check("6.5", "count_parameters", adapter_layers=[2, 1], adapter_len=[7, 5], norm_trains=[0, 1])\ndef _(adapter_layers, adapter_len, norm_trains):\n    small = small_llama()\n    attach(small, adapter_layers, adapter_len=adapter_len)\n    small.model.norm.requires_grad_(bool(norm_trains))\n    adapter = adapter_layers * (adapter_len * 24 + 6)\n    attention, mlp, norms = 24 * (24 + 8 + 8 + 24), 3 * 24 * 40, 2 * 24\n    words = 31 * 24  # one matrix at both ends\n    total = words + 4 * (attention + mlp + norms) + 24 + adapter\n    trains = adapter + 24 * norm_trains\n\n    result = count_parameters(small)\n    tensors = 2 * adapter_layers + norm_trains, 1 + 4 * 9 + 1 + 2 * adapter_layers\n    mistakes = {\n        "that is the number of tensors; count the numbers in them": tensors,\n        "everything is counted: only parameters with requires_grad train": (total, None),\n        "these are the prompts and gates; another parameter trains, too": (adapter, None),\n        "that is the base, which does not train": (total - trains, None),\n        "the word matrix is counted twice: it is one, with two names": (None, total + words),\n        "that is the base alone; the prompts are a part of the model too": (None, total - trains),\n        "that is what trains; all are asked for": (None, trains),\n    }\n    assert_results(result, {"what trains": trains, "all": total}, mistakes=mistakes)', '6.6': '@check("6.6", "save_prompts", "load_prompts", adapter_layers=[2, 3], adapter_len=[7, 5])\ndef _(adapter_layers, adapter_len):\n    def attached(adapter_layers, adapter_len):\n        model = small_llama()\n        attach(model, adapter_layers, adapter_len)\n        for layer in model.model.layers[4 - adapter_layers :]:\n            nn.init.normal_(layer.self_attn.adaption_prompt.gate)\n        return model\n\n    def own(model):\n        return {n: p for n, p in model.named_parameters() if "adaption_prompt" in n}\n\n    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:\n        # What is in the file: two models, two files.\n        files = {\n            Path(name, f"{i}.safetensors"): attached(adapter_layers, adapter_len) for i in "ab"\n        }\n        for path, model in files.items():\n            save_prompts(model, path)\n            assert path.is_file(), f"there is no file {path.name}: write to the path that is given"\n        for path, model in files.items():\n            saved = load_file(path)\n            base = [key for key in saved if "adaption_prompt" not in key]\n            assert not base, f"the file holds {len(base)} tensors of the base, as {base[0]}"\n            missing = sorted(own(model).keys() - saved.keys())\n            count = f"{len(missing)} of {len(own(model))}"\n            assert not missing, f"the file lacks {count} tensors, as {missing[0]}"\n            unknown = sorted(saved.keys() - own(model).keys())\n            assert not unknown, f"{unknown[0]} in the file is not the full name of a parameter"\n            for key, tensor in own(model).items():\n                assert_close(saved[key], tensor.detach(), what=key)\n\n        # Back again, into models that are there.\n        for path, model in files.items():\n            fresh = attached(adapter_layers, adapter_len)\n            before = dict(fresh.named_parameters())\n            try:\n                load_prompts(fresh, path)\n            except (ValueError, RuntimeError) as error:\n                says = f"the file of a model of the same form is refused: {str(error)[:120]}"\n                raise AssertionError(says) from None\n            for key, parameter in fresh.named_parameters():\n                said = "was replaced by another object: an optimizer would go on with the old one"\n                assert parameter is before[key], f"{key} {said}"\n                if key in own(model):\n                    assert_close(parameter, own(model)[key], what=f"{key} after loading")\n                    assert parameter.requires_grad, f"{key} does not train any more after loading"\n\n        # Files of other models.\n        path, tensors = next(iter(files)), {k: p.detach() for k, p in own(model).items()}\n        first, count = next(iter(tensors)), f"{adapter_layers} layers of {adapter_len} prompts"\n        wrong_files = {\n            "3 layers" if adapter_layers == 2 else "2 layers": own(\n                attached(5 - adapter_layers, adapter_len)\n            ),\n            "1 prompt in each layer": own(attached(adapter_layers, 1)),\n            "nothing in it": {},\n            "one tensor too few": {k: x for k, x in tensors.items() if k != first},\n            "one unknown name": {k.replace(first, "other"): x for k, x in tensors.items()},\n        }\n        for words, content in wrong_files.items():\n            save_file({k: x.detach() for k, x in content.items()}, path)\n            try:\n                load_prompts(fresh, path)\n            except (ValueError, RuntimeError):\n                continue\n            except Exception as error:\n                kind = type(error).__name__\n                says = f"a file with {words} ends in a {kind}: raise a ValueError before that"\n                raise AssertionError(says) from None\n            raise AssertionError(f"a file with {words} was read into {count}, silently")'}

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

    Only they train afterwards. Their gates are zero: the model computes what it did before. Prompts
    of an earlier call are taken off.
    """
    for layer in model.model.layers:  # prompts of an earlier call would go on training
        if hasattr(layer.self_attn, "adaption_prompt"):
            del layer.self_attn.adaption_prompt
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
