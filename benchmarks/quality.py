"""How good, how small, how fast: adaption prompts beside PEFT's, LoRA and full fine-tuning.

    python -m benchmarks.quality --cpu --tiny --output /tmp/quality.json      # does the script run?
    python -m benchmarks.quality --minutes 8                                  # one GPU

A finished run is written to OUTPUT at once; a second call does what is missing. The parts:

    bar         the `gpu` profile on home commands, 3 seeds: exact match on unseen commands
    telegrams   the same profile on the second expert: share of answers in a telegram's style
    rates       each method's learning rate, chosen on the validation split from candidates
    methods     each method with that rate, 3 seeds, float32, the same rows in the same order
    t4          the `t4` profile (float16 base, gradient scaler), one seed
"""

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

import accelerate
import peft
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset

from llama_adapter_edu.adapt import AdaptionPromptConfig, add_adaption_prompts, count_parameters
from llama_adapter_edu.checkpoint import save_adapter
from llama_adapter_edu.data import encode_dataset, home_commands
from llama_adapter_edu.evaluate import exact_match, generate_answers, longest_answer
from llama_adapter_edu.finetune import TrainingConfig, finetune
from llama_adapter_edu.llama import load_llama
from llama_adapter_edu.profiles import PROFILES, Profile, estimate_memory
from llama_adapter_edu.telegrams import style_score, telegrams

OUTPUT = Path(__file__).resolve().parents[1] / "llama_adapter_edu" / "results" / "quality.json"
SEEDS = (0, 1, 2)
RATE_SEED = 100
BUDGET = TrainingConfig(steps=100, batch_size=32)  # of every method; the rate is its own
RATES = {
    "adaption prompts": (1e-2, 3e-2, 1e-1),
    "PEFT adaption prompts": (1e-2, 3e-2, 1e-1),
    "PEFT LoRA": (1e-3, 3e-3, 1e-2),
    "full fine-tuning": (3e-5, 1e-4, 3e-4),
}


def prepare(method: str, model, adapter: AdaptionPromptConfig):
    """The model with what this method trains, and nothing else, trainable."""
    if method == "full fine-tuning":
        return model.requires_grad_(True)
    if method == "adaption prompts":
        return add_adaption_prompts(model, adapter)
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
        if method == "adaption prompts":
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
    tuned = prepare(method, model, adapter)
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
        "final_loss": mean(history.losses[-5:]),
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


class Results:
    """The runs so far, in a file that is whole at every moment."""

    def __init__(self, path: Path, conditions: dict, deadline: float) -> None:
        self.path, self.deadline = path, deadline
        self.content = {"conditions": conditions, "runs": {}}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["conditions"] != conditions:
                sys.exit(f"{path} holds runs under other conditions: take another --output.")
            self.content = found

    def do(self, name: str, work) -> dict | None:
        """The run of that name, done now if it is missing. None if there is no time left."""
        runs = self.content["runs"]
        if name not in runs:
            if time.monotonic() > self.deadline:
                print(f"no time left for {name}", flush=True)
                return None
            start = time.perf_counter()
            runs[name] = work()
            shown = {
                k: v for k, v in runs[name].items() if k in ("exact_match", "style", "seconds")
            }
            print(f"{time.perf_counter() - start:6.1f} s  {name}  {shown}", flush=True)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
            os.replace(unfinished, self.path)
        return runs[name]


def best_rate(results: Results, method: str, work) -> float | None:
    """The candidate that scores best on the validation split after half the steps."""
    scores = {}
    for rate in RATES[method]:
        done = results.do(f"rates/{method}/{rate:g}", lambda rate=rate: work(rate))
        if done is None:
            return None
        scores[rate] = done["exact_match"], -done["final_loss"]
    return max(scores, key=scores.get)


def benchmark(results: Results, *, cpu: bool, tiny: bool, model_name: str | None) -> None:
    """All runs, in the order of their weight."""
    plain = replace(PROFILES["gpu"], name="float32", dtype=torch.float32)
    gpu, t4 = PROFILES["gpu"], PROFILES["t4"]
    bar_rows, rows, budget, seeds = 400, 200, BUDGET, SEEDS
    if cpu:
        plain, gpu, t4 = (replace(p, name="cpu", mixed_precision="no") for p in (plain, gpu, gpu))
    if tiny:
        bar_rows = rows = 4
        budget, seeds = replace(BUDGET, steps=2, batch_size=2), SEEDS[:1]
        gpu, t4 = (replace(p, steps=2, batch_size=2) for p in (gpu, t4))

    def bar(profile: Profile, seed: int, data=home_commands) -> dict:
        options = {"data": data, "test_rows": bar_rows, "model_name": model_name}
        return run("adaption prompts", profile.training(seed=seed), profile, seed, **options)

    def compared(method: str, seed: int, rate: float, split: str = "test") -> dict:
        steps = budget.steps if split == "test" else budget.steps // 2
        training = replace(budget, learning_rate=rate, seed=seed, steps=steps)
        options = {"data": home_commands, "split": split, "test_rows": rows}
        return run(method, training, plain, seed, **options, model_name=model_name)

    results.do("base", lambda: base_answers(plain, rows, model_name))
    for seed in seeds:
        results.do(f"bar/{seed}", lambda seed=seed: bar(gpu, seed))
    for seed in seeds:
        results.do(f"telegrams/{seed}", lambda seed=seed: bar(gpu, seed, telegrams))
    for method in RATES:

        def try_rate(rate: float, method: str = method) -> dict:
            return compared(method, RATE_SEED, rate, "validation")

        rate = best_rate(results, method, try_rate)
        for seed in seeds if rate else ():
            name = f"methods/{method}/{seed}"
            results.do(name, lambda m=method, s=seed, r=rate: compared(m, s, r))
    results.do("t4/0", lambda: bar(t4, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--minutes", type=float, default=8, help="start no run after this time")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    parser.add_argument("--tiny", action="store_true", help="two steps of everything: a trial")
    parser.add_argument("--model", default=None, help="a hub id or folder instead of our Llama")
    options = parser.parse_args()
    device = Accelerator(cpu=options.cpu).device
    gpu = device.type == "cuda"
    conditions = {
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {platform.machine()}",
        "tiny": options.tiny,
        "model": options.model or "SmolLM2-135M-Instruct",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "accelerate": accelerate.__version__,
    }
    results = Results(options.output, conditions, time.monotonic() + 60 * options.minutes)
    benchmark(results, cpu=options.cpu, tiny=options.tiny, model_name=options.model)
    runs = results.content["runs"]
    for part, score in (("bar", "exact_match"), ("telegrams", "style")):
        scores = [run[score] for name, run in runs.items() if name.startswith(part)]
        seconds = [run["seconds"] for name, run in runs.items() if name.startswith(part)]
        if scores:
            print(f"{part}: mean {score} {mean(scores):.2%}, slowest {max(seconds):.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
