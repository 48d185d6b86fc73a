"""Cartridges: trained keys and values before a text's, alone, in rows, composed, and in PEFT.

Two oracles: the model itself with the document in its context, and PEFT's Cartridge. What random
orders of operations do to a cartridge is in `test_law.py`, with a Llama of its own.
"""

import warnings
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_run import tiny_model, tiny_rows, tiny_run
from transformers import DynamicCache, StaticCache

from llama_adapter_edu import (
    AdaptionPromptConfig,
    CartridgeConfig,
    add_adaption_prompts,
    add_cartridge,
    add_vision,
    compose_cartridges,
    count_parameters,
    disable_adapter,
    distillation_loss,
    gate_openings,
    load_adapter,
    prompt_weights,
    save_adapter,
    set_adapter,
    use_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts
from llama_adapter_edu.files.safe_files import AdapterFileError
from llama_adapter_edu.training.distillation import kl_divergence
from llama_adapter_edu.vision.encoders import DigitEncoder

torch.manual_seed(6)
DOCUMENT, OTHER = torch.randint(3, 96, (1, 11)), torch.randint(3, 96, (1, 7))
IDS = torch.arange(3, 21).reshape(2, 9)
implementations = pytest.mark.parametrize("implementation", ["sdpa", "eager"])


def logits(model, ids=IDS, **inputs):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **inputs).logits


def in_context(model, document=DOCUMENT, ids=IDS):
    """The base model with the document before each row."""
    with disable_adapter(model):
        whole = logits(model, torch.cat([document.expand(len(ids), -1), ids], dim=1))
    return whole[:, document.shape[1] :]


def trained(model, name="default", seed=2):
    """The cartridge with other numbers in what trains."""
    torch.manual_seed(seed)
    for part in adapter_prompts(model, name).values():
        for parameter in part.parameters():
            parameter.data += 0.5 * torch.randn_like(parameter)
    return model


def close(one, other, atol=2e-6):
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


@implementations
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "smollm3", "olmo2", "phi3"])
def test_the_whole_cache_is_the_document_in_context(tiny, family, implementation):
    """Also with rotary embeddings that differ by layer, or are missing in some."""
    model = tiny(family, attn_implementation=implementation)
    base = logits(model)
    add_cartridge(model, DOCUMENT)
    close(logits(model), in_context(model))
    assert (logits(model) - base).abs().max() > 1e-4
    with disable_adapter(model):
        assert torch.equal(logits(model), base)


@implementations
def test_a_cartridge_stays_where_a_document_slides_out_of_the_window(tiny, implementation):
    """The oracle gets its mask by hand: the document for all of the text, and of it the window."""
    window, n_document, n_text = 4, DOCUMENT.shape[1], IDS.shape[1]
    model = tiny("mistral", attn_implementation=implementation, sliding_window=window)
    place = torch.arange(n_document + n_text)
    back = place[:, None] - place
    of_document = (place < n_document) & (place >= n_document)[:, None]
    seen = (back >= 0) & ((back < window) | of_document)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    ids = torch.cat([DOCUMENT.expand(2, -1), IDS], dim=1)
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask.expand(2, 1, -1, -1)).logits[:, n_document:]
    add_cartridge(model, DOCUMENT)
    close(logits(model), wanted)
    cache = DynamicCache(config=model.config)  # keeps no more than the window of the text
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in IDS.split(1, dim=1)]
    close(torch.cat(parts, dim=1), wanted)


@implementations
def test_the_first_tokens_are_a_shorter_document(tiny, implementation):
    model = tiny(attn_implementation=implementation)
    add_cartridge(model, DOCUMENT, CartridgeConfig(4))
    close(logits(model), in_context(model, DOCUMENT[:, :4]))
    assert adapter_configs(model)["default"] == CartridgeConfig(4, 1)


def test_what_trains_and_how_many_numbers(tiny):
    model = tiny().train()
    add_cartridge(model, DOCUMENT, CartridgeConfig(5, 2))
    assert count_parameters(model)[0] == 3 * 2 * 2 * (5 - 2) * 8  # layers, k and v, heads, p, d
    before = model.state_dict()
    frozen = {n: x.clone() for n, x in before.items() if ".frozen_" in n or "proj" in n}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    losses = []
    for _ in range(8):
        loss = model(IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    after = model.state_dict()
    assert len(frozen) > 6 and all(torch.equal(after[n], x) for n, x in frozen.items())
    now = [p for p in model.parameters() if p.requires_grad]
    assert all((a != b).any() for a, b in zip(before, now, strict=True))
    assert {p.dtype for p in now} == {torch.float32}


@implementations
def test_rows_with_cartridges_prompts_v2_and_none(tiny, implementation):
    model = tiny(attn_implementation=implementation)
    trained(add_cartridge(model, DOCUMENT, adapter_name="long"), "long")
    trained(add_cartridge(model, OTHER, CartridgeConfig(3), "short"), "short")
    for name, config in {
        "prompts": AdaptionPromptConfig(4, 2),
        "v2": AdaptionPromptConfig(2, 3, bias_scale=True, norms=True),
    }.items():
        add_adaption_prompts(model, config, name)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn_like(parameter)
    rows = ["short", None, "prompts", "long", "v2", "short"]
    ids = torch.randint(3, 96, (6, 8))

    def alone(run):
        results = []
        for name, row in zip(rows, ids, strict=True):
            with use_adapter(model, name):
                results.append(run(row[None]))
        return torch.cat(results)

    def generate(some):
        return model.generate(some, max_new_tokens=5, do_sample=False, eos_token_id=None)

    wanted, said = alone(lambda row: logits(model, row)), alone(generate)
    with use_adapter(model, rows):
        close(logits(model, ids), wanted)
        assert torch.equal(generate(ids), said)
    with use_adapter(model, rows[::-1]):
        assert (logits(model, ids) - wanted).abs().max() > 1e-3


@implementations
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_is_that_behind_the_document(tiny, implementation, cache):
    """Padded on the left, as generation has it, with beams and with a cache of a fixed size."""
    model = add_cartridge(tiny(attn_implementation=implementation), DOCUMENT)
    ids = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)
    ids[1, :5] = torch.arange(60, 65)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    kind = {"cache_implementation": "static"} if cache == "static" else {"num_beams": 2}
    said = model.generate(ids, attention_mask=mask, **options, **kind)
    for row, padding, answer in zip(ids, (3, 0), said, strict=True):
        behind = torch.cat([DOCUMENT, row[None, padding:]], dim=1)
        with disable_adapter(model):
            wanted = model.generate(behind, **options, **kind)
        assert torch.equal(answer[-5:], wanted[0, -5:])


def test_a_cache_in_hand_goes_on(tiny):
    model = trained(add_cartridge(tiny(attn_implementation="sdpa"), DOCUMENT))
    wanted = logits(model)
    cache = StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad():
        parts = [model(part, past_key_values=cache).logits for part in IDS.split([4, 1, 4], dim=1)]
    close(torch.cat(parts, dim=1), wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_computed_again(tiny, reentrant):
    model = trained(add_cartridge(tiny(attn_implementation="sdpa"), DOCUMENT)).train()

    def gradients():
        model.zero_grad()
        loss = model(IDS, labels=IDS, use_cache=False).loss
        with disable_adapter(model):
            loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    right = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    torch.testing.assert_close(gradients(), right)


@pytest.mark.heavy
def test_compiled_and_exported_and_cast(tiny):
    model = trained(add_cartridge(tiny(attn_implementation="sdpa"), DOCUMENT))
    wanted, bare = logits(model), logits(tiny())
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(logits(compiled), wanted)
    with use_adapter(compiled, [None, "default"]):
        close(logits(compiled), torch.stack([bare[0], wanted[1]]))
    program = torch.export.export(model, (IDS,), {"use_cache": False}, strict=False)
    close(program.module()(IDS, use_cache=False).logits, wanted)
    model.bfloat16()
    assert logits(model).dtype == torch.bfloat16
    torch.testing.assert_close(logits(model).float(), wanted, atol=0.05, rtol=0.05)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


class TestPeft:
    def peft_model(self, base, tokens=5, **settings):
        from peft import CartridgeConfig as PeftConfig
        from peft import get_peft_model

        config = PeftConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, **settings)
        torch.manual_seed(3)
        return get_peft_model(base, config).eval()

    @pytest.mark.parametrize("frozen", [0, 1, 3])
    @pytest.mark.parametrize("family, settings", [("llama", {}), ("qwen3", {"head_dim": 12})])
    def test_what_peft_wrote_computes_the_same_here(self, tiny, tmp_path, frozen, family, settings):
        theirs = self.peft_model(tiny(family, **settings), num_frozen_tokens=frozen)
        theirs.save_pretrained(tmp_path)
        ours = load_adapter(tiny(family, **settings), tmp_path)
        close(logits(ours), logits(theirs))
        assert adapter_configs(ours)["default"] == CartridgeConfig(5, frozen)
        mask = torch.ones_like(IDS)
        mask[0, 6:] = 0
        masked = [logits(m, attention_mask=mask)[0, :6] for m in (ours, theirs)]
        close(*masked)
        assert (logits(ours) - logits(tiny(family, **settings))).abs().max() > 1e-2

    def test_what_we_wrote_computes_the_same_in_peft(self, tiny, tmp_path):
        from peft import PeftModel

        ours = trained(add_cartridge(tiny(), DOCUMENT, CartridgeConfig(6, 2)))
        save_adapter(ours, tmp_path, format="peft")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            theirs = PeftModel.from_pretrained(tiny(), tmp_path).eval()
        close(logits(ours), logits(theirs))
        said = IDS  # PEFT 0.21's `generate` loses its cartridge in transformers 5.24
        for _ in range(4):
            said = torch.cat([said, logits(theirs, said)[:, -1:].argmax(-1)], dim=1)
        options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert torch.equal(ours.generate(IDS, **options), said)
        save_adapter(ours, tmp_path / "again")
        assert torch.equal(logits(load_adapter(tiny(), tmp_path / "again")), logits(ours))

    def test_it_starts_from_a_text_as_peft_does(self, tiny, tmp_path):
        from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values

        theirs = self.peft_model(tiny())
        with torch.no_grad():
            cache = tiny()(DOCUMENT, use_cache=True).past_key_values
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
        initialize_kv_prefix_from_past_key_values(theirs, past_key_values=pairs)
        ours = add_cartridge(tiny(), DOCUMENT, CartridgeConfig(5))
        close(logits(ours), logits(theirs))

    def test_composed_as_peft_composes(self, tiny, tmp_path):
        from peft import compose_cartridge_adapters

        model = trained(add_cartridge(tiny(), DOCUMENT, CartridgeConfig(6, 2), "a"), "a")
        trained(add_cartridge(model, OTHER, CartridgeConfig(3), "b"), "b", seed=5)
        for name in "ab":
            save_adapter(model, tmp_path / name, name)
        compose_cartridge_adapters([tmp_path / "a", tmp_path / "b"], output_path=tmp_path / "both")
        compose_cartridges(model, ["a", "b"], "both")
        theirs = load_adapter(tiny(), tmp_path / "both")
        assert torch.equal(logits(model), logits(theirs))
        assert adapter_configs(model)["both"] == CartridgeConfig(9, 2)
        with use_adapter(model, "a"):
            assert (logits(model) - logits(theirs)).abs().max() > 1e-3
        part = adapter_prompts(model, "both")[0]
        part.key.data.zero_()  # its own copy
        assert adapter_prompts(model, "a")[0].key.any()

    @pytest.mark.parametrize(
        "change, reason",
        [
            ({"num_virtual_tokens": 4}, r"prompt_embeddings is \(5, 96\), expected \(4, 96\)"),
            ({"num_frozen_tokens": 9}, "num_frozen_tokens must be 0 to num_virtual_tokens"),
            ({"num_virtual_tokens": None}, "num_virtual_tokens is missing"),
            ({"num_layers": 4}, "num_layers 4, here it is 3"),
            ({"token_dim": 8}, "token_dim 8, here it is 16"),
            ({"peft_type": "PREFIX_TUNING"}, "is of the kind 'PREFIX_TUNING'"),
        ],
    )
    def test_files_that_do_not_fit_are_refused(self, tiny, tmp_path, change, reason):
        import json

        self.peft_model(tiny()).save_pretrained(tmp_path)
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        model = tiny()
        with pytest.raises(AdapterFileError, match=reason):
            load_adapter(model, tmp_path)
        assert not adapter_configs(model) and torch.equal(logits(model), logits(tiny()))

    def test_numbers_that_are_none(self, tiny, tmp_path):
        save_adapter(add_cartridge(tiny(), DOCUMENT), tmp_path)
        file = tmp_path / "adapter_model.safetensors"
        tensors = load_file(file)
        tensors["prompt_embeddings"][0, 0] = torch.nan
        save_file(tensors, file)
        with pytest.raises(AdapterFileError, match="NaN"):
            load_adapter(tiny(), tmp_path)

    def test_what_peft_or_litgpt_cannot_hold(self, tiny, tmp_path):
        model = add_cartridge(tiny(), DOCUMENT)
        with pytest.raises(ValueError, match="litgpt holds no cartridges"):
            save_adapter(model, tmp_path / "no", format="litgpt")
        model = add_cartridge(tiny("gemma3_text"), DOCUMENT)
        with pytest.raises(ValueError, match="sliding window, out of which the cartridge would"):
            save_adapter(model, tmp_path / "no", format="peft")
        assert not (tmp_path / "no").exists()
        save_adapter(model, tmp_path / "own")
        assert torch.equal(
            logits(load_adapter(tiny("gemma3_text"), tmp_path / "own")), logits(model)
        )


BATCH = {"input_ids": IDS, "labels": torch.where(torch.arange(9) < 4, -100, IDS)}


class TestDistillation:
    def test_kl_is_that_of_pytorch(self):
        student, teacher = torch.randn(2, 7, 11)
        wanted = F.kl_div(
            student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        close(kl_divergence(student, teacher), wanted)
        close(kl_divergence(teacher, teacher + 3), torch.zeros(7))
        assert kl_divergence(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32

    def test_the_loss_at_the_labelled_tokens_alone(self, tiny):
        model = trained(add_cartridge(tiny(attn_implementation="sdpa"), DOCUMENT))
        wanted = kl_divergence(logits(model), in_context(model))[:, 3:-1].mean()
        loss = distillation_loss(model, DOCUMENT, BATCH)
        close(loss, wanted)
        assert loss > 1e-3
        loss.backward()
        assert all(p.grad.any() for p in model.parameters() if p.requires_grad)
        some = BATCH["labels"].clone()
        some[0] = -100
        one = distillation_loss(model, DOCUMENT, BATCH | {"labels": some})
        close(one, kl_divergence(logits(model), in_context(model))[1, 3:-1].mean())

    def test_padding_on_either_side_changes_nothing(self, tiny):
        model = trained(add_cartridge(tiny(attn_implementation="sdpa"), DOCUMENT))
        wanted = distillation_loss(model, DOCUMENT, BATCH)
        for left, right in ((3, 0), (0, 3)):
            fills = {"input_ids": 0, "labels": -100, "attention_mask": 0}
            batch = BATCH | {"attention_mask": torch.ones_like(IDS)}
            padded = {n: F.pad(x, (left, right), value=fills[n]) for n, x in batch.items()}
            close(distillation_loss(model, DOCUMENT, padded), wanted, atol=1e-5)

    def test_the_whole_cache_has_nothing_to_learn_and_a_part_has(self, tiny):
        model = add_cartridge(tiny(attn_implementation="sdpa"), DOCUMENT)
        assert distillation_loss(model, DOCUMENT, BATCH) < 1e-6
        set_adapter(add_cartridge(model, DOCUMENT, CartridgeConfig(3), "part"), "part")
        assert distillation_loss(model, DOCUMENT, BATCH) > 1e-4

    def test_finetune_learns_from_the_model_that_reads(self, tmp_path):
        def student():
            model = tiny_model(adapter=False)
            for layer in model.model.layers:  # sharper, so that there is something to learn
                for p in layer.self_attn.parameters():
                    p.data *= 8
            return trained(add_cartridge(model, DOCUMENT, CartridgeConfig(4)))

        settings = dict(document_ids=DOCUMENT, steps=25, weight_decay=0.0, learning_rate=0.05)
        whole, _ = tiny_run(model=student(), **settings)
        assert sum(whole.losses[-5:]) < 0.5 * sum(whole.losses[:5])
        again, _ = tiny_run(tmp_path, model=student(), **settings)
        resumed, _ = tiny_run(tmp_path, model=student(), **settings)
        assert whole.losses == again.losses == resumed.losses
        with pytest.raises(ValueError, match="document was"):
            tiny_run(tmp_path, model=student(), **settings | {"document_ids": OTHER})

    def test_a_micro_batch_at_a_time_learns_the_same(self):
        settings = dict(document_ids=DOCUMENT, steps=3)

        def student():
            return trained(add_cartridge(tiny_model(adapter=False), DOCUMENT, CartridgeConfig(4)))

        whole, _ = tiny_run(model=student(), **settings)
        parts, _ = tiny_run(model=student(), **settings, micro_batch_size=3)
        assert parts.losses == pytest.approx(whole.losses, rel=1e-4)

    def test_what_cannot_be_compared_is_refused(self, tiny):
        model = add_cartridge(tiny(), DOCUMENT)
        with pytest.raises(ValueError, match="no token of this batch has a label"):
            nothing = {"labels": torch.full_like(IDS, -100)}
            distillation_loss(model, DOCUMENT, BATCH | nothing)
        with pytest.raises(ValueError, match="do not pack them"):
            positions = {"position_ids": torch.arange(9).expand(2, -1)}
            distillation_loss(model, DOCUMENT, BATCH | positions)
        packed = [dict(row, position_ids=[*range(len(row["labels"]))]) for row in tiny_rows(9)]
        with pytest.raises(ValueError, match="do not pack the rows"):
            tiny_run(model=model, rows=packed, document_ids=DOCUMENT)


def test_settings_and_documents_out_of_range(tiny):
    with pytest.raises(ValueError, match="num_virtual_tokens must be at least 1"):
        CartridgeConfig(0)
    with pytest.raises(ValueError, match="num_frozen_tokens must be 0 to"):
        CartridgeConfig(2, 3)
    model = tiny()
    for document, config, reason in (
        (DOCUMENT[0], None, r"shape \(1, t\), got \(11,\)"),
        (IDS, None, r"shape \(1, t\), got \(2, 9\)"),
        (DOCUMENT.float(), None, "float32"),
        (DOCUMENT, CartridgeConfig(12), "has 11 tokens, too few for a cartridge of 12"),
        (DOCUMENT[:, :0], None, "has 0 tokens"),
        (DOCUMENT, CartridgeConfig(None, 12), "num_frozen_tokens must be"),
    ):
        with pytest.raises(ValueError, match=reason):
            add_cartridge(model, document, config)
    with pytest.raises(ValueError, match="may hold letters"):
        add_cartridge(model, DOCUMENT, adapter_name="a b")
    assert not adapter_configs(model) and all(p.requires_grad for p in model.parameters())
    assert asdict(CartridgeConfig(3)) == {"num_virtual_tokens": 3, "num_frozen_tokens": 1}


def test_what_only_prompts_have_is_refused(tiny):
    model = add_cartridge(tiny(), DOCUMENT, adapter_name="a")
    assert gate_openings(model).numel() == 0
    with pytest.raises(ValueError, match="is a cartridge: it has no softmax of its own"):
        prompt_weights(model, IDS)
    with pytest.raises(ValueError, match="has no prompts, to which a picture is added"):
        add_vision(model, DigitEncoder())
    add_adaption_prompts(model, AdaptionPromptConfig(2, 1), "prompts")
    with pytest.raises(ValueError, match="needs two cartridges or more"):
        compose_cartridges(model, ["a", "prompts"], "both")
    with pytest.raises(ValueError, match="needs two cartridges or more"):
        compose_cartridges(model, ["a"], "both")
    with pytest.raises(ValueError, match="no adapter named 'nobody'"):
        compose_cartridges(model, ["a", "nobody"], "both")


@pytest.mark.heavy
def test_another_kind_of_attention_is_refused(tiny):
    model = add_cartridge(tiny(attn_implementation="sdpa"), DOCUMENT)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"attn_implementation='flex_attention'.*\"sdpa\""):
        logits(model)
    with disable_adapter(model):
        logits(model)


def test_continuous_batching_is_refused_before_its_thread_starts(tiny):
    model = add_cartridge(tiny(attn_implementation="sdpa"), DOCUMENT)
    with pytest.raises(ValueError, match="packs texts side by side, where a cartridge has no"):
        model.generate_batch(inputs=IDS.tolist())


def test_packed_examples_each_see_the_cartridge(tiny):
    model = trained(add_cartridge(tiny(attn_implementation="sdpa"), DOCUMENT))
    wanted = [logits(model, ids) for ids in (IDS[:1], IDS[1:, :5])]
    packed = torch.cat([IDS[:1], IDS[1:, :5]], dim=1)
    positions = torch.cat([torch.arange(9), torch.arange(5)])[None]
    close(logits(model, packed, position_ids=positions), torch.cat(wanted, dim=1))
