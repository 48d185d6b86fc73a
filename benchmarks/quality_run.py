"""One run of the comparison in `quality.py`: fine-tune in some way, answer unseen rows, measure."""

import gc
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

import peft
import torch
from accelerate.utils import set_seed
from datasets import Dataset

from llama_adapter_edu import (
    AdaptionPromptConfig,
    CartridgeConfig,
    TrainingConfig,
    add_adaption_prompts,
    add_cartridge,
    count_parameters,
    encode_dataset,
    finetune,
    generate_answers,
    load_llama,
    save_adapter,
)
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.course.tasks.profiles import Profile, estimate_memory
from llama_adapter_edu.course.tasks.telegrams import style_score, telegrams
from llama_adapter_edu.data.evaluate import exact_match, longest_answer

OURS = ("adaption prompts", "V2", "cartridge")  # saved by this library
SLOTS = 16  # of a cartridge


def prepare(method: str, model, adapter: AdaptionPromptConfig, ids: list[int]):
    """The model with what this method trains, and nothing else, trainable.

    A cartridge begins as what the model keeps of the token ids.
    """
    if method == "full fine-tuning":
        return model.requires_grad_(True)
    if method == "adaption prompts":
        return add_adaption_prompts(model, adapter)
    if method == "V2":
        return add_adaption_prompts(model, replace(adapter, bias_scale=True, norms=True))
    if method == "cartridge":
        return add_cartridge(model, torch.tensor([ids[:SLOTS]]), CartridgeConfig(SLOTS))
    if method == "PEFT LoRA":
        config = peft.LoraConfig(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
    else:
        sizes = dict(adapter_len=adapter.adapter_len, adapter_layers=adapter.adapter_layers)
        config = peft.AdaptionPromptConfig(**sizes, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def saved_bytes(method: str, model) -> int:
    """Size of the weights' file as this method's library writes it."""
    with tempfile.TemporaryDirectory() as folder:
        if method in OURS:
            save_adapter(model, folder)
        else:
            model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def run(
    method: str,
    training: TrainingConfig,
    profile: Profile,
    seed: int,
    *,
    data,
    split: str = "test",
    test_rows: int,
    model_name: str | None = None,
) -> dict:
    """Fine-tune once and answer unseen rows. `data` is `home_commands` or `telegrams`."""
    accelerator = profile.accelerator()
    device = accelerator.device
    model, tokenizer = load_llama(model_name, device=device, dtype=profile.dtype)
    layers = min(30, model.config.num_hidden_layers)
    adapter = AdaptionPromptConfig(adapter_len=10, adapter_layers=layers)
    texts = data("train", training.steps * training.batch_size, seed=seed)
    train = encode_dataset(texts, tokenizer)
    test = data(split, min(test_rows, len(data(split))), seed=seed)
    set_seed(seed)
    tuned = prepare(method, model, adapter, train["input_ids"][0])
    trainable, _ = count_parameters(tuned)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    history = finetune(tuned, tokenizer, train, training, accelerator=accelerator, progress=False)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None

    answers = generate_answers(
        tuned, tokenizer, test, max_new_tokens=longest_answer(test, tokenizer), batch_size=256
    )
    rows = [len(ids) for ids in train["input_ids"]]
    labels = [sum(label >= 0 for label in row) for row in train["labels"]]
    lengths = {"row_tokens": round(mean(rows)), "answer_tokens": max(labels)}
    result = {
        "seed": seed,
        "exact_match": exact_match(answers, test["output"][:]),
        "trainable_parameters": trainable,
        "file_bytes": saved_bytes(method, tuned),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(sum(rows) / seconds),
        "peak_memory_bytes": peak,
        "first_loss": history.losses[0],
        "loss": mean(history.losses[-5:]),
        "learning_rate": training.learning_rate,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "test_rows": len(test),
    }
    if method == "adaption prompts":
        estimate = estimate_memory(model.config, profile, adapter, **lengths)
        result["estimated_memory_bytes"] = estimate.total
    if data is telegrams:
        result["style"] = style_score(answers)
    del model, tuned, history
    accelerator.free_memory()
    gc.collect()
    torch.cuda.empty_cache()
    return result


def base_answers(profile: Profile, test_rows: int, model_name: str | None) -> dict:
    """What the base model scores on both tasks without any training."""
    device = profile.accelerator().device
    model, tokenizer = load_llama(model_name, device=device, dtype=profile.dtype)

    def answers(test: Dataset) -> list[str]:
        longest = longest_answer(test, tokenizer)
        return generate_answers(model, tokenizer, test, max_new_tokens=longest, batch_size=256)

    commands = home_commands("test", test_rows)
    messages = telegrams("test", test_rows)
    return {
        "exact_match": exact_match(answers(commands), commands["output"][:]),
        "style": style_score(answers(messages)),
        "test_rows": test_rows,
    }
