"""The options that make training faster, and compiled decoding: the same losses and logits."""

import inspect
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from gates import open_gates
from tiny_run import TOKENIZER, tiny_model, tiny_rows
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

from llama_adapter_edu import (
    AdaptionPromptConfig,
    TrainingConfig,
    add_adaption_prompts,
    add_cartridge,
    add_vision,
    finetune,
    set_adapter,
    use_adapter,
)
from llama_adapter_edu.adapters.layers.at_once import HeadsAtOnce
from llama_adapter_edu.base_models.float8 import to_float8
from llama_adapter_edu.data.token_rows import Rows
from llama_adapter_edu.training import loop as the_loop
from llama_adapter_edu.training.compiled import compiled_layers
from llama_adapter_edu.training.cuda_graphs import (
    BUCKET,
    check_possible,
    pad_to_bucket,
    sees_all_before,
    without_mask,
)
from llama_adapter_edu.training.loss import answer_loss_sum, columns_loss_sum, cross_entropy_sum
from llama_adapter_edu.vision.encoders import DigitEncoder

# Traces layers as the default compiler does, but needs no C++ compiler.
TRACED = {"backend": "aot_eager", "fullgraph": True}
# Rows of 12 and 9 tokens; padding has no labels.
RAGGED = {"input_ids": torch.arange(3, 27).reshape(2, 12)}
RAGGED["labels"] = RAGGED["input_ids"].clone()
RAGGED["input_ids"][1, 9:], RAGGED["labels"][1, 9:] = 0, -100
SETTINGS = TrainingConfig(steps=12, batch_size=4, learning_rate=0.02)


@pytest.fixture(autouse=True)
def a_new_start():
    """No compiled code, and an accelerator that does not remember the CPU of the test before."""
    torch.compiler.reset()
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.compiler.reset()
    AcceleratorState._reset_state(reset_partial_state=True)


def losses(accelerator, **options):
    model = tiny_model().to(accelerator.device)
    history = finetune(
        model, TOKENIZER, tiny_rows(), SETTINGS, accelerator=accelerator, progress=False, **options
    )
    return torch.tensor(history.losses), model


def family_model(config_class, **settings):
    sizes = dict(vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=3)
    heads = dict(num_attention_heads=6, num_key_value_heads=2, head_dim=8, pad_token_id=0)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_class(**sizes | heads | settings)).eval()


@pytest.mark.heavy
def test_compiled_layers_learn_the_same_and_are_gone_afterwards(monkeypatch):
    monkeypatch.setattr(the_loop, "compiled_layers", partial(compiled_layers, **TRACED))
    eager, _ = losses(Accelerator(cpu=True))
    compiled, model = losses(Accelerator(cpu=True), compile_layers=True)
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=0)
    assert all("forward" not in vars(layer) for layer in model.model.layers)


@pytest.mark.heavy
def test_layers_compile_whole_and_not_again_from_step_to_step():
    """`fullgraph` refuses graph breaks; later lengths use what the first two made."""
    counter = CompileCounterWithBackend("aot_eager")
    rows, model = Rows(tiny_rows(), 0, torch.device("cpu")), tiny_model()
    with compiled_layers(model, backend=counter, fullgraph=True) as loss_sum:
        compiled = []
        for start in range(0, 24, 4):
            loss, _ = answer_loss_sum(model, rows.batch(range(start, start + 4)), loss_sum)
            loss.backward()
            compiled.append(counter.frame_count)
    # Three kinds of layers, and the loss; one length, and any length.
    assert compiled[-1] == compiled[2] <= 8


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["prompts", "V2", "float8"])
def test_layers_of_a_kind_are_compiled_once_however_many_they_are(kind):
    model = tiny_model(adapter=False, num_hidden_layers=9)
    add_adaption_prompts(model, AdaptionPromptConfig(5, 7, bias_scale=kind == "V2"))
    if kind == "float8":
        to_float8(model)
    counter, ids = CompileCounterWithBackend("aot_eager"), torch.arange(3, 17).reshape(2, 7)
    with compiled_layers(model.train(), backend=counter, fullgraph=True):
        for _ in range(2):
            answer_loss_sum(model, {"input_ids": ids, "labels": ids})[0].backward()
    # Below the adapters, the lowest with one, those above. V2 changes the lowest as those above.
    assert counter.frame_count <= 3


@pytest.mark.heavy
def test_swapping_adapters_compiles_nothing_again():
    counter, model = CompileCounterWithBackend("aot_eager"), tiny_model()
    add_adaption_prompts(model, AdaptionPromptConfig(5, 2), "second")
    ids = torch.randint(3, 96, (2, 7))
    with compiled_layers(model, backend=counter, fullgraph=True), torch.no_grad():
        for name in ("default", "second"):
            set_adapter(model, name)
            model(ids)
        seen = counter.frame_count
        for name in ("default", "second", "default"):
            set_adapter(model, name)
            model(ids)
    assert counter.frame_count == seen


@pytest.mark.heavy
def test_a_compiled_decoding_step_uses_the_prompts_of_its_own_generation():
    """Generate, train, generate: one compilation, and always the logits of a run without cache."""
    from transformers import StaticCache

    counter, model = CompileCounterWithBackend("aot_eager"), tiny_model()
    # Not the module: its own call would be compiled for the first words too.
    step = torch.compile(model.forward, backend=counter, fullgraph=True, dynamic=False)
    ids = torch.randint(3, 96, (2, 7))
    compiled = []
    for _ in range(3):
        cache = StaticCache(model.config, max_cache_len=8)
        with torch.no_grad():
            model(ids[:, :5], past_key_values=cache)
            for at in (5, 6):
                where = {"position_ids": torch.full((2, 1), at)}
                if "cache_position" in inspect.signature(model.forward).parameters:
                    where["cache_position"] = torch.tensor([at])  # older transformers
                got = step(ids[:, at : at + 1], past_key_values=cache, **where).logits
                whole = model(ids[:, : at + 1], use_cache=False).logits[:, -1:]
                torch.testing.assert_close(got, whole, atol=1e-5, rtol=0)
        compiled.append(counter.frame_count)
        loss, _ = answer_loss_sum(model, {"input_ids": ids, "labels": ids})
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad.sign())
        model.zero_grad()
    assert compiled[-1] == compiled[0]


@pytest.mark.parametrize("longest", [5, 15, 16, 17, 40])
def test_padding_to_a_bucket_keeps_the_loss(longest):
    rows, model = Rows(tiny_rows(8, longest), 0, torch.device("cpu")), tiny_model()
    batch = rows.batch(range(8))
    expected, _ = answer_loss_sum(model, batch)
    padded, n_columns = pad_to_bucket(batch, pad_token_id=0)
    assert padded["labels"].shape[1] % BUCKET == 0
    assert n_columns % BUCKET == 0 or n_columns == padded["labels"].shape[1] - 1
    columns = torch.arange(padded["labels"].shape[1])[-n_columns:]
    torch.testing.assert_close(columns_loss_sum(model, padded, columns), expected)
    one_token = {name: batch[name][:1, :1] for name in ("input_ids", "labels")}
    assert pad_to_bucket(one_token, pad_token_id=0)[1] == BUCKET - 1


def test_a_row_needs_no_mask_for_the_padding_after_it():
    """The loss of a batch is the sum of its rows' losses, each row alone and unpadded."""
    dataset, model = tiny_rows(6), tiny_model()
    rows = Rows(dataset, 0, torch.device("cpu"))
    together, n_tokens = answer_loss_sum(model, rows.batch(range(6)))
    alone = [answer_loss_sum(model, rows.batch([number])) for number in range(6)]
    torch.testing.assert_close(together, torch.stack([loss for loss, _ in alone]).sum())
    assert n_tokens == sum(n for _, n in alone)


@pytest.mark.parametrize(
    "micro_batch_size", [None, 2], ids=["on the CPU", "on the CPU, in micro-batches"]
)
def test_graphs_are_refused_where_they_cannot_be_recorded(micro_batch_size):
    config = TrainingConfig(micro_batch_size=micro_batch_size)
    with pytest.raises(ValueError, match=r"one process on one NVIDIA GPU.*Leave it out"):
        check_possible(Accelerator(cpu=True), config, packed=False)


def gradients(model, around=nullcontext, loss_sum=cross_entropy_sum):
    batch, parameters = RAGGED, [p for p in model.parameters() if p.requires_grad]
    columns = torch.arange(2, batch["labels"].shape[1])
    with around():
        loss = columns_loss_sum(model, batch, columns, loss_sum)
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("gate", ["per_head", "per_layer"])
def test_heads_of_all_layers_at_once_are_those_of_each(kv_heads, gate):
    model = tiny_model(adapter=False, num_key_value_heads=kv_heads)
    add_adaption_prompts(model, AdaptionPromptConfig(5, 2, gate=gate, gate_activation="identity"))
    open_gates(model)
    heads = HeadsAtOnce(model)
    assert len(heads.layers) == 2
    torch.testing.assert_close(gradients(model, partial(heads.ready, 2)), gradients(model))
    assert not any(layer.config.ready for layer in heads.layers)


def test_heads_at_once_are_those_of_one_adapter_alone():
    model, ids = tiny_model(), RAGGED["input_ids"]
    add_adaption_prompts(model, AdaptionPromptConfig(5, 2), "second")
    open_gates(model)
    open_gates(model, "second")
    heads = HeadsAtOnce(model)  # of the newest, which acts
    for name in ("default", "second", None, ["default"] + ["second"] * (len(ids) - 1)):
        with torch.no_grad(), use_adapter(model, name):
            wanted = model(ids).logits
            with heads.ready(len(ids)):
                torch.testing.assert_close(model(ids).logits, wanted)


def test_an_adapter_that_sees_computes_its_heads_for_each_picture():
    model = add_vision(tiny_model(), DigitEncoder())
    assert HeadsAtOnce(model).layers == []


def test_layers_whose_keys_are_more_than_a_product_compute_their_own():
    for config in (Qwen2Config, Qwen3Config):  # biases; norms of the keys
        model = family_model(config)
        add_adaption_prompts(model, AdaptionPromptConfig(5, 2))
        assert HeadsAtOnce(model).layers == []
    model = tiny_model(adapter=False)
    assert HeadsAtOnce(model).layers == []
    add_adaption_prompts(model, AdaptionPromptConfig(5, 2, bias_scale=True))
    assert HeadsAtOnce(model).layers == []
    with use_adapter(model, None):
        assert HeadsAtOnce(model).layers == []
    model = tiny_model()  # a projection that trains is not copied
    model.model.layers[1].self_attn.k_proj.weight.requires_grad_(True)
    assert HeadsAtOnce(model).layers == [model.model.layers[2].self_attn]


def test_layers_of_different_shapes_compute_their_own():
    model = tiny_model()
    attention = model.model.layers[1].self_attn
    attention.k_proj, attention.v_proj = (
        nn.Linear(48, 8, bias=False).requires_grad_(False) for _ in "kv"
    )
    assert HeadsAtOnce(model).layers == []


def test_heads_at_once_in_layers_with_checkpoints():
    model = tiny_model().train()
    open_gates(model)
    before, heads = gradients(model), HeadsAtOnce(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(model, partial(heads.ready, 2)), before)


@pytest.mark.heavy
def test_heads_at_once_need_no_more_compiling():
    model, counter = tiny_model(), CompileCounterWithBackend("aot_eager")
    open_gates(model)
    before, heads = gradients(model), HeadsAtOnce(model)
    with compiled_layers(model, backend=counter, fullgraph=True) as loss_sum:
        for _ in range(2):
            after = gradients(model, partial(heads.ready, 2), loss_sum)
            torch.testing.assert_close(after, before)
            # Below the prompts, the lowest with prompts, those above, and the loss.
            assert counter.frame_count == 3 + 1


@pytest.mark.parametrize("limit", ["sliding_window", "attention_chunk_size"])
def test_a_mask_is_left_out_where_it_says_nothing(limit):
    model = tiny_model()
    before = gradients(model)
    assert sees_all_before(model, 12)
    torch.testing.assert_close(gradients(model, partial(without_mask, model)), before)
    assert model.config._attn_implementation == "sdpa"
    setattr(model.config, limit, 12)
    assert sees_all_before(model, 12) and not sees_all_before(model, 13)
    setattr(model.config, limit, None)
    model.set_attn_implementation("eager")
    assert not sees_all_before(model, 12)
    model = add_cartridge(tiny_model(adapter=False), RAGGED["input_ids"][:1])
    assert not sees_all_before(model, 12)


def test_a_model_of_windows_needs_its_mask():
    """The other side of the test above: where `sees_all_before` says no, it matters."""
    model = family_model(MistralConfig, sliding_window=3)
    with_mask, n_tokens = model(RAGGED["input_ids"]).logits, RAGGED["labels"].shape[1]
    assert not sees_all_before(model, n_tokens)
    with without_mask(model):
        assert not torch.allclose(model(RAGGED["input_ids"]).logits, with_mask, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("compile_layers", [False, True])
def test_graphs_give_the_same_losses_on_a_gpu(compile_layers):
    eager, _ = losses(Accelerator())
    graphs, _ = losses(Accelerator(), cuda_graphs=True, compile_layers=compile_layers)
    torch.testing.assert_close(graphs.float(), eager.float(), atol=1e-3, rtol=0)
