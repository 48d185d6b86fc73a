"""LLaMA-Adapter V2: bias and scale of linear layers, norms of an adapter's own, and other's files.

The oracle is the Llama of `test_law.py`, in float64, which shares nothing with the library but the
numbers of the weights. What random orders of operations do to V2 is tested there, too.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from other_libraries import LitV2Llama, MetaV2Llama
from peft import LoraConfig, get_peft_model
from test_law import IDS, SIZES, base_model, compare, plain_llama, v2_numbers
from tiny_run import tiny_model, tiny_run

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    add_vision,
    count_parameters,
    disable_adapter,
    gate_openings,
    load_adapter,
    load_official_adapter,
    save_adapter,
    set_adapter,
    use_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts
from llama_adapter_edu.files.safe_files import AdapterFileError
from llama_adapter_edu.method.bias_scale import BiasScale, biased_and_scaled
from llama_adapter_edu.training.compiled import compiled_layers
from llama_adapter_edu.vision.encoders import DigitEncoder

KINDS = {
    "all": dict(bias_scale=True, norms=True),
    "bias and scale": dict(bias_scale=True),
    "norms": dict(norms=True),
    "input": dict(bias_scale=True, norms=True, scaled="input"),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
lengths = pytest.mark.parametrize("length", [4, 0], ids=["prompts", "no prompts"])


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def shaken(model, name="default", seed=3):
    """The same adapter with other numbers everywhere, always these."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def expected(model, name="default", ids=IDS):
    prompts = {n: (p.prompts, p.gate.tanh()) for n, p in adapter_prompts(model, name).items()}
    with torch.no_grad():
        return plain_llama(ids, prompts, v2_numbers(model, name))


def test_eq_1_and_its_start():
    y, x = torch.randn(2, 3, 5), torch.randn(2, 3, 7)
    bias, scale = torch.randn(5), torch.randn(5)
    by_hand = torch.stack([scale[i] * (y[..., i] + bias[i]) for i in range(5)], dim=-1)
    torch.testing.assert_close(biased_and_scaled(y, bias, scale), by_hand)
    assert biased_and_scaled(y.bfloat16(), bias, scale).dtype == torch.bfloat16
    for scaled, width in {"output": 5, "input": 7}.items():
        part = BiasScale(7, 5, scaled=scaled)
        assert {n: p.tolist() for n, p in part.named_parameters()} == {
            "bias": [0.0] * 5,
            "scale": [1.0] * width,
        }
        assert torch.equal(part.before(x), x) and torch.equal(part.after(y), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "olmo2", "phi3", "cohere"])
def test_at_the_start_nothing_changes_and_all_gets_a_gradient(tiny, family, dtype):
    model = tiny(family, dtype=dtype)
    for parameter in model.parameters():  # norms of ones would hide a mix-up
        parameter.data += (0.1 * torch.randn_like(parameter)).to(dtype)
    base = logits(model)
    add_adaption_prompts(model, AdaptionPromptConfig(4, 2, bias_scale=True, norms=True))
    assert torch.equal(logits(model), base)
    model(IDS, labels=IDS).loss.backward()
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trains.values()} == {torch.float32}
    dead = [n for n, p in trains.items() if not p.grad.any() and not n.endswith(".prompts")]
    # A bias of all keys moves the scores of a query alike, unless keys are turned or normed after.
    assert not [n for n in dead if "k_proj.changes.default.bias" not in n]
    shaken(model)
    assert not torch.equal(logits(model), base)
    with disable_adapter(model):
        assert torch.equal(logits(model), base)


@kinds
@lengths
def test_the_numbers_are_those_of_the_formula(kind, length):
    model = base_model()
    add_adaption_prompts(model, AdaptionPromptConfig(length, 2, **kind))
    shaken(model)
    compare(model, expected(model))
    assert (expected(model) - plain_llama(IDS, {})).abs().max() > 0.05


@pytest.mark.parametrize("kv", [32, 8])
def test_how_many_numbers(kv):
    """A LLaMA-7B's: litgpt says 4,279,744 for K=10 and L=30."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        sizes = dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
        model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32000, num_key_value_heads=kv))
    add_adaption_prompts(model, AdaptionPromptConfig(10, 30, bias_scale=True, norms=True))
    linear = (2 * 4096 + 2 * kv * 128 + 2 * 11008 + 4096) * 32 + 32000
    assert count_parameters(model)[0] == 1_229_760 + 2 * linear + 65 * 4096
    assert kv != 32 or count_parameters(model)[0] == 4_279_744


@kinds
def test_each_row_its_own_and_rows_of_prompts_alone(kind):
    model = base_model()
    add_adaption_prompts(model, AdaptionPromptConfig(3, 3, **kind), "a")
    shaken(model)
    add_adaption_prompts(model, AdaptionPromptConfig(2, 1, bias_scale=True), "b")
    shaken(model, seed=4)
    add_adaption_prompts(model, AdaptionPromptConfig(5, 2), "prompts")
    shaken(model, seed=5)
    ids = torch.randint(3, 60, (5, 7))
    rows = ["b", None, "a", "prompts", "b"]
    wanted = [
        expected(model, n, i[None]) if n else plain_llama(i[None], {})
        for n, i in zip(rows, ids, strict=True)
    ]
    with use_adapter(model, rows):
        compare(model, torch.cat(wanted), ids)
        said = model.generate(ids, max_new_tokens=4, do_sample=False)
    for name, row, of_batch in zip(rows, ids, said, strict=True):
        with use_adapter(model, name):
            alone = model.generate(row[None], max_new_tokens=4, do_sample=False)
        assert torch.equal(alone[0], of_batch)


def test_rows_that_a_layer_lays_together_are_refused():
    model = base_model()
    add_adaption_prompts(model, AdaptionPromptConfig(3, 3, bias_scale=True), "a")
    mlp = model.model.layers[1].mlp
    whole = mlp.forward
    mlp.forward = lambda x: whole(x.flatten(0, 1)).view_as(x)  # as experts do
    compare(model, plain_llama(IDS, {}))
    with use_adapter(model, ["a", None]), pytest.raises(ValueError, match="rows of a batch toge"):
        model(IDS)
    with use_adapter(model, ["a", "a"]):
        compare(model, plain_llama(IDS, {}))


def test_a_mixture_of_experts_is_refused_and_left_as_it_was(tiny):
    model = tiny("mixtral", num_local_experts=2)
    before, base = dict(model.named_modules()), logits(model)
    if all(p.ndim < 3 for p in model.parameters()):  # transformers 4: experts are linear layers
        add_adaption_prompts(model, AdaptionPromptConfig(3, 1, bias_scale=True))
        assert torch.equal(logits(model), base)
        return
    with pytest.raises(ValueError, match=r"experts V2 would change only a part"):
        add_adaption_prompts(model, AdaptionPromptConfig(3, 1, bias_scale=True))
    assert dict(model.named_modules()) == before and not adapter_configs(model)
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_computed_again_use_the_same_adapter(reentrant):
    """The backward comes after the block, in which another adapter acts."""
    model = base_model().train()
    add_adaption_prompts(model, AdaptionPromptConfig(3, 3, bias_scale=True, norms=True), "a")
    shaken(model)
    add_adaption_prompts(model, AdaptionPromptConfig(2, 1, bias_scale=True), "b")
    shaken(model, seed=4)
    set_adapter(model, "a")

    def gradients():
        model.zero_grad()
        with use_adapter(model, ["a", "b"]):
            loss = model(IDS, labels=IDS, use_cache=False).loss
        with disable_adapter(model):
            loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    right = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    torch.testing.assert_close(gradients(), right)
    assert len(right) > 40


@pytest.fixture
def v2(tiny):
    return lambda: add_adaption_prompts(
        tiny(attn_implementation="sdpa"), AdaptionPromptConfig(4, 2, bias_scale=True, norms=True)
    )


OFFLOADS = {
    "cpu": lambda model, folder: cpu_offload(model, execution_device="cpu"),
    "disk": lambda model, folder: disk_offload(model, str(folder), execution_device="cpu"),
}


@pytest.mark.parametrize("how", OFFLOADS)
@pytest.mark.parametrize("adapters", ["before", "after"])
def test_offloaded(tiny, v2, tmp_path, how, adapters):
    wanted = logits(shaken(v2()))
    model = shaken(v2()) if adapters == "before" else tiny(attn_implementation="sdpa")
    OFFLOADS[how](model, tmp_path / "offload")
    if adapters == "after":
        config = AdaptionPromptConfig(4, 2, bias_scale=True, norms=True)
        shaken(add_adaption_prompts(model, config))
    torch.testing.assert_close(logits(model), wanted)
    save_adapter(model, tmp_path / "saved")
    back = load_adapter(tiny(attn_implementation="sdpa"), tmp_path / "saved")
    torch.testing.assert_close(logits(back), wanted)


@pytest.mark.heavy
def test_compiled_and_swapped_and_rows(tiny, v2):
    model, bare = shaken(v2()), logits(tiny(attn_implementation="sdpa"))
    wanted = logits(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled), wanted)
    with disable_adapter(compiled):
        torch.testing.assert_close(logits(compiled), bare)
    with use_adapter(compiled, [None, "default"]):
        torch.testing.assert_close(logits(compiled), torch.stack([bare[0], wanted[1]]))


def test_exported(v2):
    model = shaken(v2())
    program = torch.export.export(model, (IDS,), {"use_cache": False}, strict=False)
    torch.testing.assert_close(program.module()(IDS, use_cache=False).logits, logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_cast_and_back(v2, dtype):
    model = shaken(v2())
    wanted = logits(model)
    model.to(dtype)
    assert logits(model).dtype == dtype
    torch.testing.assert_close(logits(model).float(), wanted, atol=0.05, rtol=0.05)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_threads_with_adapters_of_their_own(v2):
    model = shaken(v2())
    add_adaption_prompts(model, AdaptionPromptConfig(2, 1, bias_scale=True, norms=True), "b")
    shaken(model, seed=4)
    wanted = {}
    for name in ("default", "b", None):
        with use_adapter(model, name):
            wanted[name] = logits(model)

    def many(name):
        with use_adapter(model, name):
            return all(torch.allclose(logits(model), wanted[name], atol=1e-6) for _ in range(20))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(many, [*wanted] * 2))


def test_an_error_in_a_layer_leaves_nothing_behind(v2):
    model = shaken(v2())
    linear, x = model.model.layers[0].mlp.up_proj, torch.randn(2, 48)
    wanted = linear(x)
    with use_adapter(model, None), pytest.raises((RuntimeError, ValueError)):
        model(IDS, attention_mask=torch.ones(2, 9, dtype=torch.float32)[:, :, None, None, None])
    assert torch.equal(linear(x), wanted)


def test_lora_beside_it(tiny, tmp_path):
    """Around PEFT's layers, or inside of them."""
    from peft import LoraConfig, get_peft_model

    config = AdaptionPromptConfig(4, 2, bias_scale=True)
    lora = LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    around = get_peft_model(tiny(), lora)
    base = logits(around)
    add_adaption_prompts(around, config, freeze=False)
    assert torch.equal(logits(around), base)
    shaken(around)
    save_adapter(around, tmp_path)
    inside = load_adapter(tiny(), tmp_path)
    wanted = logits(inside)
    inside = get_peft_model(inside, lora)
    assert not torch.equal(logits(inside), wanted)
    with inside.disable_adapter():
        torch.testing.assert_close(logits(inside), wanted)
    save_adapter(inside, tmp_path / "again")
    assert torch.equal(logits(load_adapter(tiny(), tmp_path / "again")), wanted)


def test_what_peft_has_unloaded_is_missed_when_it_is_saved(tiny, tmp_path):
    tuned = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    add_adaption_prompts(tuned, AdaptionPromptConfig(4, 2, bias_scale=True))
    save_adapter(tuned, tmp_path / "whole")
    with pytest.raises(ValueError, match=r"q_proj\.bias.*merged or unloaded"):
        save_adapter(tuned.unload(), tmp_path / "torn")
    assert not (tmp_path / "torn").exists()


def test_a_step_of_training_and_a_run_that_goes_on(tmp_path):
    config = AdaptionPromptConfig(4, 2, bias_scale=True, norms=True)

    def model():
        torch.manual_seed(0)
        return add_adaption_prompts(tiny_model(adapter=False), config)

    whole, _ = tiny_run(model=model())
    assert whole.losses[-1] < whole.losses[0]
    first = model()
    tiny_run(tmp_path, model=first)
    again, _ = tiny_run(tmp_path, model=model())
    assert again.losses == whole.losses


@kinds
@lengths
def test_saved_and_loaded_to_the_bit(tmp_path, kind, length):
    model = shaken(
        add_adaption_prompts(base_model(), AdaptionPromptConfig(length, 2, **kind), "a"), "a"
    )
    save_adapter(model, tmp_path)
    loaded = load_adapter(base_model(), tmp_path, "b")
    assert torch.equal(logits(loaded), logits(model))
    assert adapter_configs(loaded)["b"] == adapter_configs(model)["a"]
    with pytest.raises(ValueError, match="PEFT"):
        save_adapter(model, tmp_path / "no", format="peft")
    assert not (tmp_path / "no").exists()


def test_a_file_without_a_part_of_v2_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = add_adaption_prompts(base_model(), AdaptionPromptConfig(4, 2, bias_scale=True))
    file = save_adapter(model, tmp_path) / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["layers.1.mlp.up_proj.scale"]
    save_file(tensors, file)
    with pytest.raises(AdapterFileError, match=r"layers.1.mlp.up_proj.scale is missing"):
        load_adapter(base_model(), tmp_path)


def test_prompts_alone_are_written_as_before(tmp_path):
    """So that files without V2 open in earlier versions, too."""
    import json

    folder = save_adapter(add_adaption_prompts(base_model(), AdaptionPromptConfig(4, 2)), tmp_path)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert not {"bias_scale", "norms", "scaled"} & settings.keys()


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="adapter_len must be a whole number of at least 1, got 0"):
        AdaptionPromptConfig(0)
    with pytest.raises(ValueError, match="bias_scale must be True or False, got 'yes'"):
        AdaptionPromptConfig(bias_scale="yes")
    with pytest.raises(ValueError, match="scaled must be one of"):
        AdaptionPromptConfig(bias_scale=True, scaled="both")


def test_without_prompts_there_are_no_gates_and_no_pictures():
    model = add_adaption_prompts(base_model(), AdaptionPromptConfig(0, norms=True))
    assert gate_openings(model).shape == (0, 0)
    with pytest.raises(ValueError, match="has no prompts, to which a picture is added"):
        add_vision(model, DigitEncoder())


@pytest.mark.heavy
def test_layers_compiled_in_training(v2):
    model = shaken(v2()).train()

    def gradients():
        model.zero_grad()
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    right = gradients()
    torch.compiler.reset()
    with compiled_layers(model, backend="eager"):
        torch.testing.assert_close(gradients(), right)
        with disable_adapter(model):
            bare = model(IDS, use_cache=False).logits
    with disable_adapter(model):
        torch.testing.assert_close(bare, model(IDS, use_cache=False).logits)


class TestEarlyFusion:
    """V2, section 4.3: only the lowest layers see the picture."""

    images = torch.rand(2, 8, 8)

    def seeing(self, layers, adapter_layers=3):
        model = add_adaption_prompts(base_model(), AdaptionPromptConfig(4, adapter_layers))
        torch.manual_seed(7)
        add_vision(shaken(model), DigitEncoder(), layers=layers)
        return model

    def look(self, model):
        with torch.no_grad():
            return model(IDS, images=self.images, use_cache=False).logits

    @pytest.mark.parametrize("adapter_layers, layers", [(3, 1), (3, 2), (2, 1), (3, 3), (2, None)])
    def test_the_lowest_see_and_the_others_do_not(self, adapter_layers, layers):
        model = self.seeing(layers, adapter_layers)
        wanted = []
        for row, image in zip(IDS, self.images, strict=True):
            vector = model.model.vision["default"](image[None])[0]
            prompts = {}
            for seen, (n, p) in enumerate(adapter_prompts(model, "default").items()):
                sees = layers is None or seen < layers
                prompts[n] = (p.prompts + vector if sees else p.prompts, p.gate.tanh())
            wanted.append(plain_llama(row[None], prompts))
        compare(model, torch.cat(wanted).detach(), images=self.images)
        assert (self.look(model) - logits(model)).abs().max() > 1e-3

    def test_generation_and_files(self, tmp_path):
        model = self.seeing(1)
        ids = IDS
        for _ in range(3):
            with torch.no_grad():
                best = model(ids, images=self.images, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], dim=1)
        options = dict(max_new_tokens=3, do_sample=False, eos_token_id=None)
        assert torch.equal(model.generate(IDS, images=self.images, **options), ids)
        save_adapter(model, tmp_path)
        loaded = load_adapter(base_model(), tmp_path, encoder=DigitEncoder())
        assert torch.equal(self.look(loaded), self.look(model))
        assert (self.look(self.seeing(None)) - self.look(model)).abs().max() > 1e-3

    @pytest.mark.parametrize("layers", [0, 4])
    def test_layers_that_are_not_adapted(self, layers):
        with pytest.raises(ValueError, match=f"layers must be 1 to 3, .* got {layers}"):
            self.seeing(layers)


class TestOtherLibraries:
    """What litgpt, lit-llama and the authors compute with the numbers in a file."""

    @pytest.mark.parametrize("library", ["litgpt", "lit-llama"])
    @pytest.mark.parametrize("kind", ["all", "bias and scale", "norms"])
    @lengths
    def test_litgpt_out_and_in(self, tmp_path, library, kind, length):
        kv = 6 if library == "lit-llama" else 2
        config = AdaptionPromptConfig(length, 2, **KINDS[kind])
        ours = shaken(add_adaption_prompts(base_model(kv), config))
        folder = save_adapter(ours, tmp_path, format=library)
        [file] = folder.iterdir()
        assert (
            file.name
            == {
                "litgpt": "lit_model.pth.adapter_v2",
                "lit-llama": "lit-llama-adapter-finetuned.pth",
            }[library]
        )
        tensors = torch.load(file, weights_only=True)
        theirs = LitV2Llama(base_model(kv), tensors.get("model", tensors), meta=library != "litgpt")
        torch.testing.assert_close(logits(ours), theirs(IDS), rtol=0, atol=5e-6)
        assert not theirs.unused()
        loaded = load_adapter(base_model(kv), folder)
        torch.testing.assert_close(logits(loaded), theirs(IDS), rtol=0, atol=5e-6)

    def test_a_vocabulary_filled_up(self, tmp_path):
        ours = shaken(
            add_adaption_prompts(base_model(), AdaptionPromptConfig(4, 2, **KINDS["all"]))
        )
        [file] = save_adapter(ours, tmp_path, format="litgpt").iterdir()
        saved = torch.load(file, weights_only=True)["model"]
        for name in ("lm_head.adapter_bias", "lm_head.adapter_scale"):
            saved[name] = torch.cat([saved[name], torch.randn(448)])
        torch.save({"model": saved}, file)
        loaded = logits(load_adapter(base_model(), tmp_path))
        torch.testing.assert_close(loaded, logits(ours), rtol=0, atol=5e-6)

    def test_what_litgpt_cannot_hold_is_refused(self, tiny, tmp_path):
        config = AdaptionPromptConfig(4, 2, **KINDS["input"])
        model = add_adaption_prompts(base_model(), config)
        with pytest.raises(ValueError, match="scales the output of linear layers, and this adapte"):
            save_adapter(model, tmp_path / "no", format="litgpt")
        config = AdaptionPromptConfig(4, 2, **KINDS["all"])
        with pytest.raises(ValueError, match=r"no layer like layers.0.self_attn.qkv_proj"):
            save_adapter(
                add_adaption_prompts(tiny("phi3"), config), tmp_path / "no", format="litgpt"
            )
        assert not (tmp_path / "no").exists()

    @pytest.mark.parametrize("length", [4, 0], ids=["prompts", "no prompts"])
    @pytest.mark.parametrize("has", [("bias", "scale", "norm"), ("bias",), ("scale", "norm")])
    def test_the_authors_files(self, tmp_path, length, has):
        theirs = MetaV2Llama(base_model(6), length, 2, has)
        torch.save({"model": theirs.tensors}, tmp_path / "v2.pth")
        ours = load_official_adapter(
            base_model(6), tmp_path / "v2.pth", gate_activation="tanh", adapter_len=4
        )
        torch.testing.assert_close(logits(ours), theirs(IDS), rtol=0, atol=5e-6)
        assert (theirs(IDS) - logits(base_model(6))).abs().max() > 0.05
        save_adapter(ours, tmp_path / "ours")
        assert torch.equal(logits(load_adapter(base_model(6), tmp_path / "ours")), logits(ours))
        with pytest.raises(AdapterFileError, match="load_official_adapter"):
            load_adapter(base_model(6), tmp_path / "v2.pth")

    def test_one_of_their_tensors_is_missing(self, tmp_path):
        theirs = MetaV2Llama(base_model(6), 4, 2, ("bias", "scale", "norm"))
        del theirs.tensors["layers.1.attention.wo_scale"]
        torch.save(theirs.tensors, tmp_path / "v2.pth")
        with pytest.raises(AdapterFileError, match=r"layers.1.self_attn.o_proj.scale is missing"):
            load_official_adapter(
                base_model(6), tmp_path / "v2.pth", gate_activation="tanh", adapter_len=4
            )


assert SIZES["num_hidden_layers"] == 3  # the files above have prompts in layers 1 and 2
