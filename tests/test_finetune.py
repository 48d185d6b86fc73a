"""The training loop: what a step computes, however its rows are cut and spread."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tiny_run import TOKENIZER, tiny_model, tiny_rows, tiny_run

from llama_adapter_edu import TrainingConfig, finetune, load_adapter
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.base_models.sharded import shard_base
from llama_adapter_edu.course.tasks.profiles import PROFILES
from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.token_rows import Rows
from llama_adapter_edu.training import loss as the_loss
from llama_adapter_edu.training.loop import (
    learning_rate_factor,
    make_optimizer,
    training_batches,
)
from llama_adapter_edu.training.loss import answer_loss
from llama_adapter_edu.training.step import Gradients, micro_batches

NUMBERS = [4, 0, 9, 2, 7, 1, 5]


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def one_by_one(model, rows, numbers):
    """The mean over all labelled tokens, from the model's logits of each row alone."""
    losses = []
    for number in numbers:
        ids, labels = (torch.tensor(rows[number][key]) for key in ("input_ids", "labels"))
        logits = model(ids[None]).logits[0]
        for s in range(len(ids) - 1):
            if labels[s + 1] != -100:
                losses.append(F.cross_entropy(logits[s], labels[s + 1]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 3, 7, 50])
def test_every_labelled_token_weighs_the_same_however_a_step_is_cut(micro_batch_size):
    model, dataset = tiny_model(), tiny_rows()
    open_gates(model)
    expected = one_by_one(model, dataset, NUMBERS)
    expected.backward()
    right = gradients(model)
    model.zero_grad()

    rows = Rows(dataset, 0, torch.device("cpu"))
    accelerator = Accelerator(cpu=True)
    loss = Gradients(model, rows, accelerator, micro_batch_size)(NUMBERS)
    torch.testing.assert_close(loss, expected.detach())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, right[name], atol=1e-6, rtol=1e-4, msg=name)


def test_a_row_whose_every_token_is_labelled_has_no_label_for_its_first():
    model, dataset = tiny_model(), tiny_rows()
    dataset = dataset.map(lambda row: {"labels": row["input_ids"]})
    batch = collate([dataset[number] for number in NUMBERS], 0)
    torch.testing.assert_close(answer_loss(model, batch), one_by_one(model, dataset, NUMBERS))
    rows = Rows(dataset, 0, torch.device("cpu"))
    loss = Gradients(model, rows, Accelerator(cpu=True), micro_batch_size=2)(NUMBERS)
    torch.testing.assert_close(loss, one_by_one(model, dataset, NUMBERS).detach())


def open_gates(model):
    with torch.no_grad():
        for prompt in adapter_prompts(model, "default").values():
            prompt.gate.normal_()


def test_a_loss_in_chunks_is_the_same_loss(monkeypatch):
    logits, labels = torch.randn(23, 11), torch.randint(0, 11, (23,))
    labels[::3] = -100
    at_once, in_chunks = (logits.clone().requires_grad_() for _ in range(2))
    right = F.cross_entropy(at_once, labels, reduction="sum")
    monkeypatch.setattr(the_loss, "CHUNK", 5)
    loss = the_loss.cross_entropy_sum(in_chunks, labels)
    torch.testing.assert_close(loss, right)
    right.backward()
    loss.backward()
    torch.testing.assert_close(in_chunks.grad, at_once.grad)


def test_a_mean_of_means_would_be_another_number():
    model, dataset = tiny_model(), tiny_rows()
    batches = [collate([dataset[n] for n in part], 0) for part in (NUMBERS[:3], NUMBERS[3:])]
    mean_of_means = torch.stack([answer_loss(model, batch) for batch in batches]).mean()
    assert not torch.allclose(mean_of_means, one_by_one(model, dataset, NUMBERS), atol=1e-3)


@pytest.mark.parametrize("n_rows", [1, 2, 5, 8])
@pytest.mark.parametrize("n_processes", [1, 2, 3])
@pytest.mark.parametrize("size", [None, 1, 2, 9])
def test_micro_batches_hold_each_row_once_and_are_equally_many(n_rows, n_processes, size):
    numbers = list(range(10, 10 + n_rows))
    shares = [micro_batches(numbers, size, rank, n_processes) for rank in range(n_processes)]
    assert len({len(share) for share in shares}) == 1
    assert all(len(rows) <= (size or n_rows) for share in shares for rows in share)
    counted = [row for share in shares for rows in share for row in rows]
    assert sorted(counted) == numbers


def test_micro_batches_change_nothing_that_is_learnt():
    whole, _ = tiny_run()
    cut, _ = tiny_run(micro_batch_size=3)
    assert cut.losses == pytest.approx(whole.losses, abs=1e-5)


def test_the_last_smaller_batch_is_counted_by_its_own_tokens():
    dataset = tiny_rows(n=11)
    config = TrainingConfig(steps=4, batch_size=4)
    batches = training_batches([len(ids) for ids in dataset["input_ids"]], config)
    short = next(i for i, batch in enumerate(batches) if len(batch) == 3)
    history, _ = tiny_run(rows=dataset, steps=4, batch_size=4)
    if short == 0:
        expected = one_by_one(tiny_model(), dataset, batches[0]).item()
    else:
        partly = tiny_model()
        tiny_until(partly, dataset, config, short)
        expected = one_by_one(partly, dataset, batches[short]).item()
    assert history.losses[short] == pytest.approx(expected, abs=1e-5)


def tiny_until(model, dataset, config, stop_before):
    """The run's first steps, written out: one row at a time, plain AdamW."""
    optimizer = make_optimizer(model, config)
    batches = training_batches([len(ids) for ids in dataset["input_ids"]], config)
    for step in range(stop_before):
        rate = config.learning_rate * learning_rate_factor(step, config.steps, config.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        one_by_one(model, dataset, batches[step]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()


def test_the_loop_is_the_loop_written_out():
    dataset, config = tiny_rows(), TrainingConfig(steps=5, batch_size=8)
    by_hand = tiny_model()
    tiny_until(by_hand, dataset, config, 5)
    _, model = tiny_run(rows=dataset, steps=5)
    for mine, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_only_the_adapter_changes_and_the_mode_is_restored():
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tiny_run(model=model)
    assert not model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("adaption_prompts" not in name)


@pytest.mark.parametrize("fits", [1, 3])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(fits):
    model, sizes = tiny_model(), []

    def limited(module, inputs, options):
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    model.register_forward_pre_hook(limited, with_kwargs=True)
    with pytest.warns(UserWarning, match="Out of memory with 8 rows at once: going on with 4"):
        history, _ = tiny_run(model=model)
    assert history.losses == pytest.approx(tiny_run()[0].losses, abs=1e-5)
    assert sizes.count(8) == 1  # the size that fits is kept for the steps that follow


def test_out_of_memory_in_the_middle_of_a_step_counts_no_row_twice():
    model, calls = tiny_model(), []

    def limited(module, inputs, options):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(limited, with_kwargs=True)
    with pytest.warns(UserWarning, match="going on with 2"):
        history, _ = tiny_run(model=model, micro_batch_size=4)
    assert history.losses == pytest.approx(tiny_run()[0].losses, abs=1e-5)


def test_not_even_one_row_fits():
    model = tiny_model()

    def nothing_fits(*inputs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(nothing_fits)
    with pytest.raises(torch.OutOfMemoryError, match="Not even one row fits: take shorter rows"):
        tiny_run(model=model, micro_batch_size=1)


def test_bfloat16_base_with_float32_adapters_learns():
    model = tiny_model().to(torch.bfloat16)
    history, _ = tiny_run(model=model, rows=tiny_rows(n=4), steps=40, batch_size=4)
    assert history.losses[-1] < history.losses[0] - 0.05
    prompt = adapter_prompts(model, "default")[2]
    assert {p.dtype for p in prompt.parameters()} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_accelerates_mixed_precision_leaves_the_model_as_it_was():
    model, ids = tiny_model(), torch.tensor([[5, 6, 7]])
    half = replace(PROFILES["cpu"], mixed_precision="bf16").accelerator()
    tiny_run(model=model, accelerator=half)
    assert "forward" not in vars(model)
    assert model(ids).logits.dtype == torch.float32
    assert PROFILES["cpu"].accelerator().mixed_precision == "no"


def test_nothing_trains():
    with pytest.raises(ValueError, match="call add_adaption_prompts"):
        tiny_run(model=tiny_model(adapter=False).requires_grad_(False))


def test_rows_without_labels():
    rows = tiny_rows().map(lambda row: {"labels": [-100] * len(row["input_ids"])})
    with pytest.raises(ValueError, match="no token with a label"):
        tiny_run(rows=rows)


@pytest.mark.parametrize("setting", ["steps", "batch_size", "learning_rate", "micro_batch_size"])
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match=setting):
        TrainingConfig(**{setting: 0})


def test_accelerates_own_accumulation_is_refused():
    with pytest.raises(ValueError, match="set micro_batch_size"):
        tiny_run(accelerator=Accelerator(cpu=True, gradient_accumulation_steps=2))


def test_save_every_out_of_range():
    with pytest.raises(ValueError, match="save_every"):
        finetune(tiny_model(), TOKENIZER, tiny_rows(), save_every=0, progress=False)


def launch(folder, n_processes, way):
    """The tiny run in so many processes; returns what the main one wrote."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(n_processes)]
    command += [str(Path(__file__).with_name("processes_run.py")), str(folder), way]
    folder.mkdir(exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "facts.json").read_text())


@pytest.mark.parametrize(
    ("way", "base"),
    [pytest.param("whole", "Tensor", marks=pytest.mark.slow), ("sharded", "DTensor")],
)
@pytest.mark.heavy
def test_two_processes_learn_what_one_learns(tmp_path, way, base):
    """13 rows in batches of 5, micro-batches of 2: uneven in every way."""
    options = {"rows": tiny_rows(n=13), "batch_size": 5, "micro_batch_size": 2, "steps": 6}
    one, model = tiny_run(**options)
    two = launch(tmp_path, 2, way)
    assert (two["processes"], two["kind"], two["base"]) == (2, "MULTI_CPU", base)
    assert two["losses"] == pytest.approx(one.losses, abs=1e-5)
    adapter = load_adapter(tiny_model(adapter=False), tmp_path / "adapter")
    for number, prompt in adapter_prompts(model, "default").items():
        other = adapter_prompts(adapter, "default")[number]
        torch.testing.assert_close(other.prompts, prompt.prompts, atol=1e-4, rtol=1e-4)
    kept = sorted(p.name for p in (tmp_path / "run").glob("step-*"))
    assert kept == ["step-000004", "step-000006"]


def test_one_process_has_nobody_to_share_with():
    with pytest.raises(RuntimeError, match="start several"):
        shard_base(tiny_model())


@pytest.mark.parametrize(
    "kind", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"]
)
@pytest.mark.parametrize("mapped", [False, True])
def test_tokens_that_peft_puts_before_the_text_move_no_label(kind, mapped):
    """The oracle is the loss that PEFT's model itself gives for the row."""
    torch.manual_seed(0)
    model = tiny_model(adapter=False, initializer_range=0.5)
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(model, config).eval()
    if mapped:
        model.hf_device_map = {"": "cpu"}
    row = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9]]),
        "labels": torch.tensor([[-100] * 3 + [8, 9]]),
    }
    with torch.no_grad():
        torch.testing.assert_close(answer_loss(model, row), model(**row).loss)


def test_gradients_that_are_all_zero_are_refused():
    model = tiny_model()
    for prompt in adapter_prompts(model, "default").values():
        prompt.gate.register_hook(torch.zeros_like)  # the gates are closed, so prompts get none
    with pytest.raises(ValueError, match="exactly zero, so nothing would be learnt"):
        tiny_run(model=model)
