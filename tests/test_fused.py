"""A base whose small operations run in fewer kernels: the same numbers, and a way back."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from accelerate.state import AcceleratorState
from gates import open_gates
from tiny_run import TOKENIZER, tiny_model, tiny_rows, tiny_run
from torch import nn
from transformers import (
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from llama_adapter_edu import (
    AdaptionPromptConfig,
    TrainingConfig,
    add_adaption_prompts,
    finetune,
    fuse_base,
    unfuse_base,
)
from llama_adapter_edu.base_models import fused
from llama_adapter_edu.training.compiled import compiled_layers
from llama_adapter_edu.training.loss import answer_loss, cross_entropy_sum, fused_cross_entropy_sum

IDS = torch.arange(1, 21).reshape(2, 10)
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or fused.liger() is None,
    reason="needs an NVIDIA GPU and liger-kernel",
)


@pytest.fixture(autouse=True)
def on_the_cpu_again():
    """No accelerator that remembers the GPU of the test before."""
    AcceleratorState._reset_state(reset_partial_state=True)


def model_of(config_class):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_class(**SIZES)).eval()
    with torch.no_grad():  # norms that are all ones would hide a weight that is left out
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def n_fused(model):
    return sum("fused" in vars(getattr(m.forward, "__func__", m.forward)) for m in model.modules())


# Norms of 2 layers and the last one, MLPs, attentions. Gemma's norms and MLPs compute otherwise.
@pytest.mark.parametrize(
    ("config_class", "number"),
    [
        (LlamaConfig, 5 + 2 + 2),
        (Qwen3Config, 9 + 2 + 2),
        (Olmo2Config, 9 + 2 + 2),
        (Phi3Config, 5 + 0 + 2),
        (Gemma2Config, 0 + 0 + 2),
    ],
)
def test_a_family_computes_as_before_and_is_given_back(config_class, number):
    model = model_of(config_class)
    before = model(IDS).logits
    assert fuse_base(model) is model and n_fused(model) == number
    torch.testing.assert_close(model(IDS).logits, before, atol=1e-5, rtol=1e-5)
    assert unfuse_base(model) is model and n_fused(model) == 0
    assert torch.equal(model(IDS).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_norm_is_one_operation():
    norm = fuse_base(model_of(LlamaConfig)).model.norm
    with torch.profiler.profile() as profile:
        norm(torch.randn(2, 3, 64))
    assert "aten::rms_norm" in {event.key for event in profile.key_averages()}


def test_what_cannot_be_fused_is_left_and_said():
    with pytest.raises(ValueError, match="nothing in this model"):
        fuse_base(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)))


def test_other_arithmetic_under_the_usual_names_is_left_as_it_is():
    class OffsetRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    class GeLUMLP(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("gate_proj", "up_proj", "down_proj"):
                setattr(self, name, nn.Linear(8, 8))
            self.act_fn = nn.GELU()

        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    with pytest.raises(ValueError, match="nothing in this model"):
        fuse_base(nn.Sequential(OffsetRMSNorm(), GeLUMLP()))


@pytest.mark.parametrize("training", [False, True])
def test_an_mlp_with_a_limit_or_dropout_is_left_as_it_is(training):
    """As DeepSeek-V4's and Seed-OSS's: near zero and in evaluation they look like a Llama's."""

    class Limited(LlamaMLP):
        def forward(self, x):
            gate, up = self.gate_proj(x).clamp(max=7.0), self.up_proj(x).clamp(-7.0, 7.0)
            return self.down_proj(self.act_fn(gate) * up)

    class Dropping(LlamaMLP):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.1, self.training)

    config = LlamaConfig(**SIZES)
    state = torch.get_rng_state()
    for kind in (Limited, Dropping):
        mlp = kind(config).train(training)
        torch.set_rng_state(state)
        with pytest.raises(ValueError, match="nothing in this model"):
            fuse_base(mlp)
        assert torch.equal(torch.get_rng_state(), state)
    fuse_base(LlamaMLP(config).train(training))


def test_norms_of_other_shapes_and_arguments_are_left_as_they_are():
    class GatedRMSNorm(LlamaRMSNorm):  # as Falcon-H1's
        def forward(self, x, gate=None):
            return super().forward(x) * (1 if gate is None else gate)

    of_heads = LlamaRMSNorm(8)
    of_heads.weight = nn.Parameter(torch.rand(4, 8))
    nameless = LlamaRMSNorm(8)
    nameless.epsilon = vars(nameless).pop("variance_epsilon")
    for norm in (GatedRMSNorm(8), of_heads, nameless, nn.RMSNorm(8)):
        with pytest.raises(ValueError, match="nothing in this model"):
            fuse_base(norm)


def test_a_forward_of_its_own_stays_and_an_error_leaves_nothing_fused(monkeypatch):
    model = tiny_model()
    mlp = model.model.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda x: own(x)
    before = n_fused(fuse_base(model)) and model(IDS).logits
    assert "fused" not in vars(mlp.forward) and mlp.forward is not own
    torch.testing.assert_close(unfuse_base(model)(IDS).logits, before, atol=1e-5, rtol=1e-5)

    def fails(module):
        if module is model.model.norm:
            raise RuntimeError("as a module that cannot even be looked at")
        return fuse(module)

    fuse = fused._fuse
    monkeypatch.setattr(fused, "_fuse", fails)
    with pytest.raises(RuntimeError, match="looked at"):
        finetune(model, TOKENIZER, tiny_rows(), TrainingConfig(1), progress=False, fused=True)
    assert n_fused(model) == 0


def test_what_was_fused_in_part_is_so_afterwards():
    model = tiny_model()
    fuse_base(model.model.layers[0])
    before = n_fused(model)
    finetune(model, TOKENIZER, tiny_rows(), TrainingConfig(1), progress=False, fused=True)
    assert n_fused(model) == before


def test_norms_with_changes_of_V2_are_fused_too():
    n = n_fused(fuse_base(tiny_model(adapter=False)))
    changed = add_adaption_prompts(
        tiny_model(adapter=False), AdaptionPromptConfig(5, 2, norms=True)
    )
    assert n_fused(fuse_base(changed)) == n


def test_fusing_draws_no_random_numbers_and_leaves_other_models():
    model, other = model_of(LlamaConfig), model_of(LlamaConfig)
    state = torch.get_rng_state()
    fuse_base(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert n_fused(other) == 0


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("first", ["adapter", "fused"])
def test_adapters_learn_the_same(first, v2):
    def run(fuse):
        model = tiny_model(adapter=False)
        config = AdaptionPromptConfig(5, 2, bias_scale=v2, norms=v2)
        steps = [lambda: add_adaption_prompts(model, config), lambda: fuse and fuse_base(model)]
        torch.manual_seed(1)
        for step in steps if first == "adapter" else reversed(steps):
            step()
        return tiny_run(model=model)[0].losses

    assert run(True) == pytest.approx(run(False), abs=1e-5)


def test_finetune_fuses_and_gives_back_but_leaves_what_was_fused():
    settings = TrainingConfig(steps=4, batch_size=4)
    plain, once, already = (tiny_model() for _ in range(3))
    fuse_base(already)
    losses = [
        finetune(model, TOKENIZER, tiny_rows(), settings, progress=False, fused=is_fused).losses
        for model, is_fused in ((plain, False), (once, True), (already, True))
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and losses[2] == losses[1]
    assert (n_fused(once), n_fused(already) > 0) == (0, True)
    with pytest.raises(ValueError, match="leave out fused"):
        finetune(
            plain, TOKENIZER, tiny_rows(), settings, progress=False, fused=True, compile_layers=True
        )


def test_copies_are_fused_and_pickles_compute_as_before():
    model = tiny_model()
    open_gates(model)
    before = model(IDS).logits
    fuse_base(model)
    twin = copy.deepcopy(model)
    attention = twin.model.layers[0].self_attn
    assert attention.forward.__self__ is attention and n_fused(twin) == n_fused(model)
    for again in (twin, pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(again(IDS).logits, before, atol=1e-5, rtol=1e-5)
        n = n_fused(model)
        assert n_fused(fuse_base(again)) == n


@pytest.mark.parametrize("order", ["offloaded first", "fused first"])
def test_an_offloaded_model(order):
    model = tiny_model()
    before = model(IDS).logits
    if order == "fused first":
        fuse_base(model)
    cpu_offload(model, execution_device="cpu")
    if order == "offloaded first":
        fuse_base(model)
    assert torch.equal(model(IDS).logits, before) or torch.allclose(
        model(IDS).logits, before, atol=1e-5
    )
    unfuse_base(model)
    torch.testing.assert_close(model(IDS).logits, before)


def test_generation_gives_the_same_tokens():
    model = tiny_model()
    open_gates(model)
    before = model.generate(IDS, max_new_tokens=6, do_sample=False)
    assert torch.equal(fuse_base(model).generate(IDS, max_new_tokens=6, do_sample=False), before)


def test_compiled_layers_of_a_fused_model():
    model, batch = tiny_model(), {"input_ids": IDS, "labels": IDS}
    open_gates(model)
    before = answer_loss(model, batch)
    fuse_base(model)
    torch.compiler.reset()
    with compiled_layers(model, backend="aot_eager", fullgraph=True):
        torch.testing.assert_close(answer_loss(model, batch), before)
    torch.compiler.reset()


@on_gpu
@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen3Config, Olmo2Config, Phi3Config])
def test_a_gpu_gives_the_same_loss_and_gradients(config_class):
    model = add_adaption_prompts(model_of(config_class), AdaptionPromptConfig(5, 2)).to("cuda")
    open_gates(model)
    batch = {"input_ids": IDS.cuda(), "labels": IDS.cuda()}

    def run(loss_sum=cross_entropy_sum):
        model.zero_grad()
        loss = answer_loss(model, batch, loss_sum)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad]

    loss, gradients = run()
    fuse_base(model)
    fused_loss, fused_gradients = run(fused_cross_entropy_sum)
    torch.testing.assert_close(fused_loss, loss, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fused_gradients, gradients, atol=1e-4, rtol=1e-3)


@on_gpu
def test_a_second_backward_through_one_graph_is_an_error_and_not_another_number():
    model = fuse_base(model_of(LlamaConfig)).to("cuda")
    loss = model(IDS.cuda()).logits.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


@on_gpu
def test_liger_computes_in_training_and_pytorch_in_decoding():
    model = fuse_base(model_of(LlamaConfig)).to("cuda")

    def kernels():
        with torch.profiler.profile() as profile:
            model(IDS.cuda())
            torch.cuda.synchronize()
        return " ".join(event.key for event in profile.key_averages())

    assert "_triton_rope" in kernels() and "_swiglu_forward_kernel" in kernels()
    with torch.no_grad():
        assert "_triton_rope" not in kernels()
