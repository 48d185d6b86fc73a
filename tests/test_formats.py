"""Adapters of other libraries, in and out: the same logits as theirs, or refused and why."""

import json
import warnings

import pytest
import torch
from other_libraries import LitAttention, OfficialAttention
from safetensors.torch import load_file, save_file
from torch import nn

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    add_cartridge,
    load_adapter,
    load_official_adapter,
    remove_adapter,
    save_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts
from llama_adapter_edu.files.save_load import AdapterFileError
from llama_adapter_edu.vision.attach import add_vision
from llama_adapter_edu.vision.encoders import DigitEncoder

K, L = 4, 2
KV_HEADS = {"every head its own": 6, "grouped": 2, "one for all": 1}
kv_heads = pytest.mark.parametrize("kv", KV_HEADS.values(), ids=KV_HEADS)


def logits(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(input_ids=torch.randint(3, 96, (2, 7))).logits


def trained(model, gate="per_head", gate_activation="tanh", spread=1.0):
    """An adapter with open gates: the same for all heads if `spread` is 0."""
    add_adaption_prompts(model, AdaptionPromptConfig(K, L, gate, gate_activation))
    torch.manual_seed(2)
    for prompt in adapter_prompts(model, "default").values():
        with torch.no_grad():
            prompt.gate.copy_(torch.randn(1) + spread * torch.randn(len(prompt.gate)))
    return model


def same(one, other):
    torch.testing.assert_close(logits(one), logits(other), rtol=0, atol=2e-6)


def untouched(model, fresh):
    assert not adapter_configs(model)
    assert [n for n, _ in model.named_modules()] == [n for n, _ in fresh.named_modules()]
    assert torch.equal(logits(model), logits(fresh))


class TestPeft:
    def peft_model(self, base, **settings):
        from peft import AdaptionPromptConfig as PeftConfig
        from peft import get_peft_model

        settings = {"adapter_len": K, "adapter_layers": L} | settings
        model = get_peft_model(base, PeftConfig(task_type="CAUSAL_LM", **settings))
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if "adaption_gate" in name:
                nn.init.normal_(parameter)
        return model

    @kv_heads
    @pytest.mark.parametrize("family", ["llama", "mistral"])
    def test_what_peft_wrote_computes_the_same_here(self, tiny, tmp_path, family, kv):
        theirs = self.peft_model(tiny(family, num_key_value_heads=kv))
        theirs.save_pretrained(tmp_path)
        ours = load_adapter(tiny(family, num_key_value_heads=kv), tmp_path)
        same(ours, theirs)
        assert adapter_configs(ours)["default"].gate == "per_layer"

    @kv_heads
    @pytest.mark.parametrize("activation", ["tanh", "identity"])
    def test_what_we_wrote_computes_the_same_in_peft(self, tiny, tmp_path, activation, kv):
        from peft import PeftModel

        ours = trained(tiny(num_key_value_heads=kv), "per_layer", activation)
        save_adapter(ours, tmp_path, format="peft")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # PEFT warns so of keys that it misses
            theirs = PeftModel.from_pretrained(tiny(num_key_value_heads=kv), tmp_path)
        same(ours, theirs)
        assert (logits(ours) - logits(tiny(num_key_value_heads=kv))).abs().max() > 1e-3
        same(load_adapter(tiny(num_key_value_heads=kv), tmp_path), theirs)

    def test_the_files_are_those_that_peft_writes(self, tiny, tmp_path):
        self.peft_model(tiny()).save_pretrained(tmp_path / "theirs")
        save_adapter(trained(tiny(), "per_layer"), tmp_path / "ours", format="peft")
        ours, theirs = (
            load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs")
        )
        shapes = {key: tensor.shape for key, tensor in theirs.items()}
        assert {key: tensor.shape for key, tensor in ours.items()} == shapes
        assert len(shapes) == 2 * L

    def test_equal_gates_of_heads_become_one_and_different_ones_are_refused(self, tiny, tmp_path):
        ours = trained(tiny(), spread=0)
        save_adapter(ours, tmp_path, format="peft")
        same(load_adapter(tiny(), tmp_path), ours)
        with pytest.raises(ValueError, match=r"heads of layer 1 have gates from .* would be lost"):
            save_adapter(trained(tiny()), tmp_path / "no", format="peft")
        assert not (tmp_path / "no").exists()

    def test_half_precision_old_pickles_and_all_layers_are_read(self, tiny, tmp_path):
        theirs = self.peft_model(tiny().bfloat16(), adapter_layers=0)  # for PEFT: all
        theirs.save_pretrained(tmp_path)
        weights = tmp_path / "adapter_model.safetensors"
        torch.save(load_file(weights), tmp_path / "adapter_model.bin")
        weights.unlink()
        ours = load_adapter(tiny(), tmp_path)
        assert list(adapter_prompts(ours, "default")) == [0, 1, 2]
        prompt = adapter_prompts(ours, "default")[0].prompts
        assert prompt.dtype == torch.float32
        there = theirs.base_model.model.model.layers[0].self_attn.adaption_prompt
        assert torch.equal(prompt, there[0].float())

    @pytest.mark.parametrize(
        "base, reason",
        [
            ({"family": "qwen2"}, "llama and mistral models, this is qwen2"),
            ({"head_dim": 12}, "here it is 12, not 48/6"),
            ({"attention_bias": True}, "adds the bias of o_proj a second time"),
        ],
        ids=["family", "head width", "bias"],
    )
    def test_where_peft_computes_otherwise_it_is_refused_both_ways(
        self, tiny, tmp_path, base, reason
    ):
        with pytest.raises(ValueError, match=reason):
            save_adapter(trained(tiny(**base), "per_layer"), tmp_path / "no", format="peft")
        self.peft_model(tiny()).save_pretrained(tmp_path)
        model = tiny(**base)
        with pytest.raises(AdapterFileError, match=reason):
            load_adapter(model, tmp_path)
        untouched(model, tiny(**base))

    @pytest.mark.parametrize(
        "change, reason",
        [
            ({"peft_type": "LORA"}, "is of the kind 'LORA'"),
            ({"target_modules": "attn"}, "put into 'attn', expected 'self_attn'"),
            ({"adapter_len": 5}, r"is \(1, 4, 48\), expected \(1, 5, 48\)"),
            ({"adapter_layers": 1}, "does not belong there"),
            ({"adapter_layers": 9}, "9 layers have prompts, but the model has 3"),
            ({"adapter_len": None}, "adapter_len must be a whole number"),
        ],
    )
    def test_files_that_do_not_fit_are_refused(self, tiny, tmp_path, change, reason):
        self.peft_model(tiny()).save_pretrained(tmp_path)
        config = tmp_path / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
        model = tiny()
        with pytest.raises(AdapterFileError, match=reason):
            load_adapter(model, tmp_path)
        untouched(model, tiny())


BROKEN_LIT = {
    "a part of V2": (
        lambda t: t.update({"lm_head.adapter_bias": torch.zeros(96)}),
        "lm_head.adapter_scale is missing",
    ),
    "LoRA": (lambda t: t.update({"lm_head.lora_A": torch.zeros(2)}), "holds more than an adapter"),
    "a layer is missing": (
        lambda t: [t.pop(key) for key in list(t) if ".2." in key],
        "transformer.h.2.attn.adapter_wte.weight is missing",
    ),
    "gate of other heads": (
        lambda t: t.update({"transformer.h.1.attn.gating_factor": torch.zeros(1, 1, 5, 1)}),
        r"\(1, 1, 5, 1\), expected \(1, 1, 6, 1\)",
    ),
    "higher layers": (
        lambda t: t.update({"transformer.h.7.attn.gating_factor": torch.zeros(1, 1, 6, 1)}),
        "h.7.attn.gating_factor' does not belong",
    ),
    "whole numbers": (
        lambda t: t.update({"transformer.h.1.attn.gating_factor": torch.ones(1).long()}),
        "is torch.int64, expected torch.float32",
    ),
    "nothing": (lambda t: t.clear(), "no adapter file of litgpt, lit-llama or the authors"),
    "no tensor": (lambda t: t.update(steps=3), "something else than tensors"),
    "no numbers": (
        lambda t: t.update({k: v.to("meta") for k, v in t.items()}),
        "something else than tensors",
    ),
}


class TestLit:
    def lit_model(self, base, gate_shape):
        """The base with litgpt's attention in its upper layers, and litgpt's names of them."""
        names = nn.Module()
        names.transformer = nn.Module()
        names.transformer.h = nn.ModuleDict()
        for number, layer in enumerate(base.model.layers):
            if number >= len(base.model.layers) - L:
                layer.self_attn = LitAttention(layer.self_attn, K, gate_shape)
                block = names.transformer.h[str(number)] = nn.Module()
                block.attn = layer.self_attn
        torch.manual_seed(3)
        for attention in names.modules():
            if hasattr(attention, "gating_factor"):
                nn.init.normal_(attention.gating_factor)
        return base, names

    def adapter_tensors(self, names):
        wanted = ("adapter_wte", "gating_factor")
        return {k: v for k, v in names.state_dict().items() if any(w in k for w in wanted)}

    @kv_heads
    def test_what_litgpt_wrote_computes_the_same_here(self, tiny, tmp_path, kv):
        theirs, names = self.lit_model(tiny(num_key_value_heads=kv), (1, 1, 6, 1))
        torch.save({"model": self.adapter_tensors(names)}, tmp_path / "lit_model.pth.adapter")
        same(load_adapter(tiny(num_key_value_heads=kv), tmp_path), theirs)
        file = tmp_path / "lit_model.pth.adapter"
        same(load_adapter(tiny(num_key_value_heads=kv), file), theirs)

    @pytest.mark.parametrize("gate_shape", [(1, 6, 1, 1), (1,)], ids=["per head", "scalar"])
    def test_what_lit_llama_wrote_computes_the_same_here(self, tiny, tmp_path, gate_shape):
        base = tiny(num_key_value_heads=6)
        theirs, names = self.lit_model(base, (1, 6, 1, 1))
        if gate_shape == (1,):
            with torch.no_grad():
                for attention in names.transformer.h.values():
                    attention.attn.gating_factor.fill_(0.3)
        tensors = self.adapter_tensors(names)
        for key in tensors:
            if key.endswith("gating_factor") and gate_shape == (1,):
                tensors[key] = tensors[key].flatten()[:1].clone()
        torch.save(tensors, tmp_path / "adapter.pth")
        same(load_adapter(tiny(num_key_value_heads=6), tmp_path / "adapter.pth"), theirs)

    @kv_heads
    @pytest.mark.parametrize("gate", ["per_head", "per_layer"])
    def test_what_we_wrote_computes_the_same_in_litgpt(self, tiny, tmp_path, gate, kv):
        ours = trained(tiny(num_key_value_heads=kv), gate, "tanh")
        save_adapter(ours, tmp_path, format="litgpt")
        saved = torch.load(tmp_path / "lit_model.pth.adapter", weights_only=True)
        theirs, names = self.lit_model(tiny(num_key_value_heads=kv), (1, 1, 6, 1))
        names.load_state_dict(saved["model"] | self.base_tensors(names))
        same(ours, theirs)
        assert (logits(ours) - logits(tiny(num_key_value_heads=kv))).abs().max() > 1e-3

    def base_tensors(self, names):
        return {k: v for k, v in names.state_dict().items() if k.endswith("proj.weight")}

    def test_what_we_wrote_computes_the_same_in_lit_llama(self, tiny, tmp_path):
        ours = trained(tiny(num_key_value_heads=6))
        save_adapter(ours, tmp_path, format="lit-llama")
        saved = torch.load(tmp_path / "lit-llama-adapter-finetuned.pth", weights_only=True)
        theirs, names = self.lit_model(tiny(num_key_value_heads=6), (1, 6, 1, 1))
        names.load_state_dict(saved | self.base_tensors(names))
        same(ours, theirs)
        with pytest.raises(ValueError, match="no grouped key/value heads"):
            save_adapter(trained(tiny()), tmp_path / "no", format="lit-llama")

    def test_where_litgpt_computes_otherwise_it_is_refused(self, tiny, tmp_path):
        with pytest.raises(ValueError, match="does not apply the norm of the keys"):
            save_adapter(trained(tiny("qwen3", head_dim=8)), tmp_path / "no", format="litgpt")
        with pytest.raises(ValueError, match="caps the prompts' scores"):
            save_adapter(trained(tiny("gemma2", head_dim=8)), tmp_path / "no", format="litgpt")
        assert not (tmp_path / "no").exists()

    @pytest.mark.parametrize("case", BROKEN_LIT)
    def test_files_that_do_not_fit_are_refused(self, tiny, tmp_path, case):
        change, reason = BROKEN_LIT[case]
        tensors = self.adapter_tensors(self.lit_model(tiny(), (1, 1, 6, 1))[1])
        change(tensors)
        torch.save({"model": tensors}, tmp_path / "lit_model.pth.adapter")
        model = tiny()
        with pytest.raises(AdapterFileError, match=reason):
            load_adapter(model, tmp_path)
        untouched(model, tiny())


BROKEN_OFFICIAL = {
    "wrong length": (lambda t: None, {"adapter_len": 3}, r"8 prompts: with adapter_len=3"),
    "shorter": (
        lambda t: None,
        {"adapter_len": 8},
        "the gate of layer 1 is open, but .* begin at layer 2",
    ),
    "other width": (
        lambda t: t.update({"adapter_query.weight": torch.zeros(8, 64)}),
        {},
        r"layer 1 is \(4, 64\), expected \(4, 48\)",
    ),
    "no gate": (
        lambda t: t.pop("layers.2.attention.gate"),
        {},
        "layers.2.attention.gate is missing",
    ),
    "norms of V2": (
        lambda t: t.update({"norm.weight": torch.zeros(3)}),
        {},
        r"layers\.0\.input_layernorm\.weight is missing",
    ),
    "multi-modal": (
        lambda t: t.update({"llama.norm.weight": torch.zeros(48)}),
        {},
        "multi-modal model, whose visual encoder is not in this library",
    ),
    "no prompts": (lambda t: t.pop("adapter_query.weight"), {}, "not the authors' format"),
    "more layers": (
        lambda t: t.update({"layers.3.attention.gate": torch.zeros(1, 6, 1, 1)}),
        {},
        "layers.3.attention.gate' does not belong",
    ),
}


class TestOfficial:
    def file(self, path, gate_shape=(1, 6, 1, 1)):
        torch.manual_seed(3)
        tensors = {"adapter_query.weight": torch.randn(L * K, 48)}
        for number in range(3):  # every layer has a gate, those without prompts never learn
            gate = torch.randn(gate_shape) if number >= 3 - L else torch.zeros(gate_shape)
            tensors[f"layers.{number}.attention.gate"] = gate
        torch.save(tensors, path)
        return tensors

    @pytest.mark.parametrize("activation", ["tanh", "identity"])
    @pytest.mark.parametrize("gate_shape", [(1, 6, 1, 1), (1,)], ids=["per head", "scalar"])
    def test_what_the_authors_wrote_computes_the_same_here(
        self, tiny, tmp_path, activation, gate_shape
    ):
        tensors = self.file(tmp_path / "adapter.pth", gate_shape)
        ours = load_official_adapter(
            tiny(num_key_value_heads=6),
            tmp_path / "adapter.pth",
            gate_activation=activation,
            adapter_len=K,
        )
        theirs = tiny(num_key_value_heads=6)
        for number in (1, 2):
            layer = theirs.model.layers[number]
            prompts = tensors["adapter_query.weight"][(number - 1) * K : number * K]
            gate = tensors[f"layers.{number}.attention.gate"]
            layer.self_attn = OfficialAttention(
                layer.self_attn, prompts, gate, activation == "tanh"
            )
        same(ours, theirs)
        assert adapter_configs(ours)["default"].adapter_layers == L
        save_adapter(ours, tmp_path / "ours")
        same(load_adapter(tiny(num_key_value_heads=6), tmp_path / "ours"), theirs)

    def test_the_two_answers_to_the_tanh_question_differ(self, tiny, tmp_path):
        self.file(tmp_path / "adapter.pth")
        with_tanh, without = (
            load_official_adapter(
                tiny(), tmp_path / "adapter.pth", gate_activation=answer, adapter_len=K
            )
            for answer in ("tanh", "identity")
        )
        assert (logits(with_tanh) - logits(without)).abs().max() > 1e-3

    def test_load_adapter_asks_the_tanh_question(self, tiny, tmp_path):
        self.file(tmp_path / "adapter.pth")
        model = tiny()
        with pytest.raises(AdapterFileError, match=r"load_official_adapter.*gate_activation"):
            load_adapter(model, tmp_path / "adapter.pth")
        untouched(model, tiny())

    @pytest.mark.parametrize("case", BROKEN_OFFICIAL)
    def test_files_that_do_not_fit_are_refused(self, tiny, tmp_path, case):
        change, options, reason = BROKEN_OFFICIAL[case]
        tensors = self.file(tmp_path / "adapter.pth")
        change(tensors)
        torch.save(tensors, tmp_path / "adapter.pth")
        model = tiny()
        options = {"gate_activation": "tanh", "adapter_len": K} | options
        with pytest.raises(AdapterFileError, match=reason):
            load_official_adapter(model, tmp_path / "adapter.pth", **options)
        untouched(model, tiny())

    def test_the_answers_are_checked_and_so_is_the_model(self, tiny, tmp_path):
        self.file(tmp_path / "adapter.pth")
        with pytest.raises(ValueError, match="gate_activation must be one of"):
            load_official_adapter(tiny(), tmp_path / "adapter.pth", gate_activation="yes")
        with pytest.raises(ValueError, match="are for LLaMA, this is qwen2"):
            load_official_adapter(tiny("qwen2"), tmp_path / "adapter.pth", gate_activation="tanh")
        taken = trained(tiny())
        with pytest.raises(ValueError, match="already has an adapter named 'default'"):
            load_official_adapter(
                taken, tmp_path / "adapter.pth", gate_activation="tanh", adapter_len=K
            )


class Evil:
    def __reduce__(self):
        return (exec, ("open('ran', 'w')",))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"transformer.h.2.attn.gating_factor": Evil()}, "lit_model.pth.adapter")
    with pytest.raises(AdapterFileError, match="could run code when it is opened"):
        load_adapter(tiny(), tmp_path)
    with pytest.raises(AdapterFileError, match="could run code when it is opened"):
        load_official_adapter(tiny(), "lit_model.pth.adapter", gate_activation="tanh")
    assert not (tmp_path / "ran").exists()


def test_two_formats_in_one_folder_are_not_guessed(tiny, tmp_path):
    model = trained(tiny())
    save_adapter(model, tmp_path)
    save_adapter(model, tmp_path, format="litgpt")
    with pytest.raises(AdapterFileError, match="holds several adapters"):
        load_adapter(tiny(), tmp_path)
    same(load_adapter(tiny(), tmp_path / "lit_model.pth.adapter"), model)


def test_an_unknown_format_and_an_adapter_that_sees(tiny, tmp_path):
    model = trained(tiny(), "per_layer")
    with pytest.raises(ValueError, match=r"format must be one of .*'litgpt'.*, got 'gguf'"):
        save_adapter(model, tmp_path / "no", format="gguf")
    add_vision(model, DigitEncoder())
    with pytest.raises(ValueError, match="'peft' holds no image encoder"):
        save_adapter(model, tmp_path / "no", format="peft")
    assert not (tmp_path / "no").exists()


def test_a_safetensors_file_renamed_to_pth_is_named(tiny, tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "adapter.pth")
    with pytest.raises(AdapterFileError, match="corrupt or was cut short"):
        load_adapter(tiny(), tmp_path / "adapter.pth")


@pytest.mark.parametrize("format", ["llama_adapter_edu", "peft", "litgpt", "lit-llama"])
def test_a_folder_of_every_format_loads_again_and_so_do_its_files(
    tiny, tmp_path, monkeypatch, format
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    base = {"num_key_value_heads": 6}
    model = trained(tiny(**base), "per_layer")
    folder = save_adapter(model, "~/my.adapters/a", format=format)
    assert folder == tmp_path / "my.adapters" / "a"
    for place in ("~/my.adapters/a", "my.adapters/a", folder, *folder.iterdir()):
        same(load_adapter(tiny(**base), place), model)


def test_a_safetensors_file_of_another_name_is_not_guessed_at(tiny, tmp_path):
    """Beside it lies another adapter, whose settings are not its own."""
    save_adapter(trained(tiny()), tmp_path)
    other = (tmp_path / "adapter_model.safetensors").rename(tmp_path / "old.safetensors")
    save_adapter(add_adaption_prompts(tiny(), AdaptionPromptConfig(2, 1)), tmp_path)
    with pytest.raises(AdapterFileError, match=r"old\.safetensors says nothing of its settings"):
        load_adapter(tiny(), other)


def test_the_authors_file_in_the_home_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    TestOfficial().file(tmp_path / "adapter.pth")
    options = {"gate_activation": "tanh", "adapter_len": K}
    loaded = load_official_adapter(tiny(), "~/adapter.pth", **options)
    same(loaded, load_official_adapter(tiny(), tmp_path / "adapter.pth", **options))


@pytest.mark.parametrize("kind", ["prompts", "v2", "peft", "cartridge"])
def test_settings_of_another_kind_are_refused_or_harmless(tiny, tmp_path, kind):
    """Each setting in turn becomes null, a text, a list, a fraction: never a crash."""
    base = tiny("llama")
    if kind == "cartridge":
        add_cartridge(base, torch.arange(6)[None])
    else:
        v2 = dict(bias_scale=True, norms=True, scaled="input") if kind == "v2" else {}
        add_adaption_prompts(base, AdaptionPromptConfig(4, 2, **v2))
    save_adapter(
        base, tmp_path, format="llama_adapter_edu" if kind in ("prompts", "v2") else "peft"
    )
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text())
    model, fresh, refused = tiny("llama"), tiny("llama"), 0
    for name in settings:
        for value in (None, "x", [], 1.5, True, -1, {}):
            file.write_text(json.dumps(settings | {name: value}))
            try:
                load_adapter(model, tmp_path)
            except AdapterFileError:
                refused += 1
            else:
                remove_adapter(model, "default")
            assert not adapter_configs(model)
            assert torch.equal(logits(model), logits(fresh))
    assert refused > len(settings)
