"""Profiles, and the memory estimate against what autograd really keeps."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, count_parameters
from llama_adapter_edu.course.tasks.profiles import PROFILES, choose_profile, estimate_memory
from llama_adapter_edu.training.loss import answer_loss

SHAPE = dict(
    vocab_size=500, hidden_size=128, num_hidden_layers=6, num_attention_heads=4, pad_token_id=0
)


def kept_bytes(model, batch):
    """Bytes of all tensors that the forward pass keeps for the backward pass."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer_loss(model, batch)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layers", [3, 6])
@pytest.mark.parametrize("sizes", [(2, 256), (4, 700)])
def test_the_estimate_is_near_what_is_kept(dtype, layers, sizes):
    kv_heads, mlp = sizes
    config = LlamaConfig(**SHAPE, num_key_value_heads=kv_heads, intermediate_size=mlp)
    adapter = AdaptionPromptConfig(10, layers)
    model = add_adaption_prompts(LlamaForCausalLM(config).to(dtype), adapter)
    ids = torch.randint(0, 500, (8, 40))
    labels = ids.clone()
    labels[:, :30] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    profile = replace(PROFILES["cpu"], dtype=dtype, batch_size=8)
    guess = estimate_memory(config, profile, adapter, row_tokens=40, answer_tokens=10)
    assert guess.activations + guess.logits == pytest.approx(kept_bytes(model, batch), rel=0.35)
    trainable, total = count_parameters(model)
    assert guess.base_weights == (total - trainable) * dtype.itemsize
    assert guess.adapters == trainable * 16
    assert f"{guess.total / 2**30:.2f} GiB" in str(guess)


def test_a_micro_batch_counts_not_the_batch():
    config = LlamaConfig(**SHAPE, intermediate_size=256)
    lengths = {"row_tokens": 40, "answer_tokens": 10}
    adapter = AdaptionPromptConfig(10, 4)
    whole, quarter = (
        estimate_memory(config, replace(PROFILES["gpu"], **sizes), adapter, **lengths)
        for sizes in ({"batch_size": 32}, {"batch_size": 32, "micro_batch_size": 8})
    )
    assert whole.activations == 4 * quarter.activations


def test_choosing_by_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_profile().name == "cpu"
    with pytest.raises(ValueError, match="needs a GPU"):
        choose_profile("t4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert choose_profile().name == "t4"
    with pytest.raises(ValueError, match="choose 't4'"):
        choose_profile("gpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert choose_profile().name == "gpu"
    with pytest.raises(ValueError, match="choose one of cpu, t4, gpu"):
        choose_profile("tpu")


def test_training_settings_of_a_profile():
    training = PROFILES["t4"].training(steps=3, seed=5)
    assert (training.steps, training.seed, training.micro_batch_size) == (3, 5, 16)
