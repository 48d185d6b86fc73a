"""Adapted models in the hands of other libraries: transformers' Trainer, TRL and PEFT."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, Trainer, TrainingArguments

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    disable_adapter,
    load_adapter,
    save_adapter,
    set_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.base_models.course_llama import course_llama

SMALL = AdaptionPromptConfig(4, 2)
trl = pytest.importorskip("trl")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(course_llama())


@pytest.fixture
def model(tiny, tokenizer):
    return add_adaption_prompts(tiny(vocab_size=len(tokenizer)), SMALL)


def numbers(model):
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def frozen(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def moved(model, before):
    return max((a - b).abs().max() for a, b in zip(numbers(model), before, strict=True))


def options(kind, folder, **settings):
    always = dict(output_dir=str(folder), per_device_train_batch_size=4, learning_rate=0.05)
    quiet = dict(report_to=[], use_cpu=True, disable_tqdm=True, seed=0, logging_steps=1)
    return kind(**always | quiet | settings)


ROWS = Dataset.from_list(
    [{"input_ids": [i, 4, 5 + i], "labels": [-100, 4, 5 + i]} for i in range(16)]
)
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Say {word}."},
            {"role": "assistant", "content": word},
        ]
    }
    for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")
]


def test_the_trainer_trains_saves_and_resumes(model, tiny, tokenizer, tmp_path):
    start, base = numbers(model), frozen(model)
    whole = copy.deepcopy(model)
    arguments = options(TrainingArguments, tmp_path / "whole", max_steps=6, save_steps=3)
    Trainer(whole, arguments, train_dataset=ROWS).train()
    assert moved(whole, start) > 1e-3
    assert all(torch.equal(p, base[n]) for n, p in whole.named_parameters() if n in base)

    again = copy.deepcopy(model)
    arguments = options(TrainingArguments, tmp_path / "whole", max_steps=6, save_steps=3)
    trainer = Trainer(again, arguments, train_dataset=ROWS)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert moved(again, numbers(whole)) == 0

    save_adapter(whole, tmp_path / "adapter")
    fresh = load_adapter(tiny(vocab_size=len(tokenizer)), tmp_path / "adapter")
    ids = torch.arange(3, 9)[None]
    assert torch.equal(fresh(ids).logits, whole.eval()(ids).logits)


def test_sft_trains_on_chats(model, tokenizer, tmp_path):
    before = numbers(model)
    arguments = options(trl.SFTConfig, tmp_path, max_steps=6, max_length=64)
    trainer = trl.SFTTrainer(
        model, arguments, train_dataset=Dataset.from_list(CHATS), processing_class=tokenizer
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] and moved(model, before) > 1e-3


def test_dpo_learns_against_a_copied_reference(model, tokenizer, tmp_path):
    pairs = Dataset.from_list(
        [{"prompt": f"{i}?", "chosen": " yes", "rejected": " no"} for i in range(8)]
    )
    reference = copy.deepcopy(model)
    before, kept = numbers(model), numbers(reference)
    arguments = options(trl.DPOConfig, tmp_path, max_steps=6, max_length=32)
    trainer = trl.DPOTrainer(
        model, reference, args=arguments, train_dataset=pairs, processing_class=tokenizer
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # ln 2: both models are the same at first
    assert losses[-1] < losses[0] and moved(model, before) > 1e-3
    assert all(map(torch.equal, kept, reference_numbers(reference, kept)))


def reference_numbers(reference, kept):
    prompts = adapter_prompts(reference, "default").values()
    return [p for prompt in prompts for p in (prompt.prompts, prompt.gate)][: len(kept)]


@pytest.mark.parametrize("order", ["LoRA first", "prompts first"])
def test_lora_and_prompts_train_together(tiny, order):
    """In one call: `add_adaption_prompts(model, freeze=False)`, or `set_adapter` after PEFT."""
    from peft import LoraConfig, get_peft_model

    lora, base = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False), tiny()
    if order == "LoRA first":
        model = get_peft_model(base, lora)
        add_adaption_prompts(model, SMALL, freeze=False)
    else:
        model = get_peft_model(add_adaption_prompts(base, SMALL), lora)
        set_adapter(model, "default")
    for prompt in adapter_prompts(model, "default").values():
        torch.nn.init.normal_(prompt.gate)
    trains = [n for n, p in model.named_parameters() if p.requires_grad]
    assert (
        {"lora_" in n for n in trains} == {"adaption_prompts" in n for n in trains} == {True, False}
    )
    ids, before = torch.arange(3, 15).reshape(2, 6), numbers(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(6):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all((a != b).any() for a, b in zip(numbers(model), before, strict=True))
    with torch.no_grad(), disable_adapter(model):
        of_lora = model(input_ids=ids).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids).logits, tiny()(ids).logits)
    assert (of_lora - tiny()(ids).logits).abs().max() > 1e-3
