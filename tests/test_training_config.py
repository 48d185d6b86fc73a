"""What follows from the settings of a run, against numbers worked out by hand."""

import pytest
import torch
from gates import open_gates
from tiny_run import tiny_model

from llama_adapter_edu import TrainingConfig
from llama_adapter_edu.training.config import learning_rate_factor, make_optimizer


def test_the_learning_rate_rises_evenly_and_falls_along_half_a_cosine():
    shares = [learning_rate_factor(step, steps=12, warmup_steps=4) for step in range(12)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[8] == pytest.approx(0.5)  # half way down
    assert shares[6] == pytest.approx(0.5 + 0.5**1.5)  # an eighth of a turn
    assert shares[4:] == sorted(shares[4:], reverse=True)


def test_prompts_are_decayed_and_gates_are_not():
    model = tiny_model()
    open_gates(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.grad = torch.zeros_like(parameter) if name in before else None
    make_optimizer(model, TrainingConfig(learning_rate=0.1, weight_decay=0.5)).step()
    for name, parameter in model.named_parameters():
        if name in before:
            share = 1.0 if name.endswith("gate") else 1 - 0.1 * 0.5
            torch.testing.assert_close(parameter.detach(), share * before[name])
