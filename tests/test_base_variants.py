"""Bases that are quantized, offloaded, cut, or compute their activations twice."""

import pytest
import torch
from tiny_run import tiny_model, tiny_run
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    add_cartridge,
    load_adapter,
    save_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts
from llama_adapter_edu.training.step import check_gradients

CONFIG = AdaptionPromptConfig(adapter_len=5, adapter_layers=2)
V2 = AdaptionPromptConfig(adapter_len=5, adapter_layers=2, bias_scale=True, norms=True)
WORDS = torch.arange(3, 17).reshape(2, 7)
ON_DISK = {"model.layers.1": "disk", "model.layers.2": "disk"}
ELSEWHERE = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved base whose sizes bitsandbytes can pack."""
    path = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 128, "intermediate_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tiny_model(adapter=False, **sizes, **heads).save_pretrained(path)
    return path


def adapted(base, config=CONFIG):
    """The base with the same prompts and half-open gates each time."""
    torch.manual_seed(0)
    add_adaption_prompts(base, config)
    for prompt in adapter_prompts(base, "default").values():
        torch.nn.init.normal_(prompt.gate)
    for name, parameter in base.named_parameters():
        if ".changes." in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return base


def gradients(model):
    model.zero_grad()
    model(input_ids=WORDS, labels=WORDS).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


class TestOffloaded:
    @pytest.fixture
    def load(self, folder, tmp_path):
        def load(offload):
            if not offload:
                return AutoModelForCausalLM.from_pretrained(folder)
            places = ON_DISK | dict.fromkeys(ELSEWHERE, "cpu")
            return AutoModelForCausalLM.from_pretrained(
                folder, device_map=places, offload_folder=tmp_path / "offloaded"
            )

        return load

    def test_prompts_are_where_the_layer_computes_and_learn_the_same(self, load, tmp_path):
        models = [adapted(load(offload)) for offload in (False, True)]
        whole, offloaded = (tiny_run(model=model)[0].losses for model in models)
        assert offloaded == whole
        assert models[1].model.layers[2].self_attn.k_proj.weight.device.type == "meta"
        save_adapter(models[1], tmp_path / "adapter")
        loaded = load_adapter(load(True), tmp_path / "adapter")
        with torch.no_grad():
            logits = loaded(input_ids=WORDS).logits
            assert torch.equal(logits, models[0](input_ids=WORDS).logits)
        said = [m.generate(WORDS, max_new_tokens=4, do_sample=False) for m in (models[0], loaded)]
        assert torch.equal(*said)

    def test_device_map_auto(self, folder):
        model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
        assert tiny_run(model=adapted(model))[0].losses == pytest.approx(
            tiny_run(model=adapted(AutoModelForCausalLM.from_pretrained(folder)))[0].losses
        )


@pytest.mark.parametrize("reentrant", [True, False])
def test_finetuning_with_gradient_checkpointing(reentrant):
    plain, _ = tiny_run(steps=3)
    model = tiny_model()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    assert tiny_run(model=model, steps=3)[0].losses == pytest.approx(plain.losses, abs=1e-6)


def test_a_backward_that_reaches_nothing_is_told():
    with pytest.raises(ValueError, match=r"no gradient reaches what trains.*use_reentrant=False"):
        check_gradients(tiny_model())


def test_gradients_that_arrive_are_fine():
    model = tiny_model().train()
    model(input_ids=WORDS, labels=WORDS).loss.backward()
    check_gradients(model)
    check_gradients(tiny_model().requires_grad_(False))  # nothing trains: nothing to reach


def test_a_base_in_pieces_is_refused_and_left_as_it_was(monkeypatch):
    """As with a tensor-parallel plan; `test_processes.py` has a real one."""
    model = tiny_model(adapter=False)
    model.model.layers[1].self_attn.k_proj.weight.placements = ("Shard(0)",)
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"layer 1 are cut .* without a tensor-parallel plan"):
        add_adaption_prompts(model, CONFIG)
    assert dict(model.named_modules()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["V2", "cartridge"])
def test_v2_and_cartridges_on_a_spread_base_are_refused(kind):
    model = tiny_model(adapter=False)
    model.model.layers[1].self_attn.k_proj.weight.placements = ("Shard(0)",)
    with pytest.raises(ValueError, match=r"spread over several processes.*Load it whole|are cut"):
        if kind == "V2":
            add_adaption_prompts(model, V2)
        else:
            add_cartridge(model, WORDS[:1])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not adapter_configs(model)


class TestQuantized:
    """Needs bitsandbytes: pip install "llama-adapter-edu[quantized]"."""

    @pytest.fixture(params=["load_in_8bit", "load_in_4bit"])
    def load(self, request, folder):
        pytest.importorskip("bitsandbytes")
        exact = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
        settings = BitsAndBytesConfig(**{request.param: True}, **exact)

        def load():
            return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings)

        return load

    @pytest.mark.parametrize("config", [CONFIG, V2], ids=["prompts", "V2"])
    def test_closed_gates_change_nothing(self, load, config):
        model = load()
        with torch.no_grad():
            base = model(input_ids=WORDS).logits
            add_adaption_prompts(model, config)
            assert torch.equal(model(input_ids=WORDS).logits, base)

    @pytest.fixture
    def twin(self, load, folder):
        """The same numbers in float32."""
        twin = AutoModelForCausalLM.from_pretrained(folder)
        for name, module in load().named_modules():
            weight = getattr(module, "weight", None)
            if hasattr(weight, "quant_state") or hasattr(weight, "SCB"):
                twin.get_submodule(name).weight.data = dequantized(weight)
        return twin

    @pytest.mark.parametrize("config", [CONFIG, V2], ids=["prompts", "V2"])
    def test_gradients_and_training_are_those_of_the_same_numbers_in_32_bits(
        self, load, twin, config
    ):
        model, twin = adapted(load(), config), adapted(twin, config)
        frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        torch.testing.assert_close(gradients(model.train()), gradients(twin), rtol=0.01, atol=1e-4)
        losses = tiny_run(model=model)[0].losses
        assert losses == pytest.approx(tiny_run(model=twin)[0].losses, abs=2e-3)
        assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
        prompts = adapter_prompts(model, "default").values()
        assert {parameter.dtype for p in prompts for parameter in p.parameters()} == {torch.float32}

    def test_a_cartridge_is_that_of_the_same_numbers_in_32_bits(self, load, twin):
        models = [add_cartridge(base, WORDS[:1]).train() for base in (load(), twin)]
        caches = [{n: p for n, p in m.named_parameters() if p.requires_grad} for m in models]
        for found, wanted in (caches, [*map(gradients, models)]):
            assert found.keys() == wanted.keys() and len(wanted) == 6
            for name, right in wanted.items():  # layers in 8 bits round their input, too
                assert (found[name] - right).norm() < 0.05 * right.norm(), name

    def test_a_run_goes_on_from_its_checkpoint(self, load, tmp_path):
        first, _ = tiny_run(tmp_path, model=adapted(load()))
        assert tiny_run(tmp_path, model=adapted(load()))[0].losses == first.losses

    def test_a_base_that_has_generated_trains_or_says_why_not(self, load):
        right = gradients(adapted(load()).train())
        model = adapted(load())
        with torch.no_grad():
            model(input_ids=WORDS)
        model.train()
        loss = model(input_ids=WORDS, labels=WORDS).loss
        if loss.requires_grad:
            loss.backward()
        got = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        if any(gradient is not None for gradient in got.values()):
            torch.testing.assert_close(got, right)
        else:  # repacked in 4 bits, on a CPU with AVX512-BF16
            with pytest.raises(ValueError, match="4 bits on a CPU"):
                check_gradients(model)


def dequantized(weight):
    if hasattr(weight, "SCB"):
        return weight.data.float() * weight.SCB[:, None] / 127
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state).float()
