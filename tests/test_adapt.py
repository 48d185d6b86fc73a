"""Adaption prompts in a model: what stays the same, what learns, and what is refused."""

import contextlib
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    count_parameters,
    disable_adapter,
    gate_openings,
    load_llama,
    parameter_report,
    remove_adapter,
    set_adapter,
)
from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts

SMALL = AdaptionPromptConfig(adapter_len=4, adapter_layers=2)


@pytest.fixture
def words():
    torch.manual_seed(1)
    return torch.randint(3, 96, (2, 7))


def logits(model, ids, **inputs):
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


def open_gates(model, name="default", std=0.8):
    """Gates that differ from head to head, so that a mix-up of heads cannot pass."""
    torch.manual_seed(2)
    for prompt in adapter_prompts(model, name).values():
        with torch.no_grad():
            prompt.gate.normal_(std=std)


def train(model, ids, steps=2):
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.05)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_llama_is_unchanged_by_closed_gates_and_back_after_training(attn, dtype):
    model, tokenizer = load_llama(dtype=dtype, attn_implementation=attn)
    ids = tokenizer("Turn on the lights in the kitchen", return_tensors="pt")["input_ids"]
    base = logits(model, ids)
    add_adaption_prompts(model)
    assert torch.equal(logits(model, ids), base)
    train(model, ids)
    assert not torch.equal(logits(model, ids), base)
    with disable_adapter(model):
        assert torch.equal(logits(model, ids), base)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_with_the_same_numbers_it_computes_what_peft_computes(fresh_llama):
    from peft import AdaptionPromptConfig as PeftConfig
    from peft import get_peft_model

    ours, tokenizer = fresh_llama
    config = AdaptionPromptConfig(5, 12, gate="per_layer", gate_activation="identity")
    add_adaption_prompts(ours, config)
    open_gates(ours, std=0.2)
    settings = PeftConfig(adapter_len=5, adapter_layers=12, task_type="CAUSAL_LM")
    theirs = get_peft_model(load_llama()[0], settings)
    with torch.no_grad():
        for number, prompt in adapter_prompts(ours, "default").items():
            attention = theirs.base_model.model.model.layers[number].self_attn
            attention.adaption_prompt.copy_(prompt.prompts[None])
            attention.adaption_gate.copy_(prompt.gate)
    ids = tokenizer("The lights of the upstairs office", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), rtol=0, atol=1e-4)
    assert (logits(ours, ids) - logits(load_llama()[0], ids)).abs().max() > 0.1


def test_1229760_parameters_train_on_the_llama_7b_shape():
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32000,
    )
    with torch.device("meta"):
        model = add_adaption_prompts(AutoModelForCausalLM.from_config(config))
    assert count_parameters(model) == (1_229_760, 6_738_415_616 + 1_229_760)
    assert parameter_report(model).startswith("1,229,760 of 6,739,645,376 parameters train")
    assert list(adapter_prompts(model, "default")) == list(range(2, 32))


def gradients(model, ids):
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("before", ["nothing", "no_grad forward", "generate"])
def test_prompts_learn_once_the_gates_are_open_and_the_base_never(tiny, words, before):
    """litgpt #1287: prompt keys that were kept from an earlier forward never learn."""
    model = add_adaption_prompts(tiny(attn_implementation="sdpa"), SMALL)

    def first():
        if before == "no_grad forward":
            logits(model, words, use_cache=True)
        if before == "generate":
            model.generate(words, max_new_tokens=3, do_sample=False)

    first()
    step_0 = gradients(model, words)
    assert {name.rpartition(".")[2] for name in step_0} == {"prompts", "gate"}
    for name, gradient in step_0.items():
        assert gradient.any() == name.endswith("gate"), name
    train(model, words, steps=1)
    first()
    step_1 = gradients(model, words)
    assert step_1.keys() == step_0.keys()
    assert all(gradient.any() for gradient in step_1.values())


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(tiny, words, reentrant):
    model = add_adaption_prompts(tiny(), SMALL).train()
    open_gates(model)
    plain = gradients(model, words)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    torch.testing.assert_close(gradients(model, words), plain)


class TestDecoding:
    """The real Llama with open gates, in float32."""

    @pytest.fixture(scope="class")
    def adapted(self):
        model, tokenizer = load_llama()
        add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=6))
        open_gates(model, std=0.04)  # wide-open random gates would leave no language
        return model, tokenizer

    @pytest.fixture(scope="class")
    def texts(self, adapted):
        ask = ["Count to five", "Name a fruit that is red, and one that is yellow", "Hi"]
        tokenizer = adapted[1]
        chats = [[{"role": "user", "content": text}] for text in ask]
        return [
            tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)
            for c in chats
        ]

    def generate(self, adapted, texts, max_new_tokens=8, **options):
        model, tokenizer = adapted
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, **options)
        return ids[:, batch["input_ids"].shape[1] :]

    def test_a_cache_changes_nothing(self, adapted, texts):
        with_cache = self.generate(adapted, texts)
        assert torch.equal(with_cache, self.generate(adapted, texts, use_cache=False))
        static = self.generate(adapted, texts, cache_implementation="static")
        assert torch.equal(with_cache, static)
        with disable_adapter(adapted[0]):
            assert not torch.equal(with_cache, self.generate(adapted, texts))

    def test_beam_search_with_and_without_cache(self, adapted, texts):
        options = {"num_beams": 3, "max_new_tokens": 4}
        beams = self.generate(adapted, texts[1:], **options)
        assert torch.equal(beams, self.generate(adapted, texts[1:], use_cache=False, **options))

    def test_a_padded_batch_is_its_rows(self, adapted, texts):
        together = self.generate(adapted, texts)
        for row, text in enumerate(texts):
            alone = self.generate(adapted, [text])[0]
            assert torch.equal(together[row, : len(alone)], alone)

    def test_the_batch_and_later_words_do_not_matter(self, adapted, texts):
        model, tokenizer = adapted
        ids = tokenizer(texts[1], return_tensors="pt")["input_ids"]
        other = ids.clone()
        other[0, 20:] = torch.randint(100, 5000, other[0, 20:].shape)
        both = logits(model, torch.cat([ids, other, other.flip(1)]))
        torch.testing.assert_close(both[:1], logits(model, ids), rtol=0, atol=2e-3)
        torch.testing.assert_close(both[0, :20], both[1, :20], rtol=0, atol=2e-3)
        assert (both[0, 20:] - both[1, 20:]).abs().max() > 1


def test_keys_kept_for_a_generation_never_outlive_a_change(tiny, words):
    """Train, generate, train, generate, swap, generate: always what an uncached run gives."""
    model = add_adaption_prompts(tiny(), SMALL)
    open_gates(model)

    def cached_and_not():
        options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True}
        options["return_dict_in_generate"] = True
        runs = [model.generate(words, use_cache=cache, **options) for cache in (True, False)]
        torch.testing.assert_close(torch.stack(runs[0].logits), torch.stack(runs[1].logits))
        return torch.stack(runs[0].logits)

    seen = [cached_and_not()]
    train(model, words)
    seen.append(cached_and_not())
    train(model, words)
    seen.append(cached_and_not())
    add_adaption_prompts(model, SMALL, "second")
    open_gates(model, "second")
    seen.append(cached_and_not())
    set_adapter(model, "default")
    assert torch.equal(cached_and_not(), seen[2])
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


def test_prompt_keys_are_projected_once_in_a_generation(tiny, words):
    model = add_adaption_prompts(tiny(), SMALL)
    calls = []
    attention = model.model.layers[-1].self_attn
    attention.k_proj.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0]))
    model.generate(words, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert sum(x.shape == (4, 48) for x in calls) == 1


@pytest.mark.parametrize("first_words", ["with gradients", "before the adapter"])
def test_words_go_on_that_began_without_kept_prompts(tiny, words, first_words):
    model, cache = tiny(attn_implementation="sdpa"), None
    if first_words == "before the adapter":
        with torch.no_grad():
            cache = model(words[:, :3]).past_key_values
    add_adaption_prompts(model, SMALL)
    open_gates(model)
    if first_words == "with gradients":
        cache = model(words[:, :3]).past_key_values
        whole = model(words, use_cache=False).logits[:, 3:]
    with torch.no_grad():
        steps = [model(w, past_key_values=cache).logits for w in words[:, 3:].split(1, dim=1)]
    if first_words == "with gradients":
        torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_generations_that_take_turns_do_not_disturb_each_other(tiny, words):
    """One in float32, one under autocast, one in inference mode; all with the same adapter."""
    model = add_adaption_prompts(tiny(attn_implementation="sdpa"), SMALL)
    open_gates(model)
    turns = [
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        torch.inference_mode(),
    ]
    caches = [DynamicCache(config=model.config) for _ in turns]

    def step(around, cache, ids):
        with torch.no_grad(), around:
            return model(ids, past_key_values=cache, use_cache=cache is not None).logits[:, -1]

    for position in range(3, words.shape[1]):
        for around, cache in zip(turns, caches, strict=True):
            new = words[:, :4] if position == 3 else words[:, position : position + 1]
            whole = step(around, None, words[:, : position + 1])
            torch.testing.assert_close(step(around, cache, new), whole, atol=2e-2, rtol=0)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_bfloat16_base_with_float32_adapters_trains_and_generates(tiny, words, autocast):
    model = add_adaption_prompts(tiny(attn_implementation="sdpa"), SMALL).bfloat16()
    assert model.lm_head.weight.dtype == torch.bfloat16
    around = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with around:
        before = model(input_ids=words, labels=words).loss.item()
        train(model, words, steps=5)
        assert model(input_ids=words, labels=words).loss.item() < before
        assert model.generate(words, max_new_tokens=3, do_sample=False).shape[1] > words.shape[1]
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_several_adapters_swap_by_name_and_only_one_trains(tiny, words):
    model = tiny()
    base = logits(model, words)
    seen = {}
    for name in ("first", "second"):
        add_adaption_prompts(model, SMALL, name)
        open_gates(model, name)
        adapter_prompts(model, name)[2].gate.data.add_(len(seen))
        seen[name] = logits(model, words)
    assert not torch.equal(seen["first"], seen["second"])
    set_adapter(model, "first")
    assert torch.equal(logits(model, words), seen["first"])
    training = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(training) == 4
    assert all(".first." in name for name in training)
    with disable_adapter(model):
        assert torch.equal(logits(model, words), base)
    with contextlib.suppress(KeyError), disable_adapter(model):
        raise KeyError
    assert torch.equal(logits(model, words), seen["first"])
    remove_adapter(model, "first")
    assert torch.equal(logits(model, words), base)
    assert list(adapter_configs(model)) == ["second"]
    set_adapter(model, "second")
    assert torch.equal(logits(model, words), seen["second"])


def test_only_the_topmost_layers_get_prompts_and_gates_tell_of_them(tiny):
    model = add_adaption_prompts(tiny(), SMALL)
    assert list(adapter_prompts(model, "default")) == [1, 2]
    assert gate_openings(model).shape == (2, 6)
    assert gate_openings(tiny()).shape == (0, 0)
    per_layer = add_adaption_prompts(tiny(), AdaptionPromptConfig(4, 3, gate="per_layer"))
    assert gate_openings(per_layer).shape == (3, 1)


def test_two_models_on_one_config_do_not_mix(tiny, words):
    """from_config keeps the config: the second model's attention is named like the first's."""
    model = add_adaption_prompts(tiny(), SMALL)
    open_gates(model)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(model.config).eval()
    assert torch.equal(logits(plain, words), logits(tiny(), words))
    add_adaption_prompts(plain, SMALL)
    assert torch.equal(logits(plain, words), logits(tiny(), words))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adapter_layers": 0}, "adapter_layers must be a whole number of at least 1, got 0"),
        ({"adapter_layers": -2}, "at least 1, got -2"),
        ({"adapter_layers": True}, "at least 1, got True"),
        ({"adapter_layers": "all"}, "at least 1, got 'all'"),
        ({"adapter_len": 0}, "adapter_len must be a whole number"),
        ({"adapter_len": 2.0}, "got 2.0"),
        ({"gate": "per_word"}, "gate must be one of ('per_head', 'per_layer'), got 'per_word'"),
        ({"gate_activation": "relu"}, "gate_activation must be one of ('tanh', 'identity')"),
        ({"init_std": 0.0}, "would never get a gradient"),
        ({"init_std": float("nan")}, "finite number above 0, got nan"),
        ({"init_std": "1"}, "finite number above 0, got '1'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError) as caught:
        AdaptionPromptConfig(**settings)
    assert words in str(caught.value)


class TestRefused:
    """Each refusal leaves the model as it was."""

    def expect(self, model, text, config=SMALL, name="default"):
        attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
        parts = [n for n, _ in model.named_modules()]
        training = [p.requires_grad for p in model.parameters()]
        with pytest.raises(ValueError) as caught:
            add_adaption_prompts(model, config, name)
        assert text in str(caught.value)
        assert [n for n, _ in model.named_modules()] == parts
        assert [p.requires_grad for p in model.parameters()] == training
        if attention:
            assert model.config._attn_implementation == attention

    def test_too_many_layers(self, tiny):
        config = AdaptionPromptConfig(4, 4)
        self.expect(tiny(), "adapter_layers=4, but the model has 3 layers. Choose 1 to 3", config)

    def test_a_name_that_is_taken(self, tiny):
        model = add_adaption_prompts(tiny(), SMALL)
        self.expect(model, "already has an adapter named 'default'")

    @pytest.mark.parametrize("name", ["", "a.b", "a/b", "../x", "ä"])
    def test_a_malformed_name(self, tiny, name):
        self.expect(tiny(), "may hold letters, digits", name=name)

    def test_another_kind_of_module(self):
        self.expect(torch.nn.Linear(2, 2), "expected a transformers model, got Linear")

    def test_a_model_without_decoder_layers(self):
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
        self.expect(model, "has no decoder with a list of layers")

    def test_a_model_off_the_attention_interface(self, tiny, monkeypatch):
        model = tiny()
        monkeypatch.setattr(type(model.model), "_supports_attention_backend", False)
        self.expect(model, "does not use transformers' attention interface")

    def test_an_unusual_head_layout(self, tiny):
        model = tiny()
        model.model.layers[1].self_attn.v_proj = torch.nn.Linear(48, 24)
        self.expect(model, "has an unusual head layout")

    def test_latent_attention(self):
        from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

        config = DeepseekV3Config(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=9,
            kv_lora_rank=4,
            q_lora_rank=4,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=4,
            first_k_dense_replace=1,
            n_routed_experts=8,
        )
        self.expect(DeepseekV3ForCausalLM(config), "unusual head layout")

    @pytest.mark.parametrize("act", [set_adapter, remove_adapter, adapter_prompts])
    def test_an_adapter_that_is_not_there(self, tiny, act):
        model = add_adaption_prompts(tiny(), SMALL)
        with pytest.raises(ValueError, match=r"no adapter named 'x'; the model has \['default'\]"):
            act(model, "x")
        assert active_adapter(model) == "default"
