"""One batch whose rows have adapters of their own, against the ways to do without.

    python -m benchmarks.mixed_adapters                 the course's Llama
    python -m benchmarks.mixed_adapters --shape tiny    quick, to try it

    mixed             8 rows, each with its own one of 8 adapters, in one `generate`
    one by one        the same rows, 8 calls of `generate` with one row each
    one for all       8 rows with the same adapter
    no adapter        8 rows with the base model

Every way answers the same prompts with the same number of new tokens, rounds interleaved. Results
go to `results/mixed_adapters.json`.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import measure
from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, load_llama, use_adapter
from llama_adapter_edu.adapters.manage import adapter_prompts

TINY = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=3, vocab_size=96)
LENGTHS = [10, 10, 10, 10, 5, 5, 20, 20]  # prompts a layer, of each adapter


def model_of(shape: str, device: torch.device) -> torch.nn.Module:
    """The model with one adapter for each of `LENGTHS`, all gates open."""
    if shape == "tiny":
        heads = dict(num_attention_heads=6, num_key_value_heads=2)
        model = LlamaForCausalLM(LlamaConfig(**TINY, **heads)).eval().to(device)
    else:
        model, _ = load_llama(device=device)
    torch.manual_seed(0)
    for number, length in enumerate(LENGTHS):
        add_adaption_prompts(model, AdaptionPromptConfig(length), f"a{number}")
        for prompt in adapter_prompts(model, f"a{number}").values():
            torch.nn.init.normal_(prompt.gate, std=0.3)
    return model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["course", "tiny"], default="course")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "mixed_adapters.json")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, names = model_of(options.shape, device), [f"a{n}" for n in range(len(LENGTHS))]
    ids = torch.randint(3, 90, (len(names), 24), device=device)
    kept = {"max_new_tokens": options.new_tokens, "min_new_tokens": options.new_tokens}
    kept |= {"do_sample": False, "pad_token_id": 0}

    def answer(adapter: object, rows: torch.Tensor = ids) -> torch.Tensor:
        with use_adapter(model, adapter):
            return model.generate(rows, attention_mask=torch.ones_like(rows), **kept)

    def one_by_one() -> torch.Tensor:
        return torch.cat([answer(n, row[None]) for n, row in zip(names, ids, strict=True)])

    same = torch.equal(answer(names), one_by_one())
    ways = {
        "mixed": lambda: answer(names),
        "one by one": one_by_one,
        "one for all": lambda: answer("a0"),
        "no adapter": lambda: answer(None),
    }
    times = measure.interleaved(ways, device, rounds=options.rounds, times=1)
    about = {"shape": options.shape, "adapters": len(names), "new_tokens": options.new_tokens}
    about |= {"same_tokens_mixed_and_one_by_one": same, **measure.conditions(device)}
    n_tokens = len(names) * options.new_tokens
    records = [about | {"way": name} | measure.spread(own) for name, own in times.items()]
    for record in records:
        record["tokens_per_second"] = round(1e3 * n_tokens / record["median_ms"], 1)
    measure.print_table(records, ["shape", "way", "median_ms", "tokens_per_second"])
    print("mixed and one by one give the same tokens:", same)
    measure.keep(options.output, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
