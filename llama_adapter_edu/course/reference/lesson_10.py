"""Solutions of lesson 10: what a failed check falls back to.

Generated from solutions/10_one_gate_many_papers.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'10.1': 'silent_parameters', '10.2': 'biased_and_scaled', '10.3': 'Cartridge', '10.4': 'kl_divergence', '10.5': 'numbers_to_learn'}
STUBS = {'10.1': '7e3bb54c5f88', '10.2': 'f4dca3d94698', '10.3': '8aac130b361a', '10.4': '177a95dde0e1', '10.5': 'e43a92f65c8e'}
GIVEN = ('NAMES', 'N_SLOTS', '_', 'about', 'added', 'alone', 'apart', 'as_gate', 'attentions', 'ax', 'bare', 'bare_other', 'branch', 'cartridge', 'colour', 'document_ids', 'elsewhere', 'equal_share', 'far', 'fig', 'from_slots', 'from_tokens', 'gate_function', 'guess', 'heights', 'history', 'hook', 'hooks', 'inputs', 'kl', 'label', 'last', 'layer_name', 'learn', 'learning', 'learns', 'lengths', 'linear', 'log_sum', 'loss', 'marker', 'model', 'n_added', 'n_learnt', 'n_norms', 'n_seeds', 'name', 'near', 'opening', 'optimizer', 'other', 'p', 'parameter', 'parameters', 'part', 'path', 'place', 'query', 'questions_of', 'read', 'rows', 'run', 'runs', 'same', 'score', 'scores', 'seen', 'shift', 'side', 'silent_gates', 'sink', 'step', 'stored', 'teacher', 'to_first', 'tokenizer', 'tuned', 'two', 'value', 'values', 'way', 'ways', 'weights', 'what', 'x', 'yes')
CELLS = ('f4a19fe4029b', '40b254f9c8a2', 'd89264e34b71', '920aee7df306', 'd76e3f635765', 'd1ac2e5351df', '129358de34e1', 'bedea9d36212', '3a82db4d34c7', '6577b8d3456f', '563710954730', '0753c81bda22', '804f64479f78', '37dda9536208', 'fadbe1295f4b', '94965245141f', '1e1c444129d2', '6a92f91389df', 'e81287cb5e7b', '762471ef1948', '7dbaa378c2eb', '7518659db725', 'ccdc51cde080', '363509cb4c5d', '7a4c14dbf715')
CHECKS = {'10.1': '@check("10.1", "silent_parameters", step=[0, 1])\ndef _(step):\n    for name in NAMES:\n        lengths = measured_gradients(name)[step]\n        measured = {parameter for parameter, length in lengths.items() if length == 0}\n        mine = silent_parameters(name, step)\n        assert isinstance(mine, (set, frozenset)), (\n            f\'{name}, step {step}: expected a set of names like {{"branch"}}, or the empty set(), \'\n            f"got the {type(mine).__name__} {mine!r}"\n        )\n        assert mine <= set(lengths), (\n            f"{name}, step {step}: its parameters are {sorted(lengths)}, got {sorted(mine)}"\n        )\n        for parameter in sorted(measured - mine):\n            raise AssertionError(\n                f"{name}, step {step}: the measured gradient of `{parameter}` is exactly zero. "\n                "Which factor on the way from the output to it is zero?"\n            )\n        for parameter in sorted(mine - measured):\n            reason = "The step before moved what was zero" if step else "Nothing on its way is zero"\n            raise AssertionError(\n                f"{name}, step {step}: the measured gradient of `{parameter}` is not zero. {reason}"\n            )', '10.2': '@check("10.2", "biased_and_scaled", b=[2, 3], s=[5, 4], m=[6, 7])\ndef _(b, s, m):\n    y, bias, scale = torch.randn(b, s, m), torch.randn(m), torch.randn(m)\n    right = torch.empty(b, s, m)\n    for out in range(m):\n        right[..., out] = scale[out] * y[..., out] + scale[out] * bias[out]\n\n    mistakes = {\n        "the scale multiplies the sum, bias and all: scale * (W x + bias)": scale * y + bias,\n        "the scale is not used": y + bias,\n        "the bias is not used": scale * y,\n        "the scale starts at 1 by itself: scale, not 1 + scale": (1 + scale) * (y + bias),\n        "this is the layer without bias and scale": y,\n        "bias and scale have changed places": bias * (y + scale),\n    }\n    assert_close(biased_and_scaled(y, bias, scale), right, "b s m", mistakes=mistakes)\n    one_token = biased_and_scaled(y[0, 0], bias, scale)\n    assert_close(one_token, right[0, 0], "m", what="for a single token, which has no b and no s")\n    assert_gradients(biased_and_scaled, y, bias, scale)\n    start = biased_and_scaled(y, torch.zeros(m), torch.ones(m))\n    assert torch.equal(start, y), "with bias 0 and scale 1 not one bit should change"\n    half = biased_and_scaled(y.bfloat16(), bias, scale)\n    assert half.dtype == torch.bfloat16, f"y has the dtype bfloat16, the result has {half.dtype}"\n    wide = scale * (y.bfloat16().float() + bias)\n    assert torch.allclose(half.float(), wide, rtol=2**-8, atol=1e-6), (\n        "for a bfloat16 y, calculate in float32, the dtype of bias and scale, and round at the end"\n    )', '10.3': '@check("10.3", "Cartridge", g=[3, 2], p=[4, 7], d=[6, 8], f=[1, 3])\ndef _(g, p, d, f):\n    start = torch.randn(g, p, d), torch.randn(g, p, d)\n    begun = tuple(x.clone() for x in start)\n    module = Cartridge(*start, num_frozen_tokens=f)\n    learnt, kept = dict(module.named_parameters()), dict(module.named_buffers())\n    assert set(learnt) == {"key", "value"}, (\n        f"expected the parameters key and value, found {sorted(learnt)}: the frozen slots belong "\n        "into buffers, the others into nn.Parameter"\n    )\n    assert set(kept) == {"frozen_key", "frozen_value"}, (\n        f"expected the buffers frozen_key and frozen_value, found {sorted(kept)}: "\n        "register_buffer keeps the frozen slots with the module"\n    )\n    for name in ("key", "value"):\n        assert_shape(kept[f"frozen_{name}"], "g n d", g=g, n=f, d=d)\n        assert_shape(learnt[name], "g n d", g=g, n=p - f, d=d)\n\n    right = {"the keys": begun[0], "the values": begun[1]}\n    mistakes = {\n        "the frozen slots come first: there is the attention sink": tuple(\n            torch.cat([x[:, f:], x[:, :f]], dim=1) for x in begun\n        ),\n        "these are the keys again; values have a start of their own": (None, begun[0]),\n    }\n    assert_results(module.keys_values(), right, "g p d", mistakes=mistakes)\n    by_itself = Cartridge(*start).key.shape[1]\n    assert by_itself == p - 1, f"by default 1 slot is frozen and {p - 1} train, not {by_itself}"\n\n    push = torch.randn(2, g, p, d)\n    for result, weight in zip(module.keys_values(), push, strict=True):\n        assert result.requires_grad, (\n            "no gradient reaches the trained slots: was something detached?"\n        )\n        (result * weight).sum().backward()\n    for name, weight in zip(("key", "value"), push, strict=True):\n        assert learnt[name].grad is not None, f"no gradient reaches `{name}`: was it detached?"\n        what = f"the gradient of `{name}`"\n        assert_close(learnt[name].grad, weight[:, f:], "g n d", what=what)\n\n    with torch.no_grad():\n        for parameter in learnt.values():\n            parameter += 1\n    assert all(torch.equal(x, before) for x, before in zip(start, begun, strict=True)), (\n        "training changes the tensors that the cartridge was begun with: store a clone of them"\n    )\n    moved = [torch.cat([x[:, :f], x[:, f:] + 1], dim=1) for x in begun]\n    named = {"the keys": moved[0], "the values": moved[1]}\n    stale = {"this is still the start: join the parameters as they are now": begun}\n    assert_results(module.keys_values(), named, "g p d", mistakes=stale, what="after a step")\n    for tensor in start:\n        tensor += 1\n    assert_results(\n        module.keys_values(),\n        named,\n        "g p d",\n        what="after a change of the tensors it was begun with: store a clone of them",\n    )', '10.4': '@check("10.4", "kl_divergence", n=[5, 4], v=[7, 11], size=[1.0, 60.0])\ndef _(n, v, size):\n    student, teacher = size * torch.randn(n, v), size * torch.randn(n, v)\n\n    def kl(of, to):\n        log_p, log_q = of.double().log_softmax(-1), to.double().log_softmax(-1)\n        terms = [\n            [math.exp(log_p[i, j]) * (log_p[i, j] - log_q[i, j]).item() for j in range(v)]\n            for i in range(n)\n        ]\n        return torch.tensor([sum(row) for row in terms], dtype=torch.float32)\n\n    right = kl(teacher, student)\n    ours, theirs = student.log_softmax(0), teacher.log_softmax(0)\n    over_positions = (theirs.exp() * (theirs - ours)).sum(dim=-1)\n    crossed = nn.functional.cross_entropy(student, teacher.softmax(-1), reduction="none")\n    mistakes = {\n        "this is KL(student || teacher): the probabilities in front are the teacher\'s": kl(\n            student, teacher\n        ),\n        "the mean is over the vocabulary: sum over v": right / v,\n        "one number for each position, please: the mean over n comes later": right.mean(),\n        "one number for each position, please: do not sum over n": right.sum(),\n        "the sign is turned: log teacher - log student": -right,\n        "the softmax runs over the vocabulary, the last axis": over_positions,\n        "this is the cross-entropy; KL takes the teacher\'s own uncertainty away": crossed,\n        "nats, please: the natural logarithm, not the one of base 2": right / math.log(2),\n    }\n    mistakes = {\n        k: x\n        for k, x in mistakes.items()\n        if x.shape != right.shape or not torch.allclose(x, right, rtol=1e-4)\n    }\n    assert_close(kl_divergence(student, teacher), right, "n", tol=1e-4, mistakes=mistakes)\n    nothing = kl_divergence(teacher, teacher)\n    assert nothing.abs().max() < 1e-5, "two that agree are 0 apart: KL(teacher || teacher)"\n    if size == 1:\n        assert_gradients(kl_divergence, student, teacher)\n    half = student.bfloat16(), teacher.bfloat16()\n    what = "for logits in bfloat16, made float32 first"\n    assert_close(\n        kl_divergence(*half), kl(half[1].float(), half[0].float()), "n", tol=1e-4, what=what\n    )', '10.5': '@check("10.5", "numbers_to_learn", layers=[2, 3], g=[2, 3], r=[3, 1], d=[4, 8], p=[5, 7])\ndef _(layers, g, r, d, p):\n    config = LlamaConfig(\n        vocab_size=17,\n        hidden_size=18,\n        intermediate_size=28,\n        num_hidden_layers=layers,\n        num_attention_heads=g * r,\n        num_key_value_heads=g,\n        head_dim=d,\n    )\n    small = LlamaForCausalLM(config).requires_grad_(False)\n\n    def count(tensors):\n        return sum(tensor.numel() for tensor in tensors)\n\n    linears = [part for part in small.model.modules() if isinstance(part, nn.Linear)]\n    norms = [x for name, x in small.named_parameters() if "norm" in name]\n    thin = [\n        nn.Linear(a, b, bias=False).weight\n        for name, part in small.named_modules()\n        if name.endswith(("q_proj", "v_proj"))\n        for a, b in ((part.in_features, 8), (8, part.out_features))\n    ]\n    cache = DynamicCache()\n    with torch.no_grad():\n        small(torch.ones(1, p, dtype=torch.long), None, None, cache)\n    slots = [part for layer in cache.layers for part in (layer.keys, layer.values)]\n    right = {\n        "V2": 2 * sum(part.out_features for part in linears) + count(norms),\n        "LoRA": count(thin),\n        "cartridge": count(part[:, :, 1:] for part in slots),\n        "prefix": count(slots),\n    }\n    adapted = add_adaption_prompts(small, AdaptionPromptConfig(p, layers))\n    right["prompts"] = count(x for x in adapted.parameters() if x.requires_grad)\n    for way, expected in right.items():\n        mine = numbers_to_learn(way, config, p)\n        known = {\n            ("V2", expected - count(norms)): "the norms train, too",\n            ("V2", expected - 18): "the norm after the last layer trains, too",\n            ("V2", (expected + count(norms)) // 2): "bias and scale: two vectors for each layer",\n            ("cartridge", right["prefix"]): "the first slot is frozen",\n            ("cartridge", expected // 2): "keys and values: both train",\n            ("prefix", expected // 2): "keys and values: both train",\n            ("prompts", expected - layers * g * r): "each head has a gate",\n            ("prompts", expected - layers * (g * r - 1)): "each head has a gate of its own",\n            ("LoRA", 2 * layers * 8 * (18 + g * r * d)): "values have g heads, not h",\n        }\n        if mine * layers in (expected, expected + 18 * (layers - 1) * (way == "V2")):\n            known[way, mine] = "this is one layer: multiply by config.num_hidden_layers"\n        reason = known.get((way, mine), "count the shapes in the table and in hint 2")\n        assert mine == expected, f"{way}: the real tensors have {expected} numbers: {reason}"'}
PUZZLES = {}

import torch
from jaxtyping import Float
from torch import Tensor
from torch import nn
from transformers import LlamaConfig
from llama_adapter_edu.method.bias_scale import biased_and_scaled
from llama_adapter_edu.training.distillation import kl_divergence


def silent_parameters(gate: str, step: int) -> set[str]:
    """Names of the parameters whose gradient is exactly zero at step 0 or 1, for one of NAMES."""
    at_start = {
        "ReZero": {"branch"},
        "Flamingo": {"branch"},
        "ControlNet": {"first", "copy"},
        "LLaMA-Adapter": {"prompts"},
    }
    return at_start.get(gate, set()) if step == 0 else set()


class Cartridge(nn.Module):
    """Keys and values of one layer that train, begun at `key` and `value` (g p d).

    The first `num_frozen_tokens` (f) slots stay as they are: buffers `frozen_key`, `frozen_value`
    (g f d). The other slots are the parameters `key`, `value` (g p-f d).
    """

    def __init__(
        self,
        key: Float[Tensor, "g p d"],
        value: Float[Tensor, "g p d"],
        num_frozen_tokens: int = 1,
    ) -> None:
        super().__init__()
        self.register_buffer("frozen_key", key[:, :num_frozen_tokens].clone())
        self.register_buffer("frozen_value", value[:, :num_frozen_tokens].clone())
        self.key = nn.Parameter(key[:, num_frozen_tokens:].clone())
        self.value = nn.Parameter(value[:, num_frozen_tokens:].clone())

    def keys_values(self) -> tuple[Float[Tensor, "g p d"], Float[Tensor, "g p d"]]:
        """Keys and values of all slots, the frozen ones first."""
        key = torch.cat([self.frozen_key, self.key], dim=1)
        value = torch.cat([self.frozen_value, self.value], dim=1)
        return key, value


def numbers_to_learn(way: str, config: LlamaConfig, n_slots: int) -> int:
    """How many numbers a way trains: "prompts", "V2", "cartridge", "LoRA" or "prefix"."""
    m, h, g = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    d, inner, p = config.head_dim, config.intermediate_size, n_slots
    outputs = (h + 2 * g) * d + m + 2 * inner + m
    in_each_layer = {
        "prompts": p * m + h,
        "V2": 2 * outputs + 2 * m,
        "cartridge": 2 * g * (p - 1) * d,
        "LoRA": 8 * (m + h * d) + 8 * (m + g * d),
        "prefix": 2 * g * p * d,
    }
    last_norm = m if way == "V2" else 0
    return config.num_hidden_layers * in_each_layer[way] + last_norm
