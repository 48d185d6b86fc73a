"""The law of the attachment: whatever a user does to the model, the acting adapter answers.

hypothesis puts operations in random orders. The oracle is a Llama of a few lines that shares
nothing with the library but the numbers of the weights.
"""

import copy
import io
import pickle
import tempfile

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from llama_adapter_edu import (
    AdaptionPromptConfig,
    CartridgeConfig,
    add_adaption_prompts,
    add_cartridge,
    disable_adapter,
    load_adapter,
    remove_adapter,
    save_adapter,
    set_adapter,
    use_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts

SIZES = dict(hidden_size=48, intermediate_size=40, num_hidden_layers=3, vocab_size=64)
HEADS, GROUPS, WIDTH = 6, 2, 8
IDS = torch.arange(3, 21).reshape(2, 9)
NAMES = ("a", "b", "c")
V2 = dict(bias_scale=True, norms=True)


def base_model(groups: int = GROUPS) -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = dict(num_attention_heads=HEADS, num_key_value_heads=groups, pad_token_id=0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **heads)).eval()


WEIGHTS = {name: w.double() for name, w in base_model().state_dict().items()}


def plain_llama(
    ids: torch.Tensor,
    prompts: dict[int, tuple[torch.Tensor, torch.Tensor]],
    v2: dict[str, torch.Tensor] | None = None,
    prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
):
    """Logits in float64. `prompts`: by layer, the prompts (p m) and the gates after tanh (h).

    `v2`: of LLaMA-Adapter V2, biases, scales and norms by the name of their place in the model.
    `prefix`: of a cartridge, keys and values (g p d) by layer.
    """
    start = prefix[0][0].shape[1] if prefix else 0
    v2 = {name: x.double() for name, x in (v2 or {}).items()}

    def norm(x, name):
        weight = v2.get(name, WEIGHTS[name])
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def linear(x, name):
        weight, bias = WEIGHTS[f"{name}.weight"], v2.get(f"{name}.bias", torch.zeros(()))
        scale = v2.get(f"{name}.scale", torch.ones(()))
        if v2.get("scaled") is not None:  # the input
            return (scale * x) @ weight.T + bias
        return scale * (x @ weight.T + bias)

    def heads(x, name):
        return linear(x, name).unflatten(-1, (-1, WIDTH)).transpose(-3, -2)

    position = start + torch.arange(ids.shape[1])
    angles = position[:, None] / 10_000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
    cos, sin = angles.cos().double().repeat(1, 2), angles.sin().double().repeat(1, 2)

    def turned(x):
        one, two = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-two, one], dim=-1) * sin

    def attend(query, key, value, mask):
        key, value = (x.repeat_interleave(HEADS // GROUPS, dim=-3) for x in (key, value))
        scores = (query @ key.transpose(-2, -1) / WIDTH**0.5).masked_fill(mask, -torch.inf)
        return scores.softmax(-1) @ value

    x = WEIGHTS["model.embed_tokens.weight"][ids]
    later = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
    for layer in range(SIZES["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        q, k, v, o = (f"{name}self_attn.{n}_proj" for n in "qkvo")
        inside = norm(x, f"{name}input_layernorm.weight")
        query = turned(heads(inside, q))
        key, value, unseen = turned(heads(inside, k)), heads(inside, v), later
        if prefix:
            before = (x.double().expand(len(ids), -1, -1, -1) for x in prefix[layer])
            key, value = (torch.cat(x, -2) for x in zip(before, (key, value), strict=True))
            unseen = torch.cat([torch.zeros(len(later), start).bool(), later], dim=1)
        added = attend(query, key, value, unseen)
        if layer in prompts:
            rows, gate = (x.double() for x in prompts[layer])
            nothing = torch.zeros(1, len(rows)).bool()
            added = added + gate[:, None, None] * attend(
                query, heads(rows, k), heads(rows, v), nothing
            )
        x = x + linear(added.transpose(-3, -2).flatten(-2), o)
        inside = norm(x, f"{name}post_attention_layernorm.weight")
        gate, up, down = (f"{name}mlp.{n}_proj" for n in ("gate", "up", "down"))
        inside = torch.nn.functional.silu(linear(inside, gate)) * linear(inside, up)
        x = x + linear(inside, down)
    return linear(norm(x, "model.norm.weight"), "lm_head")


def numbers(model, name) -> tuple[dict, dict, dict]:
    """The adapter's prompts and opened gates, what it has of V2, its cartridge, as they are now."""
    parts = adapter_prompts(model, name)
    if isinstance(adapter_configs(model)[name], CartridgeConfig):
        both = ((p.frozen_key, p.key, p.frozen_value, p.value) for p in parts.values())
        cat = ((torch.cat(x[:2], 1).detach(), torch.cat(x[2:], 1).detach()) for x in both)
        return {}, {}, dict(zip(parts, cat, strict=True))
    prompts = {
        layer: (prompt.prompts.detach().clone(), prompt.gate.detach().tanh())
        for layer, prompt in parts.items()
    }
    return prompts, v2_numbers(model, name), {}


def v2_numbers(model, name) -> dict[str, torch.Tensor]:
    """The adapter's biases, scales and norms by their place, and whether the input is scaled."""
    mark = f".changes.{name}."
    found = {n.replace(mark, "."): p for n, p in model.named_parameters() if mark in n}
    found = {
        n: p.detach()[:64].clone() if "lm_head" in n else p.detach().clone()
        for n, p in found.items()
    }
    scaled = adapter_configs(model)[name].scaled == "input"
    found |= {"scaled": torch.ones(())} if scaled else {}
    return {n: x.clone() for n, x in found.items()}


def compare(model, expected, ids=IDS, **inputs):
    with torch.no_grad():
        found = model(ids, use_cache=False, **inputs).logits
    torch.testing.assert_close(found.double()[..., :64], expected, rtol=1e-4, atol=2e-5)


class Law(RuleBasedStateMachine):
    """A model under operations; `self.now` is what each adapter's numbers should be."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.model, self.now, self.active = base_model(), {}, None
        self.hooked = False
        self.add("a", 4, 2, {})

    def expected(self, name=None, ids=IDS):
        return plain_llama(ids, *(self.now[name] if name else ({},)))

    @rule(
        name=st.sampled_from(NAMES),
        length=st.sampled_from([1, 3, 5]),
        layers=st.integers(1, 3),
        v2=st.sampled_from([{}, V2, V2 | {"scaled": "input"}]),
    )
    def add(self, name, length, layers, v2):
        if name in self.now:
            remove_adapter(self.model, name)
        add_adaption_prompts(self.model, AdaptionPromptConfig(length, layers, **v2), name)
        self.active, self.now[name] = name, None
        self.edit_gates(name)

    @rule(name=st.sampled_from(NAMES), length=st.sampled_from([1, 2, 4]))
    def add_a_cartridge(self, name, length):
        if name in self.now:
            remove_adapter(self.model, name)
        add_cartridge(self.model, IDS[1:, 1:7], CartridgeConfig(length), name)
        self.active, self.now[name] = name, None
        self.edit_gates(name)

    @rule(name=st.sampled_from(NAMES))
    def edit_gates(self, name):
        if name in self.now:
            for part in adapter_prompts(self.model, name).values():
                for parameter in [part.gate] if hasattr(part, "gate") else part.parameters():
                    parameter.data.normal_()
            for place, parameter in self.model.named_parameters():
                if f".changes.{name}." in place:
                    parameter.data += 0.1 * torch.randn_like(parameter)
            self.now[name] = numbers(self.model, name)

    @precondition(lambda self: self.active)
    @rule()
    def train_a_step(self):
        trains = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trains, lr=0.05)
        self.model(IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        self.model.zero_grad()
        self.now[self.active] = numbers(self.model, self.active)

    @rule(name=st.sampled_from(NAMES))
    def choose(self, name):
        if name in self.now:
            set_adapter(self.model, name)
            self.active = name

    @rule(name=st.sampled_from(NAMES))
    def take_out(self, name):
        if name in self.now:
            remove_adapter(self.model, name)
            del self.now[name]
            self.active = None if self.active == name else self.active

    @rule(kind=st.sampled_from(["eager", "sdpa"]))
    def another_attention(self, kind):
        self.model.set_attn_implementation(kind)

    @rule(how=st.sampled_from(["deepcopy", "pickle", "torch.save"]))
    def copy_it(self, how):
        if self.hooked:
            how = "deepcopy"
        if how == "deepcopy":
            self.model = copy.deepcopy(self.model)
        elif how == "pickle":
            self.model = pickle.loads(pickle.dumps(self.model))
        else:
            torch.save(self.model, file := io.BytesIO())
            file.seek(0)
            self.model = torch.load(file, weights_only=False)

    @rule(checkpointing=st.booleans(), trains=st.booleans())
    def modes(self, checkpointing, trains):
        if checkpointing:
            self.hooked = True  # for good, by transformers, with a function that no pickle takes
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()
        self.model.train(trains)

    @precondition(lambda self: self.active)
    @rule()
    def to_disk_and_back(self):
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(self.model, folder)
            remove_adapter(self.model, self.active)
            load_adapter(self.model, folder, self.active)

    @rule()
    def wider_embedding(self):
        self.model.resize_token_embeddings(64 + 8)

    @rule()
    def generate_and_go_on(self):
        """A generation keeps nothing for later, and gives what is right token by token."""
        checkpoints = self.model.training and self.model.is_gradient_checkpointing
        if checkpoints and transformers.__version__.startswith("4."):
            return  # its plain Llama, too, loses its cache there, and gives other tokens
        tokens = self.model.generate(IDS[:1], max_new_tokens=3, do_sample=False, eos_token_id=63)
        if self.active is None or self.model.get_input_embeddings().num_embeddings > 64:
            return
        ids = IDS[:1]
        while ids.shape[1] < tokens.shape[1]:
            best = self.expected(self.active, ids)[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], dim=1)
        assert torch.equal(tokens, ids)

    @rule(name=st.sampled_from([None, *NAMES]))
    def a_cache_in_hand(self, name):
        """Begun by one adapter, gone on with by another: each token meets the acting one."""
        if self.model.is_gradient_checkpointing or (name and name not in self.now):
            return
        cache = DynamicCache(config=self.model.config)
        with torch.no_grad(), use_adapter(self.model, name):
            self.model(IDS[:, :4], past_key_values=cache)
            fresh = copy.deepcopy(cache)
        with torch.no_grad():
            self.model.generate(IDS, max_new_tokens=1, do_sample=False)
            first = self.model(IDS[:, 4:], past_key_values=cache).logits
            again = self.model(IDS[:, 4:], past_key_values=fresh).logits
        torch.testing.assert_close(first, again, rtol=0, atol=0)
        if name == self.active:
            expected = self.expected(name)[:, 4:]
            torch.testing.assert_close(first.double()[..., :64], expected, rtol=1e-4, atol=2e-5)

    @rule(rows=st.lists(st.sampled_from([None, *NAMES]), min_size=2, max_size=2))
    def each_row_its_own(self, rows):
        rows = [name if name in self.now else None for name in rows]
        expected = torch.cat([self.expected(n, i[None]) for n, i in zip(rows, IDS, strict=True)])
        with use_adapter(self.model, rows):
            compare(self.model, expected)

    @rule(name=st.sampled_from(NAMES))
    def asked_last(self, name):
        with disable_adapter(self.model):
            compare(self.model, self.expected())
            self.choose(name)
            if name in self.now:
                compare(self.model, self.expected(name))

    @invariant()
    def the_acting_adapter_answers(self):
        assert set(adapter_configs(self.model)) == set(self.now)
        compare(self.model, self.expected(self.active))


TestLaw = Law.TestCase
TestLaw.settings = settings(
    max_examples=12,
    stateful_step_count=14,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


def test_the_oracle_is_a_llama():
    compare(base_model(), plain_llama(IDS, {}))


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_the_oracle_tells_an_adapter_from_none(gate):
    prompts = {2: (torch.randn(4, 48), torch.full((HEADS,), gate))}
    difference = (plain_llama(IDS, prompts) - plain_llama(IDS, {})).abs().max()
    assert (difference > 1e-3) == bool(gate)
